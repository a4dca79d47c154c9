# An override that would be a whole unit.
{
  services.agentmachine.enable = true;
  systemd.services."systemd-nspawn@agent-ada".serviceConfig.CPUQuota = "50%";
}
