# Cards in files that can't be, as far as that is seen before they are built.
{ pkgs, ... }:
{
  services.agentmachine = {
    enable = true;
    agents.wrong.card = ../cards/wrong.json;
    agents.on-the-host.card = "/etc/on-the-host.json";
    agents.built = {
      card = pkgs.writeText "built.json" "{}";
      user = "alice";
    };
  };
  users.users.alice = {
    isNormalUser = true;
    group = "users";
  };
}
