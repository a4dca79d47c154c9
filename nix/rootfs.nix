# The root file system of every machine, from packages that the caller chooses: nixpkgs' (./default.nix) or pinned
# Debian ones (../images). Outputs: `tree` (a directory, what machines of a host with Nix run from), `tarball` (the same for
# `agentmachine image import` elsewhere), `squashfs` (the same as one file), `manifest` (every executable in it), `closure`
# (its store paths), `packages`.
{
  runCommand,
  closureInfo,
  gnutar,
  dash,
  coreutils,
  gnugrep, # git's own scripts run grep and sed
  gnused,
  git,
  curl,
  cacert,
  opencode,
  ripgrep, # opencode's search tools run `rg`, and would download it otherwise
  squashfs-tools-ng,
  extraPackages ? [ ],
  chosenPackages ? { }, # by name, for cards that ask for them: they may bring interpreters along
  disallowedRequisites ? [ ], # packages that the image must not refer to in any way
}:
let
  name = "agentmachine-rootfs";
  common = [ dash coreutils gnugrep gnused git curl ripgrep opencode ] ++ extraPackages;
  chosen = builtins.attrValues chosenPackages;
  commands = common ++ chosen;

  # All that is not a package: links to the commands, the user, and what systemd-nspawn mounts on. With
  # ReadOnly=yes it can create nothing, so every mount point is here.
  skeleton = runCommand "${name}-skeleton" { } ''
    mkdir -p $out
    cd $out
    mkdir -p dev etc/opencode etc/ssl/certs home/agent nix/store proc root run sys tmp \
      usr/bin usr/lib/agentmachine var/tmp workspace
    ln -s usr/bin bin
    ln -s usr/bin sbin
    # machinectl looks for the machine's bus at /var/run/dbus.
    ln -s /run var/run

    for package in ${toString commands}; do
      for command in $package/bin/*; do
        [ -e usr/bin/''${command##*/} ] || ln -s $command usr/bin/
      done
    done

    # The host binds its own agentmachine-init here, so that an image outlives a new version of it.
    : > usr/lib/agentmachine/init
    chmod 555 usr/lib/agentmachine/init

    cat > etc/passwd <<'END'
    root:x:0:0:root:/root:/bin/sh
    agent:x:65532:65532:agent:/home/agent:/bin/sh
    nobody:x:65534:65534:nobody:/:/usr/bin/false
    END
    cat > etc/group <<'END'
    root:x:0:
    agent:x:65532:
    nogroup:x:65534:
    END
    cat > etc/nsswitch.conf <<'END'
    passwd: files
    group: files
    hosts: files
    END
    cat > etc/hosts <<'END'
    127.0.0.1 localhost
    END
    cat > etc/os-release <<'END'
    NAME=agentmachine
    ID=agentmachine
    PRETTY_NAME="agentmachine (opencode ${opencode.version})"
    VERSION_ID=${opencode.version}
    AGENTMACHINE_OPENCODE_VERSION=${opencode.version}
    AGENTMACHINE_PACKAGES="${toString (builtins.attrNames chosenPackages)}"
    END
    # An identity, so that `git commit` works; a repository's own or the environment's wins.
    cat > etc/gitconfig <<'END'
    [user]
        name = agent
        email = agent@localhost
    [core]
        excludesFile = /etc/gitignore
    END
    # What opencode keeps of its sessions is in the workspace; were it not ignored, opencode's own snapshots would hold
    # themselves, and `git add` would take it along.
    echo /.agentmachine/ > etc/gitignore
    sed -i 's/^    //' etc/passwd etc/group etc/nsswitch.conf etc/hosts etc/os-release etc/gitconfig
    : > etc/hostname
    : > etc/machine-id
    : > etc/resolv.conf
    # UTC, as a time zone file (RFC 8536): nspawn wants the file, programs want it valid.
    zone() { printf TZif2; head -c 34 /dev/zero; printf '\1\0\0\0\4'; head -c 6 /dev/zero; printf 'UTC\0'; }
    { zone; zone; printf '\nUTC0\n'; } > etc/localtime

    # opencode dies where it can't write this file, unless it is there. The host binds the machine's own
    # opencode.json over the empty one.
    printf '%s\n' node_modules package.json package-lock.json bun.lock .gitignore > etc/opencode/.gitignore
    printf '{}\n' > etc/opencode/opencode.json
    install -D -m 444 ${./permissions.js} etc/opencode/plugin/permissions.js

    ln -s ${cacert}/etc/ssl/certs/ca-bundle.crt etc/ssl/certs/ca-bundle.crt
    ln -s ca-bundle.crt etc/ssl/certs/ca-certificates.crt
  '';

  closure = closureInfo { rootPaths = [ skeleton ]; };
  # Nobody chose what is in this.
  commonClosure = if chosen == [ ] then closure else closureInfo { rootPaths = common ++ [ cacert ]; };

  # Every file that can be executed and every link to one, by name and without hash or version: a new version of a
  # package changes nothing here, a new command does. Fails if the image would hold what it must not.
  manifest = runCommand "${name}-manifest" { } ''
    grep -vxF ${skeleton} ${closure}/store-paths > paths
    grep -vxF ${skeleton} ${commonClosure}/store-paths > common-paths
    {
      find ${skeleton} $(cat paths) -type f -perm /111
      find ${skeleton} $(cat paths) -type l | while read -r link; do
        if [ -f "$link" ] && [ -x "$link" ]; then printf '%s -> %s\n' "$link" "$(readlink "$link")"; fi
      done
    } | sed -E -e 's,${skeleton}/,/,g' \
               -e 's,/nix/store/[a-z0-9]{32}-(([^/-]|-[^0-9/])*)(-[0-9][^/]*)?,\1,g' | LC_ALL=C sort > manifest

    executables() {
      find $(cat common-paths) -type f -o -type l | while read -r file; do
        if [ -f "$file" ] && [ -x "$file" ]; then echo "$file"; fi
      done
    }
    bad=$(executables | grep -E '/(ba|z|k|fi|c|tc)sh$|/(perl|python|ruby|node)[0-9.]*$|/(su|sudo|mount|login|systemd[^/]*|systemctl|dbus-daemon|init)$' |
      grep -vx /usr/lib/agentmachine/init || :)
    scripts=$(find $(cat common-paths) -type f -perm /111 | while read -r file; do
      case $(head -c 256 "$file" | tr -d '\0' | head -n 1) in
        '#!'*/sh | '#!'*/sh' '* | '#!'*/dash | '#!'*/dash' '*) ;;
        '#!'*) echo "$file" ;;
      esac
    done)
    setid=$(find ${skeleton} $(cat paths) -perm /6000)
    if [ "$bad$scripts$setid" ]; then
      echo "The image must not hold:" $bad $scripts $setid >&2
      exit 1
    fi
    mv manifest $out
  '';

  disallow = if disallowedRequisites == [ ] || chosen != [ ] then { } else { inherit disallowedRequisites; };

  # The Nix store holds neither owners nor all modes, so they are given here. Nothing of the time or the builder
  # gets in: the same packages give the same bytes.
  tarball = runCommand "${name}.tar" ({ inherit manifest; } // disallow) ''
    add() { ${gnutar}/bin/tar --file=$out --format=gnu --sort=name --mtime=@1 --numeric-owner "$@"; }
    set -- --owner=0 --group=0
    add --create "$@" --mode=u+w --directory=${skeleton} \
      --exclude=./home/agent --exclude=./workspace --exclude=./tmp --exclude=./var/tmp --exclude=./root .
    add --append "$@" --mode=1777 --directory=${skeleton} ./tmp ./var/tmp
    add --append "$@" --mode=700 --directory=${skeleton} ./root
    add --append --owner=65532 --group=65532 --mode=700 --directory=${skeleton} ./home/agent
    add --append --owner=65532 --group=65532 --mode=755 --directory=${skeleton} ./workspace
    grep -vxF ${skeleton} ${closure}/store-paths | sed 's,^/,./,' > paths
    add --append "$@" --directory=/ --files-from=$PWD/paths
  '';

  tree = runCommand "${name}-tree" { meta.description = "Root file system of the machines of AI coding agents"; } ''
    mkdir -p $out
    ${gnutar}/bin/tar --extract --file=${tarball} --directory=$out --no-same-owner --no-same-permissions
  '';

  # Owners, modes and times are the tarball's. tar2sqfs, for mksquashfs' threads now and then make other bytes of the same.
  squashfs = runCommand "${name}.squashfs" { } ''
    ${squashfs-tools-ng}/bin/tar2sqfs --quiet --no-skip --no-xattr --compressor zstd --comp-extra level=3 \
      --defaults uid=0,gid=0,mode=0755,mtime=1 $out < ${tarball}
  '';
in
{
  inherit closure manifest opencode squashfs tarball tree;
  packages = commands ++ [ cacert skeleton ];
}
