{
  services.agentmachine.enable = true;
  services.agentmachine.agents.x.apiProvider = "claude";
}
