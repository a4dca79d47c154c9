#include "system/guest.h"

#include <csignal>
#include <optional>

#include <fcntl.h>
#include <poll.h>
#include <sdbus-c++/sdbus-c++.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <systemd/sd-bus.h>
#include <termios.h>

#include "system/bus_loop.h"
#include "util/error.h"
#include "util/pipe.h"

namespace agentmachine {

namespace {

const sdbus::ServiceName service{"org.agentmachine.Init1"};
const sdbus::ObjectPath object{"/org/agentmachine/Init1"};
constexpr auto interface = "org.agentmachine.Init1";
/// What sd-bus answers in the place of a peer that goes away.
constexpr auto connectionEnded = "org.freedesktop.DBus.Error.NoReply";

/// A command running in a machine. Its end is an event on `ended`.
class GuestCall {
 public:
  GuestCall(const std::string& machine, const GuestCommand& command, const std::string& terminal,
            std::vector<sdbus::UnixFd>&& streams)
      : ended_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    // Ours are closed when this returns, so that the command's end of a pipe is its only end.
    const auto given = std::move(streams);
    // Joins the machine's namespaces in a child, connects to its bus socket there and hands the socket over.
    sd_bus* bus = nullptr;
    if (const int code = sd_bus_open_system_machine(&bus, machine.c_str()); code < 0)
      throw MachineGone(errnoError("reach the PID 1 of " + machine, -code).what());
    try {
      connection_ = sdbus::createBusConnection(bus);
      proxy_ = sdbus::createProxy(*connection_, service, object);
      proxy_->callMethodAsync("Exec")
          .onInterface(interface)
          // Commands have no time limit of ours.
          .withTimeout(std::numeric_limits<std::uint64_t>::max())
          .withArguments(command.user, command.argv, command.environment, command.directory, terminal, given)
          .uponReplyInvoke([this](std::optional<sdbus::Error> error, std::int32_t code, bool signaled) {
            if (!error)
              status_ = signaled ? 128 + code : code;
            else if (error->getName() == connectionEnded)
              gone_ = true;
            else
              failure_ = error->getMessage();
            replied_ = true;
            eventfd_write(ended_.get(), 1);
          });
      loop_ = std::make_unique<BusLoop>(*connection_, [this] {
        if (replied_) return;
        gone_ = true;
        eventfd_write(ended_.get(), 1);
      });
    } catch (const sdbus::Error& cause) {
      throw Error("run in " + machine + ": " + cause.getMessage());
    }
  }
  ~GuestCall() = default;
  GuestCall(const GuestCall&) = delete;
  GuestCall& operator=(const GuestCall&) = delete;

  [[nodiscard]] int endedFd() const { return ended_.get(); }
  /// Only after the event. Throws Error if the machine refused the command, MachineGone if it ended first.
  [[nodiscard]] int status() const {
    if (gone_) throw MachineGone("the machine ended before the command did");
    if (!failure_.empty()) throw Error(failure_);
    return status_;
  }

 private:
  Fd ended_;
  std::unique_ptr<sdbus::IConnection> connection_;
  std::unique_ptr<sdbus::IProxy> proxy_;
  std::string failure_;
  int status_ = 0;
  bool replied_ = false, gone_ = false;
  std::unique_ptr<BusLoop> loop_;  // its thread writes the four above
};

/// One direction: bytes from one descriptor to the other, with a buffer in between. Neither may block the
/// loop.
class Relay {
 public:
  Relay(int from, int to) : from_(from), to_(to) {}

  /// Whether it waits for its source, or for its sink.
  [[nodiscard]] pollfd wantsRead() const { return {open_ && buffer_.empty() ? from_ : -1, POLLIN, 0}; }
  [[nodiscard]] pollfd wantsWrite() const { return {buffer_.empty() ? -1 : to_, POLLOUT, 0}; }
  /// Source at its end and all of it passed on, or nobody takes any more.
  [[nodiscard]] bool done() const { return !open_ && buffer_.empty(); }
  /// Nobody takes any more: whoever reads what comes out is gone.
  [[nodiscard]] bool refused() const { return refused_; }

  void readSome() {
    char chunk[32768];
    const ssize_t n = read(from_, chunk, sizeof chunk);
    if (n > 0) buffer_.assign(chunk, static_cast<std::size_t>(n));
    // EIO: the last process on the other side of a terminal is gone.
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
      open_ = false;
  }
  void writeSome() {
    const ssize_t n = write(to_, buffer_.data(), buffer_.size());
    if (n > 0)
      buffer_.erase(0, static_cast<std::size_t>(n));
    else if (n < 0 && errno != EAGAIN && errno != EINTR) {
      buffer_.clear();
      open_ = false;
      refused_ = true;
    }
  }

