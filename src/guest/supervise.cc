#include "guest/supervise.h"

#include <csignal>
#include <cstdio>
#include <optional>

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include "guest/bus.h"
#include "guest/network.h"
#include "guest/notify.h"
#include "util/error.h"
#include "util/file.h"

namespace agentmachine {

namespace {

constexpr const char* busDirectory = "/run/dbus";
constexpr const char* busSocket = "/run/dbus/system_bus_socket";
constexpr std::size_t maxSessions = 64;
constexpr std::size_t maxSecretBytes = 64 * 1024;

void say(const std::string& text) {
  dprintf(STDERR_FILENO, "agentmachine-init: %s\n", text.c_str());
}

/// The signals that `machinectl` and systemd-nspawn send to say "end": terminate, poweroff, halt, reboot (by
/// SIGINT too; ending is all we can do of it), and a power failure.
bool asksToEnd(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGPWR ||
         (signal >= SIGRTMIN + 3 && signal <= SIGRTMIN + 6);
}

Fd listenToSignals() {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  signal(SIGPIPE, SIG_IGN);
  Fd signals{signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK)};
  if (!signals) throw errnoError("listen to signals");
  return signals;
}

Bus::Machine machineOf(const Options& options) {
  const auto user = findUser(options.user);
  if (!user) throw Error("no user " + options.user + " in the image's /etc/passwd");
  if (user->uid == 0) throw Error("--user=" + options.user + ": the payload never runs as root");
  return {*user, options.directory, payloadEnvironment(environ)};
}

class Supervisor {
 public:
  explicit Supervisor(const Options& options)
      : options_(options),
        signals_(listenToSignals()),
        machine_(machineOf(options)),
        sessions_(maxSessions),
        bus_((mkdir(busDirectory, 0755), busSocket), machine_, sessions_) {
    if (!options.waitInterface.empty()) network_ = watchNetwork();
  }

  int run() {
    notifyManager("READY=1");
    beginWhenConnected();
    while (!done_) {
      try {
        step();
      } catch (const std::exception& error) {  // no memory, most likely; dying of it would help nobody
        say(error.what());
      }
    }
    return exitCode_;
  }

 private:
  void step() {
    if (!sessions_.reap() && stopping_) {
      done_ = true;
      return;
    }
    std::vector<pollfd> polls{
        {signals_.get(), POLLIN, 0}, {network_.get(), POLLIN, 0}, {timer_.get(), POLLIN, 0}};
    const std::size_t own = polls.size();
    bus_.prepare(polls);
    if (poll(polls.data(), polls.size(), -1) < 0) return;
    if (polls[0].revents) takeSignals();
    if (polls[1].revents) {
      drainNetwork(network_);
      beginWhenConnected();
    }
    if (polls[2].revents) {
      // What is left is killed by the kernel when we exit (pid_namespaces(7)).
      say("not everything ended within " + std::to_string(options_.stopTimeout.count()) + " s: killed");
      done_ = true;
    }
    bus_.handle(std::span(polls).subspan(own));
  }

  void takeSignals() {
    signalfd_siginfo signal{};
    while (read(signals_.get(), &signal, sizeof signal) == sizeof signal)
      if (asksToEnd(static_cast<int>(signal.ssi_signo))) stop("stopping");
  }

  void beginWhenConnected() {
    if (begun_ || stopping_) return;
    if (network_ && !isInterfaceReady(options_.waitInterface)) {
      if (!std::exchange(waiting_, true)) say("waiting for " + options_.waitInterface);
      return;
    }
    begun_ = true;
    network_.reset();
    try {
      startPayload();
    } catch (const Error& error) {
      exitCode_ = 1;
      say(std::string("payload not started: ") + error.what());
      stop("payload not started");
    }
  }

  void startPayload() {
    Command command;
    command.path = options_.command[0];
    command.argv = options_.command;
    command.directory = options_.directory;
    for (const auto& secret : options_.secrets) {
      std::string value = readFile(secret.path, maxSecretBytes);
      if (value.ends_with('\n')) value.pop_back();
      if (value.contains('\0')) throw Error("read " + secret.path + ": holds a zero byte");
      command.environment.push_back(secret.name + "=" + value);
    }
    for (int target : {STDOUT_FILENO, STDERR_FILENO})
      command.streams[static_cast<std::size_t>(target)] = Fd{fcntl(target, F_DUPFD_CLOEXEC, 3)};
    const auto environment =
        commandEnvironment(machine_.environment, machine_.payloadUser, true, command.environment);
    sessions_.start(command, machine_.payloadUser, environment,
                    [this](pid_t, const Ending& ending) { payloadEnded(ending); });
  }

  void payloadEnded(const Ending& ending) {
    const std::string text = "payload " + describe(ending);
    say(text);
    if (stopping_) return;  // as it was asked to
    exitCode_ = exitCodeOf(ending);
    stop(text + "\nEXIT_STATUS=" + std::to_string(exitCode_));
  }

  void stop(const std::string& status) {
    if (std::exchange(stopping_, true)) return;
    notifyManager("STOPPING=1\nSTATUS=" + status);
    bus_.close();
    network_.reset();
    sessions_.askAllToEnd();
    timer_ = Fd{timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)};
    itimerspec when{};
    when.it_value.tv_sec = options_.stopTimeout.count();
    // Without a timer nothing would end the wait.
    if (!timer_ || timerfd_settime(timer_.get(), 0, &when, nullptr) < 0) done_ = true;
  }

  const Options& options_;
  Fd signals_;
  Bus::Machine machine_;
  Sessions sessions_;
  Bus bus_;
  Fd network_;
  Fd timer_;
  bool waiting_ = false;
  bool begun_ = false;
  bool stopping_ = false;
  bool done_ = false;
  int exitCode_ = 0;
};

}  // namespace

int supervise(const Options& options) {
  return Supervisor(options).run();
}

}  // namespace agentmachine
