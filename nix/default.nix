# The image from nixpkgs. ../images/build runs this; by hand:
#   nix-build nix -A tarball --argstr npmRegistry "$(npm config get registry)"
{
  pkgs ? import <nixpkgs> { },
  npmRegistry, # base URL of an npm registry
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

  opencode = pkgs.stdenv.mkDerivation {
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

  shell = pkgs.runCommand "dash-${dash.version}" { } ''
    mkdir -p $out/bin
    ln -s ${dash}/bin/dash $out/bin/dash
    ln -s dash $out/bin/sh
  '';
in
pkgs.callPackage ./rootfs.nix {
  inherit git gnugrep opencode;
  dash = shell;
}
