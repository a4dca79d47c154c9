# The earlier module's static service, an agent with many fields beside it, one with the same packages, which shares its
# image; another proxy, another network.
{
  services.agentmachine = {
    enable = true;
    proxy = "http://10.100.1.1:3128";
    network.address = "10.99.0.1/24";
    network.bridge = "robots0";
    settings.private_hosts = [ "git.corp.example:443" ];
    agents.static = {
      workspace = "/mnt/agent1";
      apiKeyFile = "/run/secrets/anthropic-api-key";
      autoStart = true;
      proxy = "http://127.0.0.1:3128";
      memoryDenyWriteExecute = true;
      resourceLimits.cpuQuotaPercent = 200;
    };
    agents.agent-full = {
      user = "alice";
      apiProvider = "openai";
      apiKeyFile = "/run/secrets/openai-api-key";
      apiKeyDelivery = "credential";
      allowedHosts = [
        "docs.example.org"
        ".pkgs.example.org:80,443"
      ];
      resourceLimits = {
        memoryMb = 2048;
        maxProcesses = 200;
      };
      ttlSeconds = 3600;
      packages = [
        "ripgrep"
        "python3Packages.docutils"
      ];
      environment.LANG = "C.UTF-8";
      command = [
        "opencode"
        "serve"
      ];
      restart = "always";
      restartIfChanged = false;
    };
    agents.same-packages.packages = [
      "python3Packages.docutils"
      "ripgrep"
      "ripgrep"
    ];
  };
  users.users.alice = {
    isNormalUser = true;
    group = "users";
  };
}
