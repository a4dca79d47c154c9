# agentmachine. Its PID 1 for machines is built apart, static (./init.nix), and put in its place here.
{
  lib,
  stdenv,
  meson,
  ninja,
  pkg-config,
  makeBinaryWrapper,
  python3Packages,
  systemd,
  sdbus-cpp_2,
  nlohmann_json,
  tomlplusplus,
  cli11,
  libarchive,
  openssl,
  spdlog,
  prometheus-cpp,
  squid,
  yaml-cpp,
  coreutils,
  iproute2,
  nftables,
  callPackage,
  agentmachine-init ? callPackage ./init.nix { },
}:
stdenv.mkDerivation {
  pname = "agentmachine";
  version = import ./version.nix;
  src = import ./source.nix { inherit lib; };
  nativeBuildInputs = [
    meson
    ninja
    pkg-config
    makeBinaryWrapper
    python3Packages.docutils
  ];
  buildInputs = [
    systemd
    sdbus-cpp_2
    nlohmann_json
    tomlplusplus
    cli11
    libarchive
    openssl
    spdlog
    prometheus-cpp
    yaml-cpp
  ];
  mesonFlags = [
    "-Dinit=false"
    "-Dtests=false"
    "-Dwerror=false"
    "-Dsquid=${squid}/bin/squid"
    "-Dunitdir=${placeholder "out"}/lib/systemd/system"
    "-Dsysusersdir=${placeholder "out"}/lib/sysusers.d"
    "-Dtmpfilesdir=${placeholder "out"}/lib/tmpfiles.d"
  ];
  # Units run it with nothing else in PATH. Nix itself, for `image build`, is the host's.
  postInstall = ''
    install -D -m 555 ${agentmachine-init}/libexec/agentmachine/agentmachine-init -t $out/libexec/agentmachine
    wrapProgram $out/bin/agentmachine --prefix PATH : ${
      lib.makeBinPath [
        coreutils
        iproute2
        nftables
        openssl
        systemd
      ]
    }
  '';
  meta = {
    description = "Machines for AI coding agents, on systemd-nspawn";
    license = lib.licenses.asl20;
    mainProgram = "agentmachine";
    platforms = lib.platforms.linux;
  };
}
