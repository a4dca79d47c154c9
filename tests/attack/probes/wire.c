/* wire: what an attacker without tools brings along to reach the network. Static, so that it runs in any
 * image.
 *
 *   wire tcp ADDRESS PORT                 connects and carries standard input and output
 *   wire udp ADDRESS PORT TEXT            sends a datagram; prints what comes back
 *   wire udp-lite ADDRESS PORT TEXT       the same by that protocol
 *   wire udp-from SOURCE ADDRESS PORT TEXT  a datagram from an address that isn't the machine's (IP_TRANSPARENT)
 *   wire hold ADDRESS PORT N TEXT         opens N connections, says TEXT on each, prints how many worked
 *   wire ping ADDRESS                     an echo request, by whichever socket there is; prints "reply"
 *   wire raw ADDRESS PROTOCOL TEXT        an IP packet of any protocol
 *   wire frame INTERFACE HEX              an Ethernet frame as given
 *   wire listen INTERFACE MS HEX          whether a frame with these bytes passes by
 *   wire relay PORT ADDRESS PORT          listens, and carries what comes there; prints "ready"
 *   wire vsock CID PORT                   connects past the network; prints what it is told
 *   wire abstract NAME                    connects to an abstract unix socket; prints what it is told
 *   wire -w N …                           does so with N times the patience
 *   wire serve SOCKET                     does all that for whoever connects there, until standard input ends:
 *                                         a message of the words, each ended by NUL, with descriptors 0, 1, 2
 *
 * Exit status 0: it worked, as far as one can see from here; 1: it didn't, and standard error says why.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int patienceMs = 1500, answerMs = 700;

static void die(const char* what) {
  fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int must(int result, const char* what) {
  if (result < 0) die(what);
  return result;
}

/* "192.0.2.1", "fe80::1%host0": a static program has no name service. */
static socklen_t address(const char* host, const char* port, struct sockaddr_storage* into) {
  struct sockaddr_in* four = (struct sockaddr_in*)into;
  struct sockaddr_in6* six = (struct sockaddr_in6*)into;
  char plain[64];
  snprintf(plain, sizeof plain, "%.*s", (int)strcspn(host, "%"), host);
  memset(into, 0, sizeof *into);
  if (inet_pton(AF_INET, plain, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons((unsigned short)atoi(port));
    return sizeof *four;
  }
  errno = EINVAL;
  if (inet_pton(AF_INET6, plain, &six->sin6_addr) != 1) die(host);
  six->sin6_family = AF_INET6;
  six->sin6_port = htons((unsigned short)atoi(port));
  if (strchr(host, '%')) six->sin6_scope_id = if_nametoindex(strchr(host, '%') + 1);
  return sizeof *six;
}

static void waitFor(int fd, short events, int ms, const char* what) {
  struct pollfd ready = {.fd = fd, .events = events};
  const int count = must(poll(&ready, 1, ms), "poll");
  if (count == 0) {
    errno = ETIMEDOUT;
    die(what);
  }
}

static int connected(int type, int protocol, const struct sockaddr* to, socklen_t length) {
  const int fd = must(socket(to->sa_family, type | SOCK_NONBLOCK, protocol), "socket");
  if (connect(fd, to, length) < 0) {
    if (errno != EINPROGRESS) die("connect");
    waitFor(fd, POLLOUT, patienceMs, "connect");
    socklen_t size = sizeof errno;
    int error = 0;
    must(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size), "getsockopt");
    errno = error;
    if (error) die("connect");
  }
  return fd;
}

static void writeAll(int fd, const char* data, ssize_t size) {
  while (size > 0) {
    ssize_t written = write(fd, data, (size_t)size);
    if (written < 0 && errno == EAGAIN) {
      waitFor(fd, POLLOUT, 30000, "write");
      continue;
    }
    must((int)written, "write");
    data += written;
    size -= written;
  }
}

