# Other ports and directories; the proxy stays the host's own.
{
  services.agentmachine = {
    enable = true;
    network.proxyPort = 8888;
    broker.port = 8889;
    cardsDir = "/srv/cards";
    agents.ada = { };
    # The port of the earlier modules' cards means the same.
    agents.old.proxy = "http://127.0.0.1:3128";
  };
}
