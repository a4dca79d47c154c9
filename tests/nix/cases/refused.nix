# Everything that is refused without a word from the program.
{
  services.k3s.enable = true;
  services.agentmachine = {
    enable = true;
    network.address = "10.32.0.1/11";
    broker.port = 3128;
    agents.in-store.apiKeyFile = "/nix/store/00000000000000000000000000000000-key";
    agents.of-root.user = "root";
    agents.of-nobody.user = "bob";
    agents.Upper_case = { };
    agents.twice = { };
    agents.agent-twice = { };
    agents.from-file = {
      card = ../cards/from-file.json;
      ttlSeconds = 5;
    };
  };
  users.users.root.group = "root";
}
