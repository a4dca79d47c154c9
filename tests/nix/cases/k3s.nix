# The seed's K3s module: agents in the cluster of this host, beside one in a machine; and metrics.
{
  services.k3s.enable = true;
  services.agentmachine = {
    enable = true;
    k3s.replicas = 2;
    metrics.enable = true;
    agents.agent1 = {
      engine = "k3s";
      workspace = "/mnt/agent1";
    };
    agents.from-file = {
      engine = "k3s";
      card = ../cards/from-file.toml;
    };
    agents.here.autoStart = true;
  };
}
