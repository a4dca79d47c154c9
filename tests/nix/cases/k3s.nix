# What the earlier K3s module did: agents in the cluster of this host, beside one in a machine; and metrics. The default
# `proxy` is the host's own with another port, too.
{
  services.k3s.enable = true;
  services.agentmachine = {
    enable = true;
    k3s.replicas = 2;
    metrics.enable = true;
    metrics.listen = "127.0.0.1:9999";
    network.proxyPort = 4128;
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
