# An agent for a cluster whose server is another host.
{
  services.k3s.enable = true;
  services.k3s.role = "agent";
  services.agentmachine = {
    enable = true;
    agents.ada.engine = "k3s";
  };
}
