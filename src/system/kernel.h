// What this host's kernel can do for machines, found by trying it. Changes nothing that outlives the call.
#pragma once
#include <set>
#include <string>

namespace agentmachine {

struct KernelFacts {
  bool cgroup2 = false;               ///< /sys/fs/cgroup is a cgroup v2 hierarchy
  std::set<std::string> controllers;  ///< of its root
  bool cgroupBpf = false;  ///< programs that filter the packets of a cgroup: systemd's IPAddressDeny=
  bool seccomp = false;    ///< filters of system calls
  bool userNamespaces = false;
  bool veth = false, bridge = false;  ///< network interfaces of these kinds can be made
  bool bandwidth = false;             ///< what an interface sends can be limited: tc's tbf
  bool socketDestroy = false;         ///< connections of others can be cut
  bool loopDevices = false;           ///< a file can be mounted
  bool clockSynchronized = false;
};

KernelFacts kernelFacts();

/// Some of them by themselves: what takes no more than a few system calls.
bool hasCgroupBpf();
bool hasSeccomp();
bool hasUserNamespaces();

}  // namespace agentmachine
