# A NixOS host in a VM, with one declared agent and one made by hand. For those with a binary cache:
# nix build .#checks.x86_64-linux.nixos
{ module }:
{
  name = "agentmachine";

  nodes.machine = { pkgs, ... }: {
    imports = [ module ];
    virtualisation.memorySize = 4096;
    virtualisation.diskSize = 8192;
    services.agentmachine = {
      enable = true;
      # The store of such a VM is an overlay, whose users can't be mapped: so machines run from a copy.
      image.rootfs = (import ./image.nix { inherit pkgs; }).tarball;
      agents.declared = {
        command = [
          "sleep"
          "infinity"
        ];
        resourceLimits.memoryMb = 256;
        autoStart = true;
      };
    };
  };

  testScript = ''
    machine.wait_for_unit("agentmachine-declared.service")

    with subtest("a declared agent runs, with its limits"):
        machine.wait_for_unit("systemd-nspawn@agent-declared.service")
        machine.succeed("machinectl show agent-declared")
        assert "268435456" in machine.succeed("systemctl show -P MemoryMax systemd-nspawn@agent-declared")

    with subtest("a shell, as the agent"):
        assert "65532" in machine.succeed("machinectl shell agent@agent-declared /bin/sh -c 'id -u'")

    with subtest("a card made by hand, and its TTL"):
        machine.succeed(
            """echo '{ "agent_id": "ad-hoc", "workspace": "/mnt/agents/ad-hoc", "ttl_seconds": 20,"""
            """ "command": ["sleep", "infinity"] }' >/etc/opencode-agents/ad-hoc.json"""
        )
        machine.succeed("agentmachine start ad-hoc")
        machine.succeed("agentmachine exec ad-hoc -- touch /workspace/made")
        machine.succeed("test $(stat -c %U /mnt/agents/ad-hoc/made) = opencode-agent")

    with subtest("nothing but the workspace can be written, nothing but the proxy reached"):
        machine.fail("agentmachine exec declared -- touch /etc/made")
        machine.fail("agentmachine exec declared -- touch /usr/bin/made")
        machine.fail("agentmachine exec declared -- ls /nix/var")
        machine.succeed("agentmachine exec declared -- curl -s --max-time 5 http://10.213.0.1:3128/ -o /dev/null")
        machine.fail("agentmachine exec declared -- curl -s --noproxy '*' --max-time 5 http://10.213.0.1:22/")
        machine.fail("agentmachine exec declared -- curl -s --max-time 5 https://example.org/")

    with subtest("the TTL ends it"):
        machine.wait_until_fails("systemctl is-active systemd-nspawn@agent-ad-hoc")
        assert "expired" in machine.succeed("agentmachine ls")

    with subtest("what is no longer declared goes, its workspace and other machines stay"):
        machine.succeed(
            "mkdir /tmp/none;"
            "systemctl cat agentmachine-declared | sed -n 's,^ExecStart=\\(.*\\) /etc/.*,\\1 /tmp/none,p' >/tmp/sync;"
            "STATE_DIRECTORY=/var/lib/agentmachine/declared PATH=$PATH sh /tmp/sync"
        )
        machine.fail("agentmachine show declared")
        machine.succeed("test -d /mnt/agents/declared")
        machine.succeed("agentmachine show ad-hoc")
  '';
}
