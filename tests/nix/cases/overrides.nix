# More limits for one machine, as doc/nixos.md has it, and an image that is a file of the configuration: any will do here.
{
  services.agentmachine.enable = true;
  services.agentmachine.image.rootfs = ./overrides.nix;
  systemd.services."systemd-nspawn@agent-ada" = {
    overrideStrategy = "asDropin";
    serviceConfig.CPUQuota = "50%";
  };
}
