# The options of NixOS that nix/module.nix sets or asks, as far as it does, with the types they have there.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
      description = "of NixOS";
    };
  given =
    type:
    mkOption {
      inherit type;
      description = "of NixOS";
    };
  setOf = options: option (types.attrsOf (types.submodule { inherit options; })) { };
  strings = option (types.listOf types.str) [ ];
  unitSection = option (types.attrsOf (
    types.oneOf [
      types.bool
      types.int
      types.str
      (types.listOf types.str)
    ]
  )) { };
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    nix.package = option types.package (derivation {
      name = "nix";
      system = "x86_64-linux";
      builder = "none";
    });
    environment.systemPackages = option (types.listOf types.package) [ ];
    environment.etc = setOf {
      text = option (types.nullOr types.str) null;
      source = option (types.nullOr types.path) null;
      mode = option types.str "symlink";
    };
    systemd.packages = option (types.listOf types.package) [ ];
    systemd.services = setOf (
      lib.genAttrs [ "description" "script" ] (_: option types.str "")
      // lib.genAttrs [ "after" "wants" "requires" "wantedBy" "documentation" ] (_: strings)
      // {
        enable = option types.bool true;
        overrideStrategy = option (types.enum [ "asDropinIfExists" "asDropin" ]) "asDropinIfExists";
        restartTriggers = option (types.listOf types.anything) [ ];
        path = option (types.listOf types.package) [ ];
        environment = option (types.attrsOf types.str) { };
        serviceConfig = unitSection;
        unitConfig = unitSection;
        reloadIfChanged = option types.bool false;
        restartIfChanged = option types.bool true;
      }
    );
    systemd.timers = setOf { wantedBy = strings; };
    systemd.sockets = setOf { listenStreams = strings; wantedBy = strings; };
    systemd.tmpfiles.packages = option (types.listOf types.package) [ ];
    systemd.tmpfiles.settings = option (types.attrsOf (
      types.attrsOf (types.attrsOf (types.submodule { options = lib.genAttrs [ "mode" "user" "group" ] (_: given types.str); }))
    )) { };
    users.users = setOf {
      isSystemUser = option types.bool false;
      isNormalUser = option types.bool false;
      group = option types.str "";
      home = option types.path "/var/empty";
      description = option types.str "";
    };
    users.groups = setOf { };
    networking.firewall.interfaces = setOf { allowedTCPPorts = option (types.listOf types.port) [ ]; };
    networking.dhcpcd.denyInterfaces = strings;
    networking.networkmanager.unmanaged = strings;
    services.k3s.enable = option types.bool false;
    services.k3s.role = option (types.enum [ "server" "agent" ]) "server";
    services.k3s.extraFlags = option (types.oneOf [ types.str (types.listOf types.str) ]) [ ];
    services.k3s.manifests = setOf { source = given types.path; };
  };
}
