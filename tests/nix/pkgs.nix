# A stand-in for nixpkgs' packages: each is a derivation that is never built, with the attributes that nix/ asks for.
{ lib }:
let
  package =
    name: attributes:
    derivation {
      inherit name;
      system = "x86_64-linux";
      builder = "/bin/sh";
      args = [ (builtins.unsafeDiscardStringContext (attributes.text or "")) ];
    }
    // {
      pname = name;
      version = "0";
      # Without it nixpkgs' lib takes the derivation alone for it.
      outputSpecified = true;
      override = _: package name attributes;
      overrideAttrs = change: builtins.seq (change { makeFlags = [ ]; mesonFlags = [ ]; }) (package name attributes);
    }
    // attributes;
  named = name: package name { };
  pkgs =
    lib.genAttrs [
      "bash" "bashInteractive" "runtimeShellPackage" "e2fsprogs" "util-linux" "cacert" "clang-tools" "cli11" "coreutils" "curl" "dash" "dbus" "diffutils" "findutils" "gitMinimal"
      "gnugrep" "gnused" "libseccomp" "gnutar" "gtest" "iproute2" "libarchive" "makeBinaryWrapper" "meson" "nftables" "ninja"
      "nixfmt-rfc-style" "nlohmann_json" "openssl" "perl" "pkg-config" "python3" "ripgrep" "sdbus-cpp_2"
      "prometheus-cpp" "shellcheck" "spdlog" "squashfs-tools-ng" "squid" "systemd" "tomlplusplus" "yaml-cpp" "autoPatchelfHook"
    ] named
    // {
      inherit lib pkgs;
      opencode = package "opencode" {
        meta = { description = "of nixpkgs"; license = lib.licenses.mit; mainProgram = "opencode"; platforms = lib.platforms.linux; };
      };
      glibc = package "glibc" { static = named "glibc-static"; };
      python3Packages.docutils = named "docutils";
      stdenv = {
        hostPlatform.system = "x86_64-linux";
        mkDerivation =
          attributes:
          # All that is written about a package has to evaluate.
          builtins.deepSeq (removeAttrs attributes [ "src" ]) (package (attributes.pname or attributes.name) { inherit (attributes) version; });
      };
      runtimeShell = "/bin/sh";
      fetchurl = { url, hash }: package (baseNameOf url) { };
      # TOML's strings, numbers, booleans and lists of them are JSON's, too.
      formats.toml = _: {
        type = lib.types.attrsOf (
          lib.types.oneOf [ lib.types.bool lib.types.int lib.types.str (lib.types.listOf lib.types.str) ]
        );
        generate =
          name: values:
          let
            # In what order definitions are merged is not ours.
            sorted = value: if builtins.isList value then builtins.sort builtins.lessThan value else value;
          in
          package name { text = lib.concatStrings (lib.mapAttrsToList (key: value: "${key} = ${builtins.toJSON (sorted value)}\n") values); };
      };
      writeText = name: text: package name { inherit text; };
      writeTextDir = path: text: package (baseNameOf path) { inherit text; };
      writeTextFile = file: package file.name { inherit (file) text; };
      writeShellScriptBin = name: text: package name { inherit text; meta.mainProgram = name; };
      runCommand = name: env: script: package name (env.passthru or { } // { text = env.card.text or env.settings.text or script; });
      closureInfo = { rootPaths }: named "closure-info";
      mkShell = { inputsFrom, packages }: builtins.seq (map toString (inputsFrom ++ packages)) (named "shell");
      callPackage =
        file: arguments:
        let
          function = if builtins.isFunction file then file else import file;
        in
        function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // arguments);
      testers.runNixOSTest =
        test:
        let
          node = lib.evalModules {
            modules = [
              ./nixos.nix
              # The test's own packages are set there, so `nixpkgs` takes no other definition: it isn't an option here.
              {
                options.virtualisation = {
                  memorySize = lib.mkOption { type = lib.types.int; };
                  diskSize = lib.mkOption { type = lib.types.int; };
                };
              }
              test.nodes.machine
            ];
            specialArgs = { inherit pkgs; };
          };
        in
        builtins.deepSeq [ node.config.services.agentmachine.settings node.config.virtualisation ] (package test.name { text = test.testScript; });
    };
in
pkgs
