# An agent for a cluster that isn't there.
{
  services.agentmachine = {
    enable = true;
    agents.ada.engine = "k3s";
  };
}
