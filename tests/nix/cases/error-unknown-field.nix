{
  services.agentmachine.enable = true;
  services.agentmachine.agents.x.memoryMb = 5;
}
