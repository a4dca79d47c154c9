{ services.agentmachine.enable = true; }
