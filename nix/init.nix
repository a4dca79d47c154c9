# agentmachine-init, PID 1 of every machine: static, because images hold no library of ours.
{
  lib,
  stdenv,
  meson,
  ninja,
  pkg-config,
  glibc,
  dbus,
  libseccomp,
}:
let
  # Without its daemon's dependencies, and with the archive that nixpkgs leaves out.
  libdbus =
    (dbus.override {
      enableSystemd = false;
      x11Support = false;
    }).overrideAttrs
      (old: {
        mesonFlags = old.mesonFlags ++ [ "-Ddefault_library=both" ];
      });
  libseccompStatic = libseccomp.overrideAttrs (_: { dontDisableStatic = true; });
in
stdenv.mkDerivation {
  pname = "agentmachine-init";
  version = import ./version.nix;
  src = import ./source.nix { inherit lib; };
  strictDeps = true;
  nativeBuildInputs = [
    meson
    ninja
    pkg-config
  ];
  buildInputs = [
    glibc.static
    libdbus
    libseccompStatic
  ];
  mesonFlags = [
    "-Dprogram=false"
    "-Dman=false"
    "-Dtests=false"
    "-Dwerror=false"
  ];
  meta = {
    description = "PID 1 of agentmachine's machines";
    license = lib.licenses.asl20;
    platforms = lib.platforms.linux;
  };
}
