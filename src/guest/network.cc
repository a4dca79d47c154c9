#include "guest/network.h"

#include <cerrno>
#include <memory>

#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include "util/error.h"

namespace agentmachine {

Fd watchNetwork() {
  Fd watch{socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE)};
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR;
  if (!watch || bind(watch.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
    throw errnoError("watch the network");
  return watch;
}

void drainNetwork(const Fd& watch) {
  char message[8192];
  // ENOBUFS: messages were lost, others may follow.
  while (recv(watch.get(), message, sizeof message, 0) >= 0 || errno == ENOBUFS || errno == EINTR) {
  }
}

bool isInterfaceReady(const std::string& name) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) < 0) throw errnoError("list network interfaces");
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  constexpr unsigned wanted = IFF_UP | IFF_RUNNING;
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next)
    if (name == entry->ifa_name && entry->ifa_addr && entry->ifa_addr->sa_family == AF_INET &&
        (entry->ifa_flags & wanted) == wanted)
      return true;
  return false;
}

}  // namespace agentmachine
