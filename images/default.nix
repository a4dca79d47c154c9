# The image from pinned Debian packages: just enough of nixpkgs' interface for ../nix/rootfs.nix, so that the image
# is built by real Nix, in its sandbox, where nixpkgs can't be had. Run it through ./build, which finds the arguments.
{
  mirror, # base URL of a Debian archive
  security, # base URL of a Debian security archive
  npmRegistry, # base URL of an npm registry
  chosen ? [ ], # names of packages, of those in debs.lock.json, for cards that ask for them
}:
let
  inherit (builtins) baseNameOf concatStringsSep elemAt fromJSON genList length mapAttrs match readFile replaceStrings;
  system = "x86_64-linux";
  debs = fromJSON (readFile ./debs.lock.json);
  npm = fromJSON (readFile ./npm.lock.json);
  fetchurl = import <nix/fetchurl.nix>;
  # What a store path's name may hold, and a version without its epoch.
  storeName = replaceStrings [ "~" ] [ "-" ];
  versionOf = name: storeName (elemAt (match "([0-9]+:)?(.*)" debs.${name}.version) 1);
  libraries = "usr/lib/x86_64-linux-gnu";

  debFile = name: fetchurl {
    name = storeName (baseNameOf debs.${name}.path);
    # The security archive's pool begins with "updates".
    url = "${if match "pool/updates/.*" debs.${name}.path != null then security else mirror}/${debs.${name}.path}";
    inherit (debs.${name}) sha256;
  };

  # The first shell comes from outside the store (sandbox-paths) and only unpacks its pinned successor, so what is
  # built does not depend on it.
  busybox = derivation {
    name = "busybox-${versionOf "busybox-static"}";
    inherit system;
    builder = "/bin/busybox";
    args = [ "sh" "-ec" ''
      b=/bin/busybox
      $b ar -p ${debFile "busybox-static"} data.tar.xz | $b xz -dc | $b tar -x
      $b mkdir -p $out/bin
      $b mv usr/bin/busybox $out/bin/
      for applet in $($out/bin/busybox --list); do
        [ "$applet" = busybox ] || $b ln -s busybox "$out/bin/$applet"
      done
    '' ];
  };

  runCommand = name: env: script:
    derivation (removeAttrs env [ "passthru" "meta" "nativeBuildInputs" ] // {
      inherit name system script;
      passAsFile = [ "script" ] ++ env.passAsFile or [ ];
      PATH = concatStringsSep ":" (map (package: "${package}/bin") (env.nativeBuildInputs or [ ] ++ [ busybox ]));
      builder = "${busybox}/bin/sh";
      args = [ "-euc" ''. "$scriptPath"'' ];
    }) // env.passthru or { };

  unpack = name: "ar -p ${debFile name} data.tar.xz | xz -dc | tar -x";

  # patchelf as Debian built it, run through the loader: nothing is at /lib in the sandbox.
  patchelf = runCommand "patchelf-${versionOf "patchelf"}" { } ''
    for part in ${concatStringsSep " " (map debFile [ "libc6" "libgcc-s1" "libstdc++6" "patchelf" ])}; do
      ar -p $part data.tar.xz | xz -dc | tar -x
    done
    mkdir -p $out/bin $out/lib
    cp ${libraries}/ld-linux-x86-64.so.2 ${libraries}/libc.so.6 ${libraries}/libm.so.6 \
       ${libraries}/libgcc_s.so.1 $out/lib/
    cp ${libraries}/libstdc++.so.6.*[0-9] $out/lib/libstdc++.so.6
    cp usr/bin/patchelf $out/lib/
    printf '#!%s\nexec %s --library-path %s %s "$@"\n' ${busybox}/bin/sh $out/lib/ld-linux-x86-64.so.2 \
      $out/lib $out/lib/patchelf > $out/bin/patchelf
    chmod 555 $out/bin/patchelf
  '';

  # A Debian package under a store prefix. Interpreter and run paths name other store paths, so Nix finds genuine
  # references and the closure is what is used, no more.
  package = mapAttrs (name: { needs, ... }: runCommand "${name}-${versionOf name}" {
    nativeBuildInputs = [ patchelf ];
  } ''
    ${unpack name}
    # libgcc_s and libc need each other, and libc is what finds libgcc_s at run time: one store path, as in nixpkgs.
    ${if name == "libc6" then unpack "libgcc-s1" else ""}
    mkdir -p $out
    for part in bin lib/git-core share/git-core/templates; do
      [ -d usr/$part ] || continue
      mkdir -p $out/$part
      mv usr/$part/* $out/$part/
    done
    [ ! -d ${libraries} ] || { mkdir -p $out/lib; mv ${libraries}/* $out/lib/; }
    chmod -R u+w $out
    for part in audit engines-3 gconv libfakeroot ossl-modules pkgconfig; do rm -rf $out/lib/$part; done
    find $out -type f | while read -r file; do
      case $file in
        *.a) rm "$file"; continue ;;
        */ld-linux-x86-64.so.2) continue ;;
      esac
      case $(head -c 4 "$file" | tr '\177' E | tr -d '\0') in
        EELF)
          patchelf --set-rpath "$out/lib:${concatStringsSep ":" (map (need: "${package.${need}}/lib") (libc name needs))}" "$file"
          [ ${name} = libc6 ] || patchelf --shrink-rpath "$file"
          if patchelf --print-interpreter "$file" >/dev/null 2>&1; then
            patchelf --set-interpreter ${if name == "libc6" then "$out" else package.libc6}/lib/ld-linux-x86-64.so.2 "$file"
          fi ;;
        # The image has no interpreter but sh.
        '#!'*) if head -n 1 "$file" | grep -qE 'perl|python|bash|wish'; then rm "$file"; fi ;;
      esac
    done
    # Links to what was left out.
    find $out -type l ! -exec test -e {} ';' -exec rm {} ';'
  '') debs;
  libc = name: needs: if name == "libc6" then [ ] else builtins.filter (need: need != "libgcc-s1") needs ++ [ "libc6" ];

  dash = runCommand "dash-${versionOf "dash"}" { } ''
    mkdir -p $out/bin
    cp ${package.dash}/bin/dash $out/bin/
    ln -s dash $out/bin/sh
  '';

  # git looks for its parts at /usr/lib/git-core unless told otherwise.
  git = runCommand "git-minimal-${versionOf "git"}" { } ''
    mkdir -p $out/bin
    printf '%s\n' '#!${dash}/bin/sh' \
      'export GIT_EXEC_PATH=${package.git}/lib/git-core GIT_TEMPLATE_DIR=${package.git}/share/git-core/templates' \
      'exec ${package.git}/bin/git "$@"' > $out/bin/git
    chmod 555 $out/bin/git
  '';

  cacert = runCommand "cacert-${versionOf "ca-certificates"}" { } ''
    ${unpack "ca-certificates"}
    mkdir -p $out/etc/ssl/certs
    find usr/share/ca-certificates/mozilla -name '*.crt' | sort | while read -r certificate; do
      cat "$certificate"
      echo
    done > $out/etc/ssl/certs/ca-bundle.crt
  '';

  # Bun keeps the program in a section of its own: never strip. patchelf 0.18 lets segments overlap when it is told
  # both at once, so one after the other, and the program must run.
  opencode = runCommand "opencode-${npm.version}" {
    passthru = { inherit (npm) version; };
    nativeBuildInputs = [ patchelf ];
  } ''
    tar -xzf ${fetchurl { url = "${npmRegistry}/${npm.path}"; hash = npm.integrity; }}
    mkdir -p $out/bin
    mv package/bin/opencode $out/bin/
    chmod u+w $out/bin/opencode
    patchelf --set-rpath ${package.libc6}/lib $out/bin/opencode
    patchelf --set-interpreter ${package.libc6}/lib/ld-linux-x86-64.so.2 $out/bin/opencode
    chmod 555 $out/bin/opencode
    [ "$(HOME=$PWD $out/bin/opencode --version)" = ${npm.version} ]
  '';

  # As nixpkgs': the store paths that rootPaths refer to, in $out/store-paths.
  closureInfo = { rootPaths }: runCommand "closure-info" {
    exportReferencesGraph = builtins.concatLists
      (genList (n: [ "graph-${toString n}" (elemAt rootPaths n) ]) (length rootPaths));
  } ''
    mkdir -p $out
    cat graph-* | grep '^/nix/store/' | sort -u > $out/store-paths
  '';

  rootfs = arguments: import ../nix/rootfs.nix ({
    inherit runCommand closureInfo dash git cacert opencode;
    inherit (package) coreutils curl ripgrep;
    gnused = package.sed;
    gnugrep = package.grep;
    gnutar = package.tar;
    squashfs-tools-ng = package.squashfs-tools-ng;
  } // arguments);
in
rootfs {
  chosenPackages = builtins.listToAttrs (map (name: {
    inherit name;
    value = package.${name} or (throw "images/debs.lock.json has no package called ${name}");
  }) chosen);
} // {
  # For images/check: an image that must fail to build, and why.
  forbidden = mapAttrs (name: script: (rootfs {
    extraPackages = [ (runCommand "forbidden-${name}" { } "mkdir -p $out/bin\n${script}\nchmod 555 $out/bin/*") ];
  }).tarball) {
    bash = "cp ${busybox}/bin/busybox $out/bin/bash";
    node = "cp ${busybox}/bin/busybox $out/bin/node";
    perl = "cp ${busybox}/bin/busybox $out/bin/perl5.40";
    python = "cp ${busybox}/bin/busybox $out/bin/python3";
    script = "printf '#!/usr/bin/env python3\\n' > $out/bin/innocent";
    systemd = "cp ${busybox}/bin/busybox $out/bin/systemctl";
  } // {
    reference =
      let
        innocent = runCommand "forbidden-reference" { } "mkdir -p $out/bin\ncp ${busybox}/bin/busybox $out/bin/innocent";
      in
      (rootfs { extraPackages = [ innocent ]; disallowedRequisites = [ innocent ]; }).tarball;
  };

  # For images/check: packages with the scripts that nixpkgs' git and curl have, and an image with what is left of them.
  withoutScripts =
    let
      inherit (import ../nix/without-scripts.nix { inherit runCommand dash; }) git only;
      bash = runCommand "bash-5" { } ''
        mkdir -p $out/bin
        for name in bash sh sed gettext.sh; do cp ${busybox}/bin/busybox $out/bin/$name; done
      '';
      gitWithScripts = runCommand "git-with-scripts" { nativeBuildInputs = [ package.sed package.grep ]; } ''
        within() { mkdir -p $out/$1; cd $out/$1; }
        within bin; printf '#!%s\nexec true\n' ${bash}/bin/bash > git-shell-script
        within libexec/git-core; printf '#!%s\n. %s\n%s p\n' ${bash}/bin/sh ${bash}/bin/gettext.sh ${bash}/bin/sed > git-submodule
        within share/git/contrib; printf '#!%s\n' ${bash}/bin/bash > git-jump
        within share/bash-completion; printf '. %s\n' ${bash}/bin/bash > git
        within share/git-core/templates/hooks; printf '#!/usr/bin/perl\n' > fsmonitor-watchman.sample
        printf '#!%s\n' ${bash}/bin/bash > pre-push.sample
        chmod -R 555 $out/bin $out/libexec $out/share/git*
        chmod -R u+w $out
        ${git}
      '';
      curlWithScripts = runCommand "curl-with-scripts" { } ''
        mkdir -p $out/bin
        cp ${busybox}/bin/busybox $out/bin/curl
        printf '#!%s\n' ${bash}/bin/bash > $out/bin/wcurl
        chmod 555 $out/bin/*
      '';
    in
    (rootfs { extraPackages = [ gitWithScripts (only "curl" curlWithScripts) ]; disallowedRequisites = [ bash ]; }).tarball;
}
