{
  services.agentmachine.enable = true;
  services.agentmachine.agents.x.ttlSeconds = 99999999;
}
