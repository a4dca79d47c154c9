// libFuzzer: no client, whatever it sends, crashes the bus of a machine's PID 1 or makes it start something.
// The first byte of an input says how the rest is sent: raw, raw after authentication, or as the arguments of
// a call.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "guest/bus.h"
#include "require.h"

using namespace agentmachine;
using namespace std::literals;

namespace {

/// One bus for all inputs. Its sessions are limited to none: everything but the fork is run.
struct Target {
  Target() {
    char pattern[] = "/tmp/guest_bus_fuzz.XXXXXX";
    require(mkdtemp(pattern));
    path = std::string(pattern) + "/bus";
    bus.emplace(path, Bus::Machine{{"agent", 65532, 65532, "/", "/bin/sh"}, "/", {}}, sessions);
  }
  ~Target() {
    unlink(path.c_str());
    rmdir(path.substr(0, path.rfind('/')).c_str());
  }

  /// Lets the bus work until it has nothing to do.
  void run() {
    for (;;) {
      std::vector<pollfd> polls;
      bus->prepare(polls);
      if (poll(polls.data(), polls.size(), 0) <= 0) return;
      bus->handle(polls);
    }
  }

  std::string path;
  Sessions sessions{0};
  std::optional<Bus> bus;
};

void align(std::string& bytes, std::size_t to) {
  bytes.resize((bytes.size() + to - 1) / to * to);
}
void put32(std::string& bytes, std::uint32_t number) {
  bytes.append(reinterpret_cast<char*>(&number), 4);
}

/// A little-endian call with `body`, which need not fit `signature` (D-Bus Specification, "Message Format").
std::string call(const char* interface, const char* member, const char* signature, const std::string& body,
                 std::uint32_t descriptors) {
  std::string fields;
  const auto field = [&](char code, char type, std::string_view text) {
    align(fields, 8);
    fields += {code, 1, type, 0};
    if (type == 'g')
      fields += static_cast<char>(text.size());
    else
      put32(fields, static_cast<std::uint32_t>(text.size()));
    fields += text;
    fields += '\0';
  };
  field(1, 'o', "/");
  field(2, 's', interface);
  field(3, 's', member);
  field(8, 'g', signature);
  align(fields, 8);
  fields += {9, 1, 'u', 0};
  put32(fields, descriptors);
  std::string message = {'l', 1, 0, 1};
  put32(message, static_cast<std::uint32_t>(body.size()));
  put32(message, 1);
  put32(message, static_cast<std::uint32_t>(fields.size()));
  message += fields;
  align(message, 8);
  return message + body;
}

/// Sends `bytes`, with three descriptors along with the first of them.
void sendTo(int client, const std::string& bytes, bool descriptors) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptors) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(3 * sizeof(int));
    const int fds[3] = {0, 1, 2};
    memcpy(CMSG_DATA(header), fds, sizeof fds);
  }
  sendmsg(client, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target target;
  if (size == 0 || size > 64 * 1024) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Fd client{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un address{AF_UNIX, {}};
  target.path.copy(address.sun_path, sizeof address.sun_path - 1);
  require(connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);

  const std::string authentication = "\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"s;
  const bool isCall = data[0] % 4 >= 2;
  if (data[0] % 4 >= 1) sendTo(client.get(), authentication, false);
  target.run();
  if (data[0] % 4 == 2)
    sendTo(client.get(),
           call("org.freedesktop.systemd1.Manager", "StartTransientUnit", TransientUnit::signature, rest, 3),
           true);
  else if (data[0] % 4 == 3)
    sendTo(client.get(), call("org.agentmachine.Init1", "Exec", execSignature, rest, 3), true);
  else
    sendTo(client.get(), rest, false);
  target.run();

  char answer[4096];
  std::string heard;
  ssize_t n;
  while ((n = recv(client.get(), answer, sizeof answer, MSG_DONTWAIT)) > 0)
    heard.append(answer, static_cast<std::size_t>(n));
  // A call that libdbus let through is always answered.
  if (isCall) require(n == 0 || heard.contains("org.freedesktop.DBus.Error."));
  shutdown(client.get(), SHUT_RDWR);
  target.run();
  return 0;
}
