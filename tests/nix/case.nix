# What nix/module.nix makes of a configuration, as text for a golden file. `lib` is the stand-in's or nixpkgs'. With
# nixpkgs' `nixos` beside its lib, units and tmpfiles are options of NixOS' own modules, and the text is what these write.
{
  lib,
  configuration, # a file
  nixos ? null,
}:
let
  pkgs = import ./pkgs.nix { inherit lib; };
  agentmachine = pkgs.stdenv.mkDerivation { pname = "agentmachine"; version = "0"; };
  standIn = import ./nixos.nix { inherit lib; };
  # What else NixOS' modules set is no option here. That ours sets nothing unknown is seen with the stand-in.
  real = [
    { options = removeAttrs standIn.options [ "assertions" "systemd" ]; }
    { options.boot.initrd.systemd.storePaths = lib.mkOption { default = [ ]; }; }
    (nixos + "/modules/misc/assertions.nix")
    (nixos + "/modules/system/boot/systemd.nix")
    (nixos + "/modules/system/boot/systemd/nspawn.nix")
    (nixos + "/modules/system/boot/systemd/tmpfiles.nix")
    (
      { config, ... }:
      {
        _module.check = false;
        _module.args.utils = import (nixos + "/lib/utils.nix") { inherit config lib pkgs; };
      }
    )
  ];
  evaluated = lib.evalModules {
    modules = (if nixos == null then [ standIn ] else real) ++ [
      ../../nix/module.nix
      { services.agentmachine.package = lib.mkDefault agentmachine; }
      configuration
    ];
    specialArgs = { inherit pkgs; };
  };
  inherit (evaluated) config;
  failed = builtins.filter (assertion: !assertion.assertion) config.assertions;
  # /nix/store/…-name → <name>
  nameOnly =
    text:
    lib.concatStrings (
      map (part: if builtins.isString part then part else "<${builtins.head part}>") (
        builtins.split "${builtins.storeDir}/[a-z0-9]{32}-([A-Za-z0-9+._?=-]+)" (builtins.unsafeDiscardStringContext text)
      )
    );
  show = value: if builtins.isString value then value else builtins.toJSON value;
  lines = set: lib.concatStrings (lib.mapAttrsToList (name: value: "${name}: ${show value}\n") set);
  # Without what nobody set: all are enabled.
  said = lib.filterAttrs (name: value: name != "enable" && !builtins.elem value [ "" [ ] { } "asDropinIfExists" "/var/empty" ]);
  section = title: text: "== ${title}\n${text}";
  etc = lib.concatStrings (
    lib.mapAttrsToList (name: file: section "/etc/${name}" (if file.text != null then file.text else file.source.text or "${file.source}\n")) config.environment.etc
  );
  services = lib.concatStrings (
    lib.mapAttrsToList (
      name: service:
      section "${name}.service" (lines (said service))
    ) config.systemd.services
  );
  tmpfiles = builtins.filter (package: package.name == "agentmachine-nixos.conf") config.systemd.tmpfiles.packages;
  ours = lib.filterAttrs (name: _: lib.hasPrefix "agentmachine" name || lib.hasPrefix "systemd-nspawn@" name);
in
nameOnly (
  if failed != [ ] then
    lib.concatMapStrings (assertion: "refused: ${assertion.message}\n") failed
  else if nixos != null then
    lib.concatMapStrings (warning: "warning: ${warning}\n") config.warnings
    + lib.concatStrings (
      lib.mapAttrsToList (
        name: unit: section "${name}, ${unit.overrideStrategy}" unit.text
      ) (ours config.systemd.units)
    )
    + lib.concatMapStrings (package: section package.name package.text) tmpfiles
  else
    etc
    + services
    + lib.concatStrings (lib.mapAttrsToList (name: timer: section "${name}.timer" (lines timer)) config.systemd.timers)
    + lib.concatStrings (lib.mapAttrsToList (name: socket: section "${name}.socket" (lines socket)) config.systemd.sockets)
    + section "tmpfiles" (
      lib.concatStrings (
        lib.mapAttrsToList (path: { d }: "d '${path}' ${d.mode} ${d.user} ${d.group}\n") config.systemd.tmpfiles.settings.agentmachine-nixos
      )
    )
    + section "users" (lines (lib.mapAttrs (_: user: lib.filterAttrs (_: value: value != false) (said user)) config.users.users))
    + lib.concatStrings (
      lib.mapAttrsToList (name: file: section "manifest ${name} of K3s" file.source.text) config.services.k3s.manifests
    )
    + section "firewall" (lines config.networking.firewall.interfaces)
    + section "other networks" "${show config.networking.dhcpcd.denyInterfaces}\n${show config.networking.networkmanager.unmanaged}\n"
)
