{
  services.agentmachine.enable = true;
  services.agentmachine.agents.x.apiKeyFile = ./wrong-type.nix;
}