 private:
  int from_, to_;
  bool open_ = true, refused_ = false;
  std::string buffer_;
};

sdbus::UnixFd give(Fd& fd) {
  return sdbus::UnixFd(fd.release(), sdbus::adopt_fd);
}

/// Our own terminal in raw mode, restored at the end.
class RawTerminal {
 public:
  RawTerminal() {
    if (tcgetattr(STDIN_FILENO, &saved_) < 0) return;
    raw_ = true;
    termios raw = saved_;
    cfmakeraw(&raw);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
  }
  ~RawTerminal() {
    if (raw_) tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios saved_{};
  bool raw_ = false;
};

void copyWindowSize(int master) {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) ioctl(master, TIOCSWINSZ, &size);
}

/// SIGWINCH, and what would end this process before its terminal is as it was, as events.
Fd signalEvents() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGWINCH, SIGHUP, SIGINT, SIGTERM}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return Fd{signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)};
}

void pollOnce(std::vector<pollfd>& fds, int timeout = -1) {
  while (poll(fds.data(), fds.size(), timeout) < 0)
    if (errno != EINTR) throw errnoError("poll");
}

void step(Relay& relay, const pollfd& readable, const pollfd& writable) {
  if (readable.revents) relay.readSome();
  if (writable.revents) relay.writeSome();
}

}  // namespace

int execInMachine(const std::string& machine, const GuestCommand& command) {
  Pipe in = makePipe(), out = makePipe(), err = makePipe();
  std::vector<sdbus::UnixFd> streams;
  streams.push_back(give(in.read));
  streams.push_back(give(out.write));
  streams.push_back(give(err.write));
  const GuestCall call(machine, command, "", std::move(streams));

  fcntl(in.write.get(), F_SETFL, O_NONBLOCK);
  Relay input(STDIN_FILENO, in.write.get()), output(out.read.get(), STDOUT_FILENO),
      errors(err.read.get(), STDERR_FILENO);
  // The command's end closes its side of the pipes: what is in them still counts.
  bool ended = false;
  while (!ended || !output.done() || !errors.done()) {
    if (input.done()) in.write.reset();
    // Whose reader is gone, the command is told as by a pipe of its own.
    if (output.done()) out.read.reset();
    if (errors.done()) err.read.reset();
    std::vector<pollfd> fds = {output.wantsRead(), output.wantsWrite(), errors.wantsRead(),
                               errors.wantsWrite()};
    fds.push_back({ended ? -1 : call.endedFd(), POLLIN, 0});
    fds.push_back(ended || input.done() ? pollfd{-1, 0, 0} : input.wantsRead());
    fds.push_back(ended || input.done() ? pollfd{-1, 0, 0} : input.wantsWrite());
    pollOnce(fds);
    step(output, fds[0], fds[1]);
    step(errors, fds[2], fds[3]);
    step(input, fds[5], fds[6]);
    ended = ended || fds[4].revents;
  }
  return call.status();
}

int execOnTerminal(const std::string& machine, GuestCommand command, Machined& machined) {
  const MachineTerminal terminal = machined.openTerminal(machine);
  copyWindowSize(terminal.master.get());
  if (const char* term = getenv("TERM")) command.environment.push_back(std::string("TERM=") + term);
  const Fd signals = signalEvents();
  const GuestCall call(machine, command, terminal.path, {});
  const RawTerminal raw;

  fcntl(terminal.master.get(), F_SETFL, O_NONBLOCK);
  Relay input(STDIN_FILENO, terminal.master.get()), output(terminal.master.get(), STDOUT_FILENO);
  bool ended = false;
  for (;;) {
    std::vector<pollfd> fds = {output.wantsRead(), output.wantsWrite()};
    fds.push_back({ended ? -1 : call.endedFd(), POLLIN, 0});
    fds.push_back({signals.get(), POLLIN, 0});
    fds.push_back(ended ? pollfd{-1, 0, 0} : input.wantsRead());
    fds.push_back(ended ? pollfd{-1, 0, 0} : input.wantsWrite());
    // After the end only what the terminal still holds is waited for.
    pollOnce(fds, ended ? 0 : -1);
    if (ended && !fds[0].revents && !fds[1].revents) break;
    if (fds[3].revents) {
      signalfd_siginfo information{};
      (void)!read(signals.get(), &information, sizeof information);
      // The command is killed when the connection to it is closed.
      if (information.ssi_signo != SIGWINCH) return 128 + static_cast<int>(information.ssi_signo);
      copyWindowSize(terminal.master.get());
    }
    step(output, fds[0], fds[1]);
    step(input, fds[4], fds[5]);
    if (output.refused()) return 128 + SIGPIPE;
    if (output.done() && ended) break;
    ended = ended || fds[2].revents;
  }
  return call.status();
}

}  // namespace agentmachine
