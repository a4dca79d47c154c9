# Cards as files, whose workspaces, packages and keys count as those of options do; and one that is built.
{ pkgs, ... }:
{
  services.agentmachine = {
    enable = true;
    settings.packages = [ "jq" ];
    agents.from-file = {
      card = ../cards/from-file.json;
      user = "alice";
    };
    agents.built.card = pkgs.writeText "built.json" ''
      {"agent_id":"built","workspace":"/mnt/built"}
    '';
  };
  users.users.alice = {
    isNormalUser = true;
    group = "users";
  };
}
