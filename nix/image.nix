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

  # nixpkgs' git runs its scripts, aliases and hooks with bash, and names tools whose packages bring bash along.
  git = (pkgs.gitMinimal.override { nlsSupport = false; }).overrideAttrs (old: {
    makeFlags = lib.filter (flag: !lib.hasPrefix "SHELL_PATH=" flag) old.makeFlags ++ [ "SHELL_PATH=${dash}/bin/dash" ];
    doInstallCheck = false; # the tests want bash and perl
    postFixup = (old.postFixup or "") + ''
      rm -rf $out/share/git/contrib $out/share/bash-completion
      grep -rlI '^#!' $out/bin $out/libexec | xargs sed -i -E \
        -e 's,${builtins.storeDir}/[^/ ]*/bin/(ba)?sh\>,${dash}/bin/dash,g' \
        -e 's,${builtins.storeDir}/[^/ ]*/bin/(grep|sed|awk|cut|basename|dirname|wc|tr|gettext\.sh)\>,\1,g'
    '';
  });

  # Its egrep and fgrep are bash scripts.
  gnugrep = pkgs.gnugrep.overrideAttrs (old: {
    postFixup = (old.postFixup or "") + "\nrm -f $out/bin/egrep $out/bin/fgrep\n";
  });

  pinnedOpencode = pkgs.stdenv.mkDerivation {
    pname = "opencode";
    inherit (npm) version;
    src = pkgs.fetchurl {
      url = "${npmRegistry}/${npm.path}";
      hash = npm.integrity;
    };
    nativeBuildInputs = [ pkgs.autoPatchelfHook ];
    dontStrip = true; # Bun keeps the program in a section of its own
    installPhase = "install -D -m 555 bin/opencode $out/bin/opencode";
    doInstallCheck = true;
    installCheckPhase = ''[ "$(HOME=$TMPDIR $out/bin/opencode --version)" = ${npm.version} ]'';
  };

  # nixpkgs wraps it; in the image the tools that the wrapper would name are in PATH.
  plainOpencode = pkgs.runCommand "opencode-${pkgs.opencode.version}" { passthru = { inherit (pkgs.opencode) version; }; } ''
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
  inherit git gnugrep opencode extraPackages;
  chosenPackages = lib.genAttrs chosen (
    name: lib.attrByPath (lib.splitString "." name) (throw "nixpkgs has no package called ${name}") pkgs
  );
  dash = shell;
  # That none of them is reached, not even by a path in some script, is Nix' to check.
  disallowedRequisites = [
    pkgs.bash
    pkgs.bashInteractive
    pkgs.perl
    pkgs.python3
  ];
}
