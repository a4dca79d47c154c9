// agentmachine-audit: squid's log daemon (`logfile_daemon`), which writes every decision of the proxy to the
// journal. A line is taken from squid's socket only after it was written, by a process that another one
// replaces when it dies: so a kill may repeat a record but loses none. If records can't be written squid is
// ended, for nothing may pass unseen.
#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <systemd/sd-journal.h>

// glibc 2.41's header doesn't say that these are C.
extern "C" {
#include <sys/pidfd.h>
}

#include "plan/audit.h"
#include "plan/policy.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {
namespace {

constexpr int squidSocket = STDIN_FILENO;
constexpr auto journalSocket = "/run/systemd/journal/socket";
/// Squid's own limits (64 KiB of headers, percent-encoded) keep lines below.
constexpr std::size_t maxLine = 1024 * 1024;
constexpr std::size_t maxPolicyBytes = 4 * 1024 * 1024;
/// Replacements without a line between them.
constexpr int maxReplacements = 10;

void send(const std::vector<std::string>& fields) {
  std::vector<iovec> vectors;
  for (const auto& field : fields) vectors.push_back({const_cast<char*>(field.data()), field.size()});
  // libsystemd takes a journal that isn't there for none that is wanted.
  if (access(journalSocket, W_OK) < 0) throw errnoError(journalSocket);
  const int result = sd_journal_sendv(vectors.data(), static_cast<int>(vectors.size()));
  if (result < 0) throw errnoError("write to the journal", -result);
}

/// What is wrong with the log itself. Standard error is squid's, which has none.
void complain(const std::string& what) {
  try {
    send({"MESSAGE=agentmachine-audit: " + what, "PRIORITY=3", "SYSLOG_IDENTIFIER=agentmachine-proxy"});
  } catch (const Error&) {
    // There is nobody else to tell; squid's end says enough.
  }
}

/// Where records go: the journal, or for tests a file. "POLICIES:journal" or "POLICIES:FILE", for squid gives
/// its log daemon one argument.
class Sink {
 public:
  explicit Sink(const std::string& argument) {
    const auto colon = argument.rfind(':');
    if (colon == std::string::npos)
      throw Error("\"" + argument + "\" is not POLICIES:journal or POLICIES:FILE");
    policies_ = argument.substr(0, colon);
    const auto path = argument.substr(colon + 1);
    if (path == "journal") return;
    file_ = Fd(open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    if (!file_) throw errnoError("open " + path);
  }

  void write(AuditRecord record) const {
    if (record.id.empty()) identify(record);
    if (!file_) {
      std::vector<std::string> fields;
      for (const auto& [name, value] : journalFields(record)) fields.push_back(name + "=" + value);
      return send(fields);
    }
    const auto line = toJson(record) + "\n";
    if (::write(file_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      throw errnoError("write a record");
  }

 private:
  /// Of what squid could not read it asked nobody whose it is.
  void identify(AuditRecord& record) const {
    const auto source = Ipv4::parse(record.source);
    if (!source) return;
    try {
      if (const auto policy = readFileIfExists(policies_ + "/" + source->str(), maxPolicyBytes))
        setAgent(record, parsePolicy(*policy).agent);
    } catch (const Error&) {
      // The record says what it can.
    }
  }

  std::string policies_;
  Fd file_;
};

/// Squid's commands (its source, src/log/ModDaemon.cc): "L" and a line to log; others are about files that we
/// have none of.
void obey(const Sink& sink, std::string_view command) {
  if (!command.starts_with('L')) return;
  AuditRecord record;
  try {
    record = parseProxyLine(command.substr(1));
  } catch (const Error& cause) {
    // A fault of ours or squid's, not of who asked; it must be seen, but isn't worth everybody's way out.
    return complain(std::string(cause.what()) + ": " + escaped(command.substr(1), 2000));
  }
  sink.write(record);
}

/// Takes from the socket what was peeked at.
void take(std::size_t length) {
  std::vector<char> buffer(length);
  for (std::size_t taken = 0; taken < length;) {
    const auto n = recv(squidSocket, buffer.data(), length - taken, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw errnoError("take a line from squid");
    taken += static_cast<std::size_t>(n);
  }
}

/// Tells of data that came since it was last asked. (SO_PEEK_OFF would wait for them, too, but Linux 6.12
/// then returns old ones again.)
class Arrivals {
 public:
  Arrivals() {
    if (!epoll_) throw errnoError("make an epoll");
    epoll_event event{.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data = {}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, squidSocket, &event) < 0)
      throw errnoError("standard input is not squid's socket");
  }
  /// False once squid has closed the socket and all it sent was there before.
  [[nodiscard]] bool wait() {
    if (closed_) return false;
    epoll_event event{};
    while (epoll_wait(epoll_.get(), &event, 1, -1) < 0)
      if (errno != EINTR) throw errnoError("wait for squid");
    closed_ = event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    return true;
  }

 private:
  Fd epoll_{epoll_create1(EPOLL_CLOEXEC)};
  bool closed_ = false;
};

/// What outlives the process that works, shared with the one that replaces it.
struct Progress {
  bool made;            ///< a line was written
  std::size_t length;   ///< of `begun`
  std::size_t taking;   ///< follows in `begun`, and is taken from the socket just now
  char begun[maxLine];  ///< a line that squid has not ended yet: it goes on only when its beginning is taken
};

/// Takes the beginning of a line.
void takeBeginning(Progress& progress, std::string_view seen) {
  if (progress.length + seen.size() > maxLine) throw Error("squid sends a line without end");
  std::memcpy(progress.begun + progress.length, seen.data(), seen.size());
  progress.taking = seen.size();
  take(seen.size());
  progress.length += seen.size();
  progress.taking = 0;
}

/// What is in the socket, without taking it.
std::string_view peek(std::vector<char>& buffer) {
  for (;;) {
    const auto n = recv(squidSocket, buffer.data(), buffer.size(), MSG_PEEK | MSG_DONTWAIT);
    if (n >= 0) return {buffer.data(), static_cast<std::size_t>(n)};
    if (errno == EAGAIN) return {};
    if (errno != EINTR) throw errnoError("read from squid");
  }
}

/// Until squid closes the socket.
void serve(const Sink& sink, Progress& progress) {
  Arrivals arrivals;
  std::vector<char> buffer(maxLine);
  // The one before may have been killed just before or just after it took this.
  if (progress.taking) {
    const std::string_view taking(progress.begun + progress.length, progress.taking);
    if (!peek(buffer).starts_with(taking)) progress.length += progress.taking;
    progress.taking = 0;
  }
  for (;;) {
    auto seen = peek(buffer);
    for (auto end = seen.find('\n'); end != std::string_view::npos; end = seen.find('\n')) {
      obey(sink, std::string(progress.begun, progress.length) + std::string(seen.substr(0, end)));
      take(end + 1);
      progress.length = 0;
      progress.made = true;
      seen.remove_prefix(end + 1);
    }
    if (!seen.empty())
      takeBeginning(progress, seen);
    else if (!arrivals.wait())
      return;
  }
}

int squid = -1;  ///< a pidfd

/// The guard died: records are still written, but nobody would replace this process. Squid ends in order, and
/// tells of what it ends.
void endSquid(int) {
  pidfd_send_signal(squid, SIGTERM, nullptr, 0);
}

int work(const std::string& path, Progress& progress, pid_t guard) {
  std::signal(SIGUSR1, endSquid);
  prctl(PR_SET_PDEATHSIG, SIGUSR1);
  if (getppid() != guard) endSquid(SIGUSR1);
  try {
    serve(Sink(path), progress);
    return 0;
  } catch (const Error& cause) {
    complain(std::string(cause.what()) + "; the proxy is ended, for its decisions can't be recorded");
    pidfd_send_signal(squid, SIGKILL, nullptr, 0);
    return 1;
  }
}

/// Replaces the process that works until squid closes the socket.
int guard(const std::string& path) {
  // Squid and systemd both say when to end; the end of the lines does.
  for (const int ignored : {SIGTERM, SIGHUP, SIGINT, SIGPIPE}) std::signal(ignored, SIG_IGN);
  squid = pidfd_open(getppid(), 0);
  if (squid < 0) throw errnoError("watch squid");
  void* const shared =
      mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw errnoError("share memory");
  auto& progress = *new (shared) Progress;
  for (int replacements = 0; replacements <= maxReplacements; ++replacements) {
    const pid_t self = getpid(), worker = fork();
    if (worker < 0) throw errnoError("fork");
    if (worker == 0) _exit(work(path, progress, self));
    int status = 0;
    while (waitpid(worker, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    complain(std::string("the process that writes records was killed by signal ") +
             std::to_string(WTERMSIG(status)) + "; another one goes on, and may repeat a record");
    if (progress.made) replacements = 0;
    progress.made = false;
  }
  throw Error("the process that writes records is killed again and again");
}

}  // namespace
}  // namespace agentmachine

int main(int argc, char** argv) {
  using namespace agentmachine;
  if (argc != 2) {
    std::cerr << "usage: agentmachine-audit POLICIES:journal|POLICIES:FILE\nsquid starts it; see "
                 "agentmachine(1).\n";
    return 2;
  }
  try {
    return guard(argv[1]);
  } catch (const Error& cause) {
    complain(cause.what());
    if (squid >= 0) pidfd_send_signal(squid, SIGKILL, nullptr, 0);
    return 1;
  }
}
