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
  bash,
  coreutils,
  e2fsprogs,
  iproute2,
  nftables,
  util-linux,
  callPackage,
  agentmachine-init ? callPackage ./init.nix { },
}:
stdenv.mkDerivation {
  pname = "agentmachine";
  version = import ./version.nix;
  src = import ./source.nix { inherit lib; };
  strictDeps = true;
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
  # The tests want PID 1's sources in the same build, and a host: the repository's ./lab runs them.
  mesonFlags = [
    "-Dinit=false"
    "-Dtests=false"
    "-Dwerror=false"
    "-Dsquid=${squid}/bin/squid"
    "-Dunitdir=${placeholder "out"}/lib/systemd/system"
    "-Dsysusersdir=${placeholder "out"}/lib/sysusers.d"
    "-Dtmpfilesdir=${placeholder "out"}/lib/tmpfiles.d"
  ];
  # Units run it with little else in PATH; tests/nix/check compares this with what the sources run. Nix itself, for
  # `image build`, is the host's.
  postInstall = ''
    install -D -m 555 ${agentmachine-init}/libexec/agentmachine/agentmachine-init -t $out/libexec/agentmachine
    wrapProgram $out/bin/agentmachine --prefix PATH : ${
      lib.makeBinPath [
        bash
        coreutils
        e2fsprogs
        iproute2
        nftables
        openssl
        systemd
        util-linux
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
