// agentmachine-init as PID 1 of namespaces of its own, on this machine's file system, asked by sd-bus as
// machined asks. Needs root; the real systemd-nspawn and machinectl are in the lab's tests.
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include <dbus/dbus.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>
#include <termios.h>

#include "util/fd.h"
#include "util/file.h"

using namespace std::literals;

namespace agentmachine {
namespace {

constexpr int patience = 30'000;  // ms; a machine under load is slow, a test that hangs is useless

/// Reads until `wanted` has come or the other side is closed; returns all that came.
std::string readUntil(int fd, const std::string& wanted) {
  std::string text;
  char buffer[4096];
  pollfd wait{fd, POLLIN, 0};
  while ((wanted.empty() || !text.contains(wanted)) && poll(&wait, 1, patience) > 0) {
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n <= 0) return text;  // a terminal whose other side is closed says EIO
    text.append(buffer, static_cast<std::size_t>(n));
  }
  return text;
}
std::string readAll(int fd) {
  return readUntil(fd, {});
}

/// Whether the other side closes the connection, however much it says before.
bool isClosed(int fd) {
  char buffer[4096];
  pollfd wait{fd, POLLIN, 0};
  while (poll(&wait, 1, patience) > 0)
    if (read(fd, buffer, sizeof buffer) <= 0) return true;
  return false;
}

struct Pipe {
  Pipe() {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    out = Fd{fds[0]};
    in = Fd{fds[1]};
  }
  Fd out, in;
};

/// One running agentmachine-init and what it prints.
class Machine {
 public:
  enum Start { asPid1, asPid1InVain, asAnotherProcess };
  Machine(const std::vector<std::string>& options, const std::string& script, Start start = asPid1) {
    std::string pattern = (std::filesystem::temp_directory_path() / "guest.XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    chmod(directory_.c_str(), 0755);
    std::ofstream(directory_ / "passwd")
        << "root:x:0:0::/root:/bin/sh\nagent:x:65532:65532::/home/agent:/bin/sh\n";
    std::ofstream(directory_ / "secret") << "hunter2\n";
    chmod((directory_ / "secret").c_str(), 0600);
    notify_ = Fd{socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{AF_UNIX, {}};
    (directory_ / "notify").string().copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(bind(notify_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const int on = 1;
    setsockopt(notify_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);

    // What systemd-nspawn does: namespaces, mounts, no new privileges, and few capabilities, which shows that
    // these are enough; and what the payload must not inherit. ulimit: so that a few connections are too
    // many.
    const std::string setUp =
        "set -e; mount -t proc proc /proc; mount -t tmpfs tmpfs /run; mount --bind \"$D/passwd\" "
        "/etc/passwd; "
        "mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts; ulimit -n 64; "
        "umask 077; echo 250 >/proc/self/oom_score_adj; " +
        std::string(start == asAnotherProcess ? "" : "exec ") +
        "setpriv --no-new-privs --groups 4,24 --inh-caps +kill "
        "--bounding-set -all,+setuid,+setgid,+setpcap,+kill,+chown \"$@\"";
    std::vector<std::string> argv = {"unshare", "--pid", "--mount", "--net", "--fork", "--kill-child"};
    if (isChrooted()) argv.insert(argv.end(), {"--propagation", "unchanged"});
    argv.insert(argv.end(), {"sh", "-c", setUp, "sh", AGENTMACHINE_INIT, "--directory=/tmp"});
    argv.insert(argv.end(), options.begin(), options.end());
    argv.insert(argv.end(), {"--", "sh", "-c", script});
    std::vector<char*> words;
    for (auto& word : argv) words.push_back(word.data());
    words.push_back(nullptr);
    const std::vector<std::string> environment = {"D=" + directory_.string(),
                                                  "NOTIFY_SOCKET=" + (directory_ / "notify").string(),
                                                  "PATH=/usr/bin:/bin:/usr/sbin:/sbin",
                                                  "container=x",
                                                  "HOME=/root",
                                                  "ASAN_OPTIONS=detect_leaks=0"};
    std::vector<char*> variables;
    for (auto& variable : environment) variables.push_back(const_cast<char*>(variable.c_str()));
    variables.push_back(nullptr);

    Pipe output;
    starter_ = fork();
    if (starter_ == 0) {
      dup2(output.in.get(), 1);
      dup2(output.in.get(), 2);
      execvpe(words[0], words.data(), variables.data());
      _exit(127);
    }
    output_ = std::move(output.out);
    if (start == asPid1) expectNotified("READY=1");
  }

  ~Machine() {
    if (starter_ > 0) {
      kill(starter_, SIGKILL);
      waitpid(starter_, nullptr, 0);
    }
    std::filesystem::remove_all(directory_);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  [[nodiscard]] pid_t pid1() const { return pid1_; }
  [[nodiscard]] std::filesystem::path secret() const { return directory_ / "secret"; }
  [[nodiscard]] std::string root() const { return "/proc/" + std::to_string(pid1_) + "/root"; }
  [[nodiscard]] std::string socketPath() const { return root() + "/run/dbus/system_bus_socket"; }
  std::string printedUntil(const std::string& text) { return readUntil(output_.get(), text); }
  std::string rest() { return readAll(output_.get()); }

  /// The next message to the manager; remembers PID 1's number among our processes.
  std::string notified() {
    pollfd wait{notify_.get(), POLLIN, 0};
    if (poll(&wait, 1, patience) <= 0) return "nothing";
    char text[4096], control[CMSG_SPACE(sizeof(ucred))];
    iovec part{text, sizeof text};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(notify_.get(), &message, 0);
    ucred sender{};
    memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof sender);
    pid1_ = sender.pid;
    return {text, static_cast<std::size_t>(n)};
  }
  void expectNotified(const std::string& text) { EXPECT_EQ(notified(), text); }

  /// Exit status of PID 1.
  int wait() {
    int status = 0;
    waitpid(std::exchange(starter_, 0), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int signalAndWait(int signal) {
    kill(pid1_, signal);
    return wait();
  }

 private:
  /// unshare(1) can't change the propagation of a chroot's root, which is no mount.
  static bool isChrooted() {
    std::ifstream mounts("/proc/self/mountinfo");  // id, parent, device, root, mount point, … (proc(5))
    for (std::string line; std::getline(mounts, line);) {
      std::istringstream fields(line);
      std::string field[5];
      for (auto& text : field) fields >> text;
      if (field[4] == "/") return false;
    }
    return true;
  }

  std::filesystem::path directory_;
  Fd notify_, output_;
  pid_t starter_ = 0;
  pid_t pid1_ = 0;
};

using Bus = std::unique_ptr<sd_bus, sd_bus* (*)(sd_bus*)>;
using Message = std::unique_ptr<sd_bus_message, sd_bus_message* (*)(sd_bus_message*)>;

Bus connectTo(const Machine& machine) {
  sd_bus* bus = nullptr;
  sd_bus_new(&bus);
  sd_bus_set_address(bus, ("unix:path=" + machine.socketPath()).c_str());
  sd_bus_set_bus_client(bus, 1);
  sd_bus_negotiate_fds(bus, 1);
  EXPECT_GE(sd_bus_start(bus), 0);
  return {bus, sd_bus_close_unref};
}

Message newCall(const Bus& bus, const char* interface, const char* member) {
  sd_bus_message* call = nullptr;
  sd_bus_message_new_method_call(bus.get(), &call, "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
                                 interface, member);
  return {call, sd_bus_message_unref};
}

/// The answer, or the error's text.
struct Answer {
  Message message{nullptr, sd_bus_message_unref};
  std::string error;
};

Answer ask(const Bus& bus, const Message& call) {
  sd_bus_error error = SD_BUS_ERROR_NULL;
  sd_bus_message* reply = nullptr;
  Answer answer;
  if (sd_bus_call(bus.get(), call.get(), static_cast<uint64_t>(patience) * 1000, &error, &reply) < 0)
    answer.error = error.message ? error.message : "no answer";
  answer.message.reset(reply);
  sd_bus_error_free(&error);
  return answer;
}

struct ExecResult {
  int code = -1;
  int signaled = -1;
  std::string output, errors, refused;
};

Message execCall(const Bus& bus, const std::string& user, const std::string& script,
                 const std::string& terminal, const std::vector<int>& streams) {
  Message call = newCall(bus, "org.agentmachine.Init1", "Exec");
  sd_bus_message_append(call.get(), "sasasss", user.c_str(), 3, "sh", "-c", script.c_str(), 1, "GIVEN=yes",
                        "", terminal.c_str());
  sd_bus_message_open_container(call.get(), 'a', "h");
  for (int fd : streams) sd_bus_message_append(call.get(), "h", fd);
  sd_bus_message_close_container(call.get());
  return call;
}

void readResult(const Answer& answer, ExecResult& result) {
  result.refused = answer.error;
  if (!answer.error.empty()) return;
  EXPECT_GE(sd_bus_message_read(answer.message.get(), "ib", &result.code, &result.signaled), 0);
}

ExecResult exec(const Machine& machine, const std::string& script, const std::string& user = "",
                const std::string& input = {}) {
  const Bus bus = connectTo(machine);
  Pipe in, out, err;
  ExecResult result;
  EXPECT_EQ(write(in.in.get(), input.data(), input.size()), static_cast<ssize_t>(input.size()));
  in.in.reset();
  const Message call = execCall(bus, user, script, "", {in.out.get(), out.in.get(), err.in.get()});
  in.out.reset();
  out.in.reset();
  err.in.reset();
  readResult(ask(bus, call), result);
  // The message holds duplicates, as the far side's would if it kept the call.
  const_cast<Message&>(call).reset();
  result.output = readAll(out.out.get());
  result.errors = readAll(err.out.get());
  return result;
}

bool isRunning(const Machine& machine, const std::string& argument) {
  for (const auto& entry : std::filesystem::directory_iterator(machine.root() + "/proc")) {
    std::ifstream file(entry.path() / "cmdline");
    const std::string words{std::istreambuf_iterator<char>(file), {}};
    if (words.contains(argument)) return true;
  }
  return false;
}

class GuestMachine : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root to make the namespaces";
  }
};

constexpr const char* waitForEver = "echo begun; exec sleep infinity";

TEST_F(GuestMachine, PayloadHasNoPrivilege) {
  Machine machine({},
                  "id; grep -E '^(Cap|NoNewPrivs|SigBlk|SigIgn)' /proc/self/status; cat "
                  "/proc/self/oom_score_adj; pwd; umask; "
                  "readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; set -- $(cat /proc/$$/stat); test $6 "
                  "= $$ && echo leads its session");
  const std::string text = machine.rest();
  EXPECT_TRUE(
      text.starts_with("uid=65532(agent) gid=65532 groups=65532\n"
                       "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
                       "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"
                       "CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n"
                       "750\n/tmp\n0022\n/dev/null\n4\nleads its session\n"))
      << text;
  EXPECT_EQ(machine.wait(), 0);
}

TEST_F(GuestMachine, EndsWithThePayloadAndItsStatus) {
  Machine machine({}, "sleep infinity & exit 7");
  EXPECT_EQ(machine.notified(), "STOPPING=1\nSTATUS=payload exited with status 7\nEXIT_STATUS=7");
  EXPECT_EQ(machine.rest(), "agentmachine-init: payload exited with status 7\n");
  EXPECT_EQ(machine.wait(), 7);
}

TEST_F(GuestMachine, ReportsASignalThatKilledThePayload) {
  Machine machine({}, "kill -SEGV $$");
  EXPECT_EQ(machine.rest(), "agentmachine-init: payload killed by signal 11 (SEGV)\n");
  EXPECT_EQ(machine.wait(), 139);
}

TEST_F(GuestMachine, SaysWhyThePayloadCannotRun) {
  Machine missing({}, "exec /no/such/program");
  EXPECT_EQ(missing.wait(), 127);
  Machine secret({"--secret-env=KEY=/no/such/file"}, "true");
  EXPECT_TRUE(secret.rest().contains("payload not started: read /no/such/file: No such file or directory"));
  EXPECT_EQ(secret.wait(), 1);
  std::string path = testing::TempDir() + "secretXXXXXX";
  const Fd file{mkstemp(path.data())};
  ASSERT_EQ(write(file.get(), "a\0b", 3), 3);
  Machine binary({"--secret-env=KEY=" + path}, "true");
  EXPECT_TRUE(binary.rest().contains("payload not started: read " + path + ": holds a zero byte"));
  unlink(path.c_str());
}

TEST_F(GuestMachine, RefusesToStartWhereItCannotWork) {
  Machine root({"--user=root"}, "true", Machine::asPid1InVain);
  EXPECT_EQ(root.rest(), "agentmachine-init: --user=root: the payload never runs as root\n");
  EXPECT_EQ(root.wait(), 1);
  Machine nobody({"--user=bob"}, "true", Machine::asPid1InVain);
  EXPECT_EQ(nobody.rest(), "agentmachine-init: no user bob in the image's /etc/passwd\n");
  // Elsewhere it would end every process there is.
  Machine elsewhere({}, "true", Machine::asAnotherProcess);
  EXPECT_EQ(elsewhere.rest(), "agentmachine-init: runs only as the first process of a machine\n");
}

TEST_F(GuestMachine, GivesASecretToThePayloadOnly) {
  std::string path = testing::TempDir() + "secretXXXXXX";
  const Fd file{mkstemp(path.data())};
  ASSERT_EQ(write(file.get(), "hunter2\n", 8), 8);
  Machine machine({"--secret-env=KEY=" + path},
                  "echo \"[$KEY] [$container$NOTIFY_SOCKET] $HOME\"; exec sleep infinity");
  EXPECT_EQ(machine.printedUntil("\n"), "[hunter2] [] /home/agent\n");
  const ExecResult other = exec(machine, "echo \"[$KEY] $GIVEN $HOME\"");
  EXPECT_EQ(other.output, "[] yes /home/agent\n");
  std::ifstream environment("/proc/" + std::to_string(machine.pid1()) + "/environ");
  EXPECT_FALSE((std::string{std::istreambuf_iterator<char>(environment), {}}).contains("hunter2"));
  unlink(path.c_str());
}

TEST_F(GuestMachine, StartsThePayloadWhenTheNetworkIsThere) {
  Machine machine({"--wait-interface=lo"}, "echo begun");
  EXPECT_EQ(machine.printedUntil("lo"), "agentmachine-init: waiting for lo\n");
  EXPECT_EQ(exec(machine, "echo the bus answers").output, "the bus answers\n");
  // The host's part: raise the interface, through the leader's namespace.
  const pid_t host = fork();
  if (host == 0) {
    const Fd network{open((machine.root() + "/proc/1/ns/net").c_str(), O_RDONLY | O_CLOEXEC)};
    ifreq request{};
    request.ifr_name[0] = 'l', request.ifr_name[1] = 'o';
    request.ifr_flags = IFF_UP;
    const bool raised = setns(network.get(), CLONE_NEWNET) == 0 &&
                        ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &request) == 0;
    _exit(raised ? 0 : 1);
  }
  int status = 0;
  waitpid(host, &status, 0);
  ASSERT_EQ(status, 0);
  EXPECT_TRUE(machine.printedUntil("begun").starts_with("begun"));
  EXPECT_EQ(machine.wait(), 0);
}

TEST_F(GuestMachine, StopsWhileItWaitsForTheNetwork) {
  Machine machine({"--wait-interface=lo"}, "echo begun");
  EXPECT_EQ(machine.signalAndWait(SIGTERM), 0);
  EXPECT_FALSE(machine.rest().contains("begun"));
}

TEST_F(GuestMachine, EverySignalThatMeansEndEndsIt) {
  for (int signal : {SIGTERM, SIGINT, SIGPWR, SIGRTMIN + 3, SIGRTMIN + 4, SIGRTMIN + 5}) {
    Machine machine({}, "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep infinity & wait; done");
    machine.printedUntil("begun\n");
    EXPECT_EQ(machine.signalAndWait(signal), 0) << signal;
    EXPECT_EQ(machine.rest(), "bye\nagentmachine-init: payload exited with status 3\n");
  }
}

TEST_F(GuestMachine, OtherSignalsDoNot) {
  Machine machine({}, waitForEver);
  machine.printedUntil("begun\n");
  for (int signal : {SIGHUP, SIGUSR1, SIGPIPE, SIGALRM, SIGQUIT, SIGRTMIN}) kill(machine.pid1(), signal);
  EXPECT_EQ(exec(machine, "echo alive").output, "alive\n");
}

TEST_F(GuestMachine, KillsWhatDoesNotEndInTime) {
  Machine machine({"--stop-timeout=1"}, "trap '' TERM; echo begun; while :; do sleep infinity; done");
  machine.printedUntil("begun\n");
  EXPECT_EQ(machine.signalAndWait(SIGTERM), 0);
  EXPECT_EQ(machine.rest(), "agentmachine-init: not everything ended within 1 s: killed\n");
}

TEST_F(GuestMachine, EndsWhatHasBeenStopped) {
  Machine machine({"--stop-timeout=20"}, "trap 'exit 3' TERM; sh -c 'kill -STOP $PPID; echo begun'; exit 4");
  machine.printedUntil("begun\n");
  EXPECT_EQ(machine.signalAndWait(SIGTERM), 0);
  EXPECT_TRUE(machine.rest().contains("payload exited with status 3\n"));
}

TEST_F(GuestMachine, ReapsOrphans) {
  Machine machine({}, waitForEver);
  machine.printedUntil("begun\n");
  // The orphan's end closes the pipe; by the time another command is answered it has been reaped.
  EXPECT_EQ(exec(machine, "setsid sh -c 'exit 5' & exit 0").code, 0);
  EXPECT_EQ(exec(machine, "grep -l '^State:.Z' /proc/[0-9]*/status").output, "");
}

TEST_F(GuestMachine, ExecCarriesStreamsAndStatus) {
  Machine machine({}, waitForEver);
  const ExecResult result = exec(machine, "id -un; cat; pwd; echo problem >&2; exit 5", "", "input\n");
  EXPECT_EQ(result.output, "agent\ninput\n/tmp\n");
  EXPECT_EQ(result.errors, "problem\n");
  EXPECT_EQ(result.code, 5);
  EXPECT_FALSE(result.signaled);
  const ExecResult killed = exec(machine, "kill -KILL $$");
  EXPECT_EQ(killed.code, SIGKILL);
  EXPECT_TRUE(killed.signaled);
}

TEST_F(GuestMachine, ExecAsRootHasNoCapability) {
  Machine machine({}, waitForEver);
  EXPECT_EQ(exec(machine, "id -u; grep -hE 'Cap(Prm|Eff|Bnd)' /proc/self/status; echo $HOME", "root").output,
            "0\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n/root\n");
}

TEST_F(GuestMachine, ExecRefusesAUserThatIsNotThere) {
  Machine machine({}, waitForEver);
  EXPECT_EQ(exec(machine, "true", "nobody").refused, "no user nobody in this machine");
}

TEST_F(GuestMachine, ExecEndsWithItsCaller) {
  Machine machine({}, waitForEver);
  Pipe out;
  Bus bus = connectTo(machine);
  {
    const Message call =
        execCall(bus, "", "sleep 7777 & echo here; wait", "", {STDIN_FILENO, out.in.get(), out.in.get()});
    ASSERT_GE(sd_bus_send(bus.get(), call.get(), nullptr), 0);
    sd_bus_flush(bus.get());
  }
  out.in.reset();
  EXPECT_EQ(readUntil(out.out.get(), "\n"), "here\n");
  EXPECT_TRUE(isRunning(machine, "7777"));
  bus.reset();
  EXPECT_TRUE(isClosed(out.out.get()));  // nobody holds it any more
}

TEST_F(GuestMachine, ExecLeavesNothingBehind) {
  Machine machine({}, waitForEver);
  // The answer comes although something in the background holds the streams; then that is killed.
  EXPECT_EQ(exec(machine, "sleep 7777 & echo here").output, "here\n");
}

/// A pseudo terminal of the machine, as machined's OpenMachinePTY gives it: our end, and its path inside.
std::pair<Fd, std::string> openTerminal(const Machine& machine) {
  Fd own{open((machine.root() + "/dev/pts/ptmx").c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC)};
  int unlocked = 0, number = -1;
  EXPECT_EQ(ioctl(own.get(), TIOCSPTLCK, &unlocked), 0);
  EXPECT_EQ(ioctl(own.get(), TIOCGPTN, &number), 0);
  termios settings{};
  EXPECT_EQ(tcgetattr(own.get(), &settings), 0);
  settings.c_iflag &= ~static_cast<tcflag_t>(IUTF8);  // as older kernels have it
  EXPECT_EQ(tcsetattr(own.get(), TCSANOW, &settings), 0);
  return {std::move(own), "/dev/pts/" + std::to_string(number)};
}

TEST_F(GuestMachine, ExecCanHaveATerminal) {
  Machine machine({}, waitForEver);
  auto [own, path] = openTerminal(machine);
  const Bus bus = connectTo(machine);
  ExecResult result;
  readResult(
      ask(bus, execCall(bus, "",
                        "tty; test -w $(tty) && stty -a | grep -o -e -*iutf8; echo >/dev/tty on it; exit 4",
                        path, {})),
      result);
  EXPECT_EQ(result.refused, "");
  EXPECT_EQ(result.code, 4);
  EXPECT_EQ(readAll(own.get()), path + "\r\niutf8\r\non it\r\n");
}

/// What machined's OpenMachineShell sends, as far as it matters.
Message shellCall(const Bus& bus, int terminal, const char* user, const char* script) {
  Message call = newCall(bus, "org.freedesktop.systemd1.Manager", "StartTransientUnit");
  sd_bus_message* m = call.get();
  sd_bus_message_append(m, "ss", "container-shell@1.service", "fail");
  sd_bus_message_open_container(m, 'a', "(sv)");
  sd_bus_message_append(m, "(sv)(sv)(sv)", "Description", "s", "Shell for User", "SendSIGHUP", "b", 1,
                        "TTYReset", "b", 1);
  for (const char* stream :
       {"StandardInputFileDescriptor", "StandardOutputFileDescriptor", "StandardErrorFileDescriptor"})
    sd_bus_message_append(m, "(sv)", stream, "h", terminal);
  sd_bus_message_append(m, "(sv)(sv)(sv)", "User", "s", user, "WorkingDirectory", "s", "-~", "Environment",
                        "as", 1, "TERM=vt220");
  sd_bus_message_append(m, "(sv)", "ExecStart", "a(sasb)", 1, "/bin/sh", 3, "sh", "-c", script, 1);
  sd_bus_message_close_container(m);
  sd_bus_message_append(m, "a(sa(sv))", 0);
  return call;
}

/// Opens the machine's terminal by our path to it.
Fd openFar(const Machine& machine, const std::string& path) {
  return Fd{open((machine.root() + path).c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC)};
}

TEST_F(GuestMachine, ShellAskedForAsRootIsTheAgents) {
  Machine machine({}, waitForEver);
  auto [own, path] = openTerminal(machine);
  Bus bus = connectTo(machine);
  {
    const Fd far = openFar(machine, path);
    const Answer answer =
        ask(bus, shellCall(bus, far.get(), "root", "id -un; tty; echo $TERM; pwd; nohup sleep 7777 &"));
    EXPECT_EQ(answer.error, "");
    const char* job = nullptr;
    EXPECT_GE(sd_bus_message_read(answer.message.get(), "o", &job), 0);
    EXPECT_STREQ(job, "/org/freedesktop/systemd1/job/1");
  }
  bus.reset();  // machined does not stay; the shell does
  // Ends, although something was left behind that ignores SIGHUP: it is killed.
  EXPECT_TRUE(readAll(own.get()).starts_with("agent\r\n" + path + "\r\nvt220\r\n/\r\n"));
}

TEST_F(GuestMachine, ShellOfAUserThatIsNotThereIsRefused) {
  Machine machine({}, waitForEver);
  const Bus bus = connectTo(machine);
  EXPECT_EQ(ask(bus, shellCall(bus, 0, "bob", "true")).error, "no user bob in this machine");
}

TEST_F(GuestMachine, TellsSubscribersOfTheJob) {
  Machine machine({}, waitForEver);
  const Bus bus = connectTo(machine);
  EXPECT_EQ(ask(bus, newCall(bus, "org.freedesktop.systemd1.Manager", "Subscribe")).error, "");
  std::string told;
  const auto note = [](sd_bus_message* signal, void* to, sd_bus_error*) {
    uint32_t id = 0;
    const char *job = nullptr, *unit = nullptr, *result = nullptr;
    EXPECT_GE(sd_bus_message_read(signal, "uoss", &id, &job, &unit, &result), 0);
    *static_cast<std::string*>(to) = std::string(unit) + " " + result;
    return 0;
  };
  EXPECT_GE(sd_bus_match_signal(bus.get(), nullptr, "org.freedesktop.systemd1", nullptr,
                                "org.freedesktop.systemd1.Manager", "JobRemoved", note, &told),
            0);
  EXPECT_EQ(ask(bus, shellCall(bus, STDERR_FILENO, "agent", "true")).error, "");
  while (told.empty() &&
         (sd_bus_process(bus.get(), nullptr) > 0 || sd_bus_wait(bus.get(), patience * 1000) > 0)) {
  }
  EXPECT_EQ(told, "container-shell@1.service done");
}

TEST_F(GuestMachine, AnInteractiveShellHangsUpWhenTheMachineStops) {
  Machine machine({}, waitForEver);
  auto [own, path] = openTerminal(machine);
  const Bus bus = connectTo(machine);
  const Message call = execCall(bus, "", "exec sh -i", path, {});
  ASSERT_GE(sd_bus_send(bus.get(), call.get(), nullptr), 0);
  sd_bus_flush(bus.get());
  readUntil(own.get(), "$ ");
  EXPECT_EQ(machine.signalAndWait(SIGTERM), 0);
  EXPECT_FALSE(machine.rest().contains("killed\n"));  // in time, though it ignores SIGTERM
}

TEST_F(GuestMachine, RefusesMoreSessionsThanItsLimit) {
  Machine machine({}, waitForEver);
  const Bus bus = connectTo(machine);
  std::string error;
  int started = 0;
  for (; started < 100 && error.empty(); ++started)
    error = ask(bus, shellCall(bus, 0, "agent", "sleep infinity")).error;
  EXPECT_EQ(error, "too many sessions in this machine");
  EXPECT_EQ(started, 64);  // the payload is one of them
}

/// How far a process of the agent's gets with the machine's bus.
enum Reached { noFurtherThanConnect = 1, noFurtherThanAuth, all };
int reachedAsAgent(const Machine& machine) {
  const pid_t child = fork();
  if (child == 0) {
    if (chdir((machine.root() + "/run/dbus").c_str()) || setgid(65532) || setuid(65532)) _exit(0);
    const Fd client{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const sockaddr_un address{AF_UNIX, "system_bus_socket"};
    if (connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
      _exit(noFurtherThanConnect);
    const std::string hello = "\0AUTH EXTERNAL 3635353332\r\n"s;
    if (write(client.get(), hello.data(), hello.size()) < 0) _exit(0);
    _exit(readUntil(client.get(), "\r\n").starts_with("OK") && write(client.get(), "BEGIN\r\n", 7) == 7 &&
                  !readAll(client.get()).empty()
              ? all
              : noFurtherThanAuth);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}

TEST_F(GuestMachine, OnlyRootCanUseTheBus) {
  Machine machine({}, waitForEver);
  ASSERT_EQ(chmod((machine.root() + "/run/dbus").c_str(), 0755), 0);
  EXPECT_EQ(reachedAsAgent(machine), noFurtherThanConnect);
  // Were the modes ever wrong, the uid is looked at too.
  ASSERT_EQ(chmod(machine.socketPath().c_str(), 0666), 0);
  EXPECT_EQ(reachedAsAgent(machine), noFurtherThanAuth);
}

TEST_F(GuestMachine, StartsNothingWhileItStops) {
  Machine machine({"--stop-timeout=2"},
                  "trap 'echo bye' TERM; echo begun; while :; do sleep 7777 & wait; done");
  machine.printedUntil("begun\n");
  kill(machine.pid1(), SIGTERM);
  machine.printedUntil("bye\n");
  EXPECT_EQ(exec(machine, "true").refused, "the machine is stopping");
  EXPECT_EQ(machine.wait(), 0);
}

/// A client that speaks in bytes.
Fd rawClient(const Machine& machine) {
  Fd client{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un address{AF_UNIX, {}};
  machine.socketPath().copy(address.sun_path, sizeof address.sun_path - 1);
  EXPECT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return client;
}
void sendBytes(const Fd& client, const std::string& bytes) {
  send(client.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
}
const std::string authentication = "\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"s;

TEST_F(GuestMachine, OutlivesBadClients) {
  Machine machine({}, waitForEver);
  for (const auto& bytes : {std::string(1, '\0') + "GET / HTTP/1.1\r\n\r\n" + std::string(100'000, 'x'),
                            authentication + std::string(1000, '\xff'),
                            // The header of a call with a body of 64 MiB.
                            authentication + "l\1\0\1\0\0\0\4\1\0\0\0\0\0\0\0"s}) {
    const Fd client = rawClient(machine);
    sendBytes(client, bytes);
    EXPECT_TRUE(isClosed(client.get()));
  }
  EXPECT_EQ(exec(machine, "echo alive").output, "alive\n");
}

TEST_F(GuestMachine, OutlivesMoreClientsThanItHasDescriptors) {
  Machine machine({}, waitForEver);
  std::vector<Fd> clients;
  for (int i = 0; i < 30; ++i) {
    clients.push_back(rawClient(machine));
    sendBytes(clients.back(), authentication);
  }
  // A few are served, the others wait in the backlog and cost nothing.
  int served = 0;
  for (const auto& client : clients) {
    pollfd wait{client.get(), POLLIN, 0};
    served += poll(&wait, 1, served < 4 ? patience : 0);
  }
  EXPECT_EQ(served, 4);
  clients.clear();
  EXPECT_EQ(exec(machine, "echo alive").output, "alive\n");
}

TEST_F(GuestMachine, ClosesAConnectionThatDoesNotReadItsAnswers) {
  Machine machine({}, waitForEver);
  DBusMessage* ping = dbus_message_new_method_call("x.y", "/", DBUS_INTERFACE_PEER, "Ping");
  dbus_message_set_serial(ping, 1);
  char* bytes = nullptr;
  int size = 0;
  ASSERT_TRUE(dbus_message_marshal(ping, &bytes, &size));
  std::string pings;
  while (pings.size() < 1 << 20) pings.append(bytes, static_cast<std::size_t>(size));
  dbus_free(bytes);
  dbus_message_unref(ping);

  const Fd client = rawClient(machine);
  sendBytes(client, authentication);
  ssize_t sent = 0;
  for (int round = 0; round < 100 && sent >= 0; ++round)
    sent = send(client.get(), pings.data(), pings.size(), MSG_NOSIGNAL);
  EXPECT_LT(sent, 0);
}

}  // namespace
}  // namespace agentmachine
