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
      override = _: package name attributes;
      overrideAttrs = change: builtins.seq (change { makeFlags = [ ]; mesonFlags = [ ]; }) (package name attributes);
    }
    // attributes;
  named = name: package name { };
  pkgs =
    lib.genAttrs [
      "bash" "bashInteractive" "cacert" "clang-tools" "cli11" "coreutils" "curl" "dash" "dbus" "diffutils" "gitMinimal"
      "gnugrep" "gnused" "libseccomp" "gnutar" "gtest" "iproute2" "libarchive" "makeBinaryWrapper" "meson" "nftables" "ninja"
      "nixfmt-rfc-style" "nlohmann_json" "opencode" "openssl" "perl" "pkg-config" "python3" "ripgrep" "sdbus-cpp_2"
      "prometheus-cpp" "shellcheck" "spdlog" "squashfs-tools-ng" "squid" "systemd" "tomlplusplus" "yaml-cpp" "autoPatchelfHook"
    ] named
    // {
      inherit lib pkgs;
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
      writeText = name: text: package name { inherit text; };
      runCommand = name: env: script: package name (env.passthru or { } // { text = env.card.text or script; });
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
              { options.virtualisation = lib.mkOption { type = lib.types.attrsOf lib.types.anything; default = { }; }; }
              { options.nixpkgs = lib.mkOption { type = lib.types.attrsOf lib.types.anything; default = { }; }; }
              test.nodes.machine
            ];
            specialArgs = { inherit pkgs; };
          };
        in
        builtins.deepSeq node.config.services.agentmachine.settings (package test.name { text = test.testScript; });
    };
in
pkgs
