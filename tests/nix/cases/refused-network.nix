# An address in a network that K3s was given.
{
  services.k3s.enable = true;
  services.k3s.extraFlags = [
    "--disable traefik"
    "--service-cidr=10.208.0.0/12"
  ];
  services.agentmachine.enable = true;
}
