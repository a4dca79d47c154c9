# The options of NixOS that nix/module.nix sets or asks, as far as it does.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
      description = "of NixOS";
    };
  anything = types.attrsOf types.anything;
  service = types.submodule {
    options =
      lib.genAttrs [ "description" "overrideStrategy" "script" ] (_: option types.str "")
      // lib.genAttrs [ "after" "wants" "requires" "wantedBy" "documentation" "restartTriggers" ] (_: option (types.listOf types.anything) [ ])
      // {
        path = option (types.listOf types.package) [ ];
        environment = option (types.attrsOf types.str) { };
        serviceConfig = option anything { };
        unitConfig = option anything { };
        reloadIfChanged = option types.bool false;
        restartIfChanged = option types.bool true;
      };
  };
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
    environment.etc = option (types.attrsOf anything) { };
    systemd.packages = option (types.listOf types.package) [ ];
    systemd.services = option (types.attrsOf service) { };
    systemd.sockets = option (types.attrsOf anything) { };
    systemd.timers = option (types.attrsOf anything) { };
    systemd.tmpfiles.packages = option (types.listOf types.package) [ ];
    systemd.tmpfiles.rules = option (types.listOf types.str) [ ];
    users.users = option (types.attrsOf anything) { };
    users.groups = option (types.attrsOf anything) { };
    networking.firewall.interfaces = option (types.attrsOf anything) { };
    networking.dhcpcd.denyInterfaces = option (types.listOf types.str) [ ];
    networking.networkmanager.unmanaged = option (types.listOf types.str) [ ];
    services.k3s.enable = option types.bool false;
    services.k3s.manifests = option (types.attrsOf anything) { };
  };
}
