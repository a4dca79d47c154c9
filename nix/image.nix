# The image's packages from nixpkgs; ./rootfs.nix makes the image of them.
{
  pkgs ? import <nixpkgs> { },
  npmRegistry ? null, # base URL of an npm registry, for the opencode that is pinned; null: nixpkgs' own
  extraPackages ? [ ],
  chosen ? [ ], # names of packages for cards that ask for them
}:
let
  inherit (pkgs) lib dash;
  npm = lib.importJSON ../images/npm.lock.json;

  withoutScripts = import ./without-scripts.nix {
    inherit (pkgs) runCommand;
    inherit dash;
  };

  # nixpkgs' git runs its scripts, aliases and hooks with bash.
  git = (pkgs.gitMinimal.override { nlsSupport = false; }).overrideAttrs (old: {
    makeFlags = lib.filter (flag: !lib.hasPrefix "SHELL_PATH=" flag) old.makeFlags ++ [ "SHELL_PATH=${dash}/bin/dash" ];
    doInstallCheck = false; # the tests want bash and perl
    postFixup = (old.postFixup or "") + withoutScripts.git;
  });

  pinnedOpencode = pkgs.stdenv.mkDerivation {
    pname = "opencode";
    inherit (npm) version;
    src = pkgs.fetchurl {
      url = "${npmRegistry}/${npm.path}";
      hash = npm.integrity;
    };
    strictDeps = true;
    nativeBuildInputs = [ pkgs.autoPatchelfHook ];
    dontStrip = true; # Bun keeps the program in a section of its own
    installPhase = "install -D -m 555 bin/opencode $out/bin/opencode";
    doInstallCheck = true;
    installCheckPhase = ''[ "$(HOME=$TMPDIR $out/bin/opencode --version)" = ${npm.version} ]'';
    meta = {
      description = "AI coding agent";
      license = lib.licenses.mit;
      sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
      mainProgram = "opencode";
      platforms = [ "x86_64-linux" ];
    };
  };

  # nixpkgs wraps it; in the image the tools that the wrapper would name are in PATH.
  plainOpencode = pkgs.runCommand "opencode-${pkgs.opencode.version}" {
    passthru = { inherit (pkgs.opencode) version; };
    meta = { inherit (pkgs.opencode.meta) description license mainProgram platforms; };
  } ''
    program=${pkgs.opencode}/bin/.opencode-wrapped
    [ -e $program ] || program=${pkgs.opencode}/bin/opencode
    mkdir -p $out/bin
    cp $program $out/bin/opencode
  '';

  opencode = if npmRegistry == null then plainOpencode else pinnedOpencode;

  shell = pkgs.runCommand "dash-${dash.version}" { } ''
    mkdir -p $out/bin
    ln -s ${dash}/bin/dash $out/bin/dash
    ln -s dash $out/bin/sh
  '';
in
pkgs.callPackage ./rootfs.nix {
  inherit git opencode extraPackages;
  curl = withoutScripts.only "curl" pkgs.curl;
  gnugrep = withoutScripts.only "grep" pkgs.gnugrep;
  chosenPackages = lib.genAttrs chosen (
    name: lib.attrByPath (lib.splitString "." name) (throw "nixpkgs has no package called ${name}") pkgs
  );
  dash = shell;
  # That none of them is reached, not even by a path in some script, is Nix' to check.
  disallowedRequisites = [
    pkgs.bash
    pkgs.bashInteractive
    pkgs.runtimeShellPackage
    pkgs.perl
    pkgs.python3
  ];
}
