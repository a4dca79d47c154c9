# shellcheck shell=bash disable=SC2154
# Sourced by ./lab on the machine outside: makes the Debian 13 build root and enters it. Changes nothing
# outside but two packages and the cache directory.

die() { echo "lab: $*" >&2; exit 125; }
say() { if [[ -t 2 || $verb != run ]]; then echo "lab: $*" >&2; fi; }

# makeRoot: sets $root to the tree for the present package list, which is made if it isn't there.
makeRoot() {
  root=$cache/root-$(cat "$here"/{build.packages,make-build-root} | sha256sum | cut -c1-12)
  [[ ! -d $root ]] || return 0
  exec 8>"$cache/root.lock"; flock 8
  [[ ! -d $root ]] || return 0
  if ! command -v mmdebstrap >/dev/null || [[ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
    say "installing mmdebstrap"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y \
        mmdebstrap debian-archive-keyring; } >"$cache/root.log" 2>&1 ||
      { cat "$cache/root.log" >&2; die "apt-get could not install mmdebstrap and debian-archive-keyring"; }
  fi
  say "making the build root (a minute or two)"
  rm -rf --one-file-system "$root.new"
  "$here/make-build-root" "$root.new" >"$cache/root.log" 2>&1 ||
    { cat "$cache/root.log" >&2; die "the build root could not be made"; }
  mv "$root.new" "$root"
  exec 8>&-
}

# inRoot CMD...: becomes CMD in the build root, in a mount namespace of its own. The checkout is /src, the cache
# /cache. A pivot, not a chroot: the kernel refuses user namespaces, thus nix's sandbox, to a chroot.
inRoot() {
  local keep=() name
  for name in CI TERM AGENTMACHINE_TEST_ACCEPT LAB_ACCEL; do
    [[ -z ${!name:-} ]] || keep+=("$name=${!name}")
  done
  # opencode comes from npm: its registry is whatever npm is configured with out here.
  name=$(npm config get registry 2>/dev/null) && keep+=("npm_config_registry=$name")
  mkdir -p "$cache/nix"
  # shellcheck disable=SC2016
  exec unshare --mount --propagation private /bin/bash -euc '
    root=$1 src=$2 cache=$3 crds=$4; shift 4
    mount --bind "$root" "$root"
    for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
    mount --bind "$src" "$root/src"
    mount --bind "$cache" "$root/cache"
    mount --bind "$cache/nix" "$root/nix"
    [[ ! -d $crds ]] || mount --bind "$crds" "$root/crds"
    for f in resolv.conf hosts ssl/certs/ca-certificates.crt; do
      [[ ! -e /etc/$f ]] || { touch "$root/etc/$f"; mount --bind "$(readlink -f "/etc/$f")" "$root/etc/$f"; }
    done
    cd "$root"
    pivot_root . .
    umount -l .
    cd /src
    exec "$@"' sh "$root" "$src" "$cache" "$(readlink -m "${LAB_CRDS:-$src/../shared/crds}")" \
    /usr/bin/env -i HOME=/root LANG=C.UTF-8 NIX_SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    CCACHE_DIR=/cache/ccache LAB_STATE="/cache/checkouts/$key" "${keep[@]}" "$@"
}