static void carry(int fd) {
  struct pollfd ends[] = {{.fd = 0, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
  char data[16384];
  for (;;) {
    must(poll(ends, 2, -1), "poll");
    for (int i = 0; i < 2; ++i) {
      if (!ends[i].revents) continue;
      const ssize_t size = read(ends[i].fd, data, sizeof data);
      if (size > 0) {
        writeAll(i == 0 ? fd : 1, data, size);
      } else if (i == 1) {
        exit(0);
      } else {
        shutdown(fd, SHUT_WR);
        ends[0].fd = -1;
      }
    }
  }
}

static void relay(const char* port, const struct sockaddr* to, socklen_t length) {
  const struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
  const int listener = must(socket(AF_INET, SOCK_STREAM, 0), "socket"), on = 1;
  must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
  must(bind(listener, (const struct sockaddr*)&at, sizeof at), "bind");
  must(listen(listener, 8), "listen");
  puts("ready");
  fflush(stdout);
  signal(SIGCHLD, SIG_IGN);
  for (;;) {
    const int connection = must(accept(listener, NULL, NULL), "accept");
    if (fork() == 0) {
      dup2(connection, 0);
      dup2(connection, 1);
      carry(connected(SOCK_STREAM, 0, to, length));
    }
    close(connection);
  }
}

/* Prints what arrives, if anything does in time. */
static int answer(int fd) {
  char data[4096];
  waitFor(fd, POLLIN, answerMs, "answer");
  const ssize_t size = read(fd, data, sizeof data);
  must((int)size, "read");
  writeAll(1, data, size);
  return 0;
}

static size_t unhex(const char* hex, unsigned char* into, size_t most) {
  size_t size = 0;
  for (; hex[0] && hex[1] && size < most; hex += 2) {
    const char octet[] = {hex[0], hex[1], 0};
    into[size++] = (unsigned char)strtoul(octet, NULL, 16);
  }
  return size;
}

static int packetSocket(const char* interface) {
  const int fd = must(socket(AF_PACKET, SOCK_RAW, htons(3)), "socket");
  struct sockaddr_ll at = {
      .sll_family = AF_PACKET, .sll_protocol = htons(3), .sll_ifindex = (int)if_nametoindex(interface)};
  must(bind(fd, (struct sockaddr*)&at, sizeof at), "bind");
  return fd;
}

static int ping(const char* host) {
  struct sockaddr_storage to;
  const socklen_t length = address(host, "0", &to);
  const int six = to.ss_family == AF_INET6, protocol = six ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
  int fd = socket(to.ss_family, SOCK_DGRAM, protocol);
  if (fd < 0) fd = must(socket(to.ss_family, SOCK_RAW, protocol), "socket");
  unsigned char echo[16] = {six ? 128 : 8, 0, 0, 0, 0, 1, 0, 1};
  unsigned sum = (unsigned)echo[0] << 8;
  sum += 2;
  if (!six) {
    echo[2] = (unsigned char)(~sum >> 8);
    echo[3] = (unsigned char)~sum;
  }
  must((int)sendto(fd, echo, sizeof echo, 0, (struct sockaddr*)&to, length), "send");
  for (;;) {
    unsigned char data[256];
    waitFor(fd, POLLIN, answerMs, "reply");
    const ssize_t size = recv(fd, data, sizeof data, 0);
    const ssize_t at = size > 20 && data[0] >> 4 == 4 ? (data[0] & 15) * 4 : 0;
    if (size > at && data[at] == (six ? 129 : 0)) break;
  }
  puts("reply");
  return 0;
}

/* Opens connections one after the other. With a text they are all kept, at a pace that only a limit of how
 * many there are can mind, and what is counted are answers of 200 to the text, in which "%n" is a new line,
 * or, if it is no whole request, connections. Without one they are closed at once, as fast as can be. */
static int hold(const char* host, const char* port, int count, const char* text) {
  char request[1024], got[64];
  size_t size = 0;
  int worked = 0;
  const int kept = *text, whole = strstr(text, "%n%n") != NULL;
  for (; *text && size + 2 < sizeof request; ++text) {
    if (text[0] == '%' && text[1] == 'n') {
      request[size++] = '\r';
      request[size++] = '\n';
      ++text;
    } else {
      request[size++] = *text;
    }
  }
  struct sockaddr_storage to;
  const socklen_t length = address(host, port, &to);
  const struct timeval patience = {.tv_sec = 2};
  for (int i = 0; i < count; ++i) {
    const int fd = must(socket(to.ss_family, SOCK_STREAM, 0), "socket");
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    const int connects = connect(fd, (struct sockaddr*)&to, length) == 0;
    if (!kept || !connects) {
      worked += connects;
      close(fd);
      continue;
    }
    usleep(150000);
    if (send(fd, request, size, MSG_NOSIGNAL) < 0) continue;
    if (whole) {
      const ssize_t read_ = read(fd, got, sizeof got - 1);
      got[read_ > 0 ? read_ : 0] = 0;
    }
    worked += !whole || strstr(got, " 200 ") != NULL;
  }
  printf("%d\n", worked);
  fflush(stdout);
  /* Until standard input ends. */
  while (kept && read(0, got, sizeof got) > 0) {
  }
  return 0;
}

static int run(int argc, char** argv) {
  if (argc > 3 && !strcmp(argv[1], "-w")) {
    patienceMs *= atoi(argv[2]);
    answerMs *= atoi(argv[2]);
    argc -= 2;
    argv += 2;
  }
  const char* verb = argc > 1 ? argv[1] : "";
  struct sockaddr_storage to;
  unsigned char data[2048];
  char got[2048];
  if (argc == 4 && !strcmp(verb, "tcp")) {
    const socklen_t length = address(argv[2], argv[3], &to);
    carry(connected(SOCK_STREAM, 0, (struct sockaddr*)&to, length));
  }
  if (argc == 5 && !strcmp(verb, "relay")) {
    const socklen_t length = address(argv[3], argv[4], &to);
    relay(argv[2], (struct sockaddr*)&to, length);
  }
  if (argc == 5) {
    const struct {
      const char* name;
      int type, protocol;
    } kinds[] = {{"udp", SOCK_DGRAM, 0}, {"udp-lite", SOCK_DGRAM, 136}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
      if (strcmp(verb, kinds[i].name)) continue;
      const socklen_t length = address(argv[2], argv[3], &to);
      const int fd = connected(kinds[i].type, kinds[i].protocol, (struct sockaddr*)&to, length);
      must((int)send(fd, argv[4], strlen(argv[4]), 0), "send");
      return answer(fd);
    }
    if (!strcmp(verb, "raw")) {
      const socklen_t length = address(argv[2], "0", &to);
      const int fd = must(socket(to.ss_family, SOCK_RAW, atoi(argv[3])), "socket");
      must((int)sendto(fd, argv[4], strlen(argv[4]), 0, (struct sockaddr*)&to, length), "send");
      return 0;
    }
    if (!strcmp(verb, "listen")) {
      const int fd = packetSocket(argv[2]);
      const size_t wanted = unhex(argv[4], data, sizeof data);
      puts("ready");
      fflush(stdout);
      for (;;) {
        waitFor(fd, POLLIN, atoi(argv[3]), "frame");
        const ssize_t size = recv(fd, got, sizeof got, 0);
        if (size > 0 && memmem(got, (size_t)size, data, wanted)) return 0;
      }
    }
  }
  if (argc == 6 && !strcmp(verb, "udp-from")) {
    struct sockaddr_storage from;
    const socklen_t length = address(argv[2], "0", &from);
    const int fd = must(socket(from.ss_family, SOCK_DGRAM, 0), "socket"), on = 1;
    must(setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof on), "IP_TRANSPARENT");
    must(bind(fd, (struct sockaddr*)&from, length), "bind");
    const socklen_t size = address(argv[3], argv[4], &to);
    must((int)sendto(fd, argv[5], strlen(argv[5]), 0, (struct sockaddr*)&to, size), "send");
    return 0;
  }
  if (argc == 6 && !strcmp(verb, "hold")) return hold(argv[2], argv[3], atoi(argv[4]), argv[5]);
  if (argc == 3 && !strcmp(verb, "ping")) return ping(argv[2]);
  if (argc == 4 && !strcmp(verb, "frame")) {
    const int fd = packetSocket(argv[2]);
    must((int)send(fd, data, unhex(argv[3], data, sizeof data), 0), "send");
    return 0;
  }
  if (argc == 4 && !strcmp(verb, "vsock")) {
    const struct sockaddr_vm peer = {.svm_family = AF_VSOCK,
                                     .svm_cid = (unsigned)strtoul(argv[2], NULL, 10),
                                     .svm_port = (unsigned)strtoul(argv[3], NULL, 10)};
    return answer(connected(SOCK_STREAM, 0, (const struct sockaddr*)&peer, sizeof peer));
  }
  if (argc == 3 && !strcmp(verb, "abstract")) {
    struct sockaddr_un peer = {.sun_family = AF_UNIX};
    strncpy(peer.sun_path + 1, argv[2], sizeof peer.sun_path - 2);
    const size_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(argv[2]);
    return answer(connected(SOCK_STREAM, 0, (struct sockaddr*)&peer, (socklen_t)length));
  }
  fputs("wire: unknown; the source says how\n", stderr);
  return 2;
}

/* One request: a child does it; its exit status is the answer. It ends with whoever asked. */
static void request(int connection) {
  char words[8192], *argv[16] = {(char*)"wire"};
  union {
    struct cmsghdr head;
    char space[CMSG_SPACE(3 * sizeof(int))];
  } control;
  struct iovec data = {words, sizeof words - 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  const ssize_t size = recvmsg(connection, &message, 0);
  if (size <= 0 || message.msg_controllen != sizeof control) exit(1);
  words[size] = 0;
  int argc = 1;
  for (char* word = words; word < words + size && argc < 15; word += strlen(word) + 1) argv[argc++] = word;
  int fds[3];
  memcpy(fds, CMSG_DATA(&control.head), sizeof fds);
  signal(SIGCHLD, SIG_DFL);
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    close(connection);
    for (int i = 0; i < 3; ++i) dup2(fds[i], i);
    for (int i = 0; i < 3; ++i) close(fds[i]);
    exit(run(argc, argv));
  }
  for (int i = 0; i < 3; ++i) close(fds[i]);
  struct pollfd ends[] = {{.fd = connection, .events = POLLIN},
                          {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN}};
  if (poll(ends, 2, -1) < 0 || ends[0].revents) kill(child, SIGKILL);
  int status;
  must(waitpid(child, &status, 0), "waitpid");
  const char code = (char)(WIFEXITED(status) ? WEXITSTATUS(status) : 128);
  exit(send(connection, &code, 1, MSG_NOSIGNAL) != 1);
}

static int serve(const char* path) {
  struct sockaddr_un at = {.sun_family = AF_UNIX};
  strncpy(at.sun_path, path, sizeof at.sun_path - 1);
  unlink(path);
  const int listener = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "socket");
  must(bind(listener, (struct sockaddr*)&at, sizeof at), "bind");
  must(listen(listener, 64), "listen");
  puts("ready");
  fflush(stdout);
  signal(SIGCHLD, SIG_IGN);
  struct pollfd ends[] = {{.fd = 0, .events = POLLIN}, {.fd = listener, .events = POLLIN}};
  for (;;) {
    must(poll(ends, 2, -1), "poll");
    if (ends[0].revents) return 0;
    const int connection = accept(listener, NULL, NULL);
    if (connection < 0) continue;
    const pid_t child = fork();
    if (child == 0) {
      close(listener);
      request(connection);
    }
    close(connection);
  }
}

int main(int argc, char** argv) {
  if (argc == 3 && !strcmp(argv[1], "serve")) return serve(argv[2]);
  return run(argc, argv);
}
