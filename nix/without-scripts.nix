# What of nixpkgs' packages has no place in the image: scripts of bash and perl, and paths to tools that bring these along.
# It knows nothing of nixpkgs, so that images/check tries it on packages that have them.
{ runCommand, dash }:
{
  # One command of a package, without others beside it, such as curl's wcurl and grep's egrep, which are scripts.
  only =
    command: package:
    runCommand package.name { } ''
      mkdir -p $out/bin
      cp ${package}/bin/${command} $out/bin/
    '';

  # For the end of git's build: its scripts run with dash, and find their tools in PATH.
  git = ''
    rm -rf $out/share/git/contrib $out/share/bash-completion
    rm -f $out/share/git-core/templates/hooks/*.sample
    grep -rlI '^#!' $out/bin $out/libexec | xargs -r sed -i -E \
      -e 's,${builtins.storeDir}/[^/ ]*/bin/(ba)?sh\>,${dash}/bin/dash,g' \
      -e 's,${builtins.storeDir}/[^/ ]*/bin/(grep|sed|awk|cut|basename|dirname|wc|tr|gettext\.sh)\>,\1,g'
  '';
}
