// The parts of agentmachine-init that need no machine. guest_machine_test.cc runs it for real.
#include <csignal>
#include <fstream>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest/command.h"
#include "guest/ending.h"
#include "guest/environment.h"
#include "guest/options.h"
#include "guest/user.h"
#include "util/error.h"

namespace agentmachine {
namespace {

/// What `body` throws; empty if nothing.
template <class Body>
std::string errorOf(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

TEST(GuestOptions, AreReadUpToTheCommand) {
  const Options options = parseOptions({"init", "--wait-interface=host0", "--user=worker", "--directory=/w",
                                        "--secret-env=KEY=/run/key", "--secret-env=B=/b", "--stop-timeout=90",
                                        "--", "serve", "--user=x"});
  EXPECT_EQ(options.waitInterface, "host0");
  EXPECT_EQ(options.user, "worker");
  EXPECT_EQ(options.directory, "/w");
  ASSERT_EQ(options.secrets.size(), 2u);
  EXPECT_EQ(options.secrets[0].name, "KEY");
  EXPECT_EQ(options.secrets[0].path, "/run/key");
  EXPECT_EQ(options.stopTimeout, std::chrono::seconds(90));
  EXPECT_EQ(options.command, (std::vector<std::string>{"serve", "--user=x"}));
}

TEST(GuestOptions, HaveDefaults) {
  const Options options = parseOptions({"init", "sh", "-c", "exit"});
  EXPECT_EQ(options.waitInterface, "");
  EXPECT_EQ(options.user, "agent");
  EXPECT_EQ(options.directory, "/workspace");
  EXPECT_EQ(options.stopTimeout, std::chrono::seconds(10));
  EXPECT_EQ(options.command, (std::vector<std::string>{"sh", "-c", "exit"}));
}

TEST(GuestOptions, SayWhatIsWrong) {
  const auto error = [](const std::string& option) {
    return errorOf([&] { parseOptions({"init", option, "--", "x"}); });
  };
  EXPECT_EQ(error("--colour=red"), "bad option --colour=red");
  EXPECT_EQ(error("--directory=w"), "--directory=w: not an absolute path");
  for (const std::string bad : {"KEY", "=/k", "1KEY=/k", "K-EY=/k", "KEY=k", "KEY="})
    EXPECT_EQ(error("--secret-env=" + bad), "--secret-env=" + bad + ": not NAME=/PATH");
  for (const std::string bad : {"0", "-1", "3601", "x", "1s", "", "99999999999"})
    EXPECT_EQ(error("--stop-timeout=" + bad),
              "--stop-timeout=" + bad + ": not a number of seconds from 1 to 3600");
  EXPECT_EQ(errorOf([] { parseOptions({"init", "--user=agent"}); }),
            "no command given: agentmachine-init [OPTIONS] -- COMMAND [ARGUMENT...]");
}

const User agent{"agent", 65532, 65532, "/home/agent", "/bin/dash"};

TEST(GuestEnvironment, LeavesOutWhatIsForPid1) {
  const char* given[] = {
      "NOTIFY_SOCKET=/n", "LISTEN_FDS=1", "container=systemd-nspawn", "container_uuid=1", "HOME=/root",
      "USER=root",        "LOGNAME=root", "CREDENTIALS_DIRECTORY=/c", "PATH=/bin",        "HTTP_PROXY=p=",
      "EMPTY=",           nullptr};
  EXPECT_EQ(payloadEnvironment(given), (Environment{{"EMPTY", ""}, {"HTTP_PROXY", "p="}, {"PATH", "/bin"}}));
}

TEST(GuestEnvironment, IsCompletedFromThePasswordFile) {
  const Environment bare = commandEnvironment({}, agent, true, {});
  EXPECT_EQ(bare.at("HOME"), "/home/agent");
  EXPECT_EQ(bare.at("USER"), "agent");
  EXPECT_EQ(bare.at("LOGNAME"), "agent");
  EXPECT_EQ(bare.at("SHELL"), "/bin/dash");
  EXPECT_TRUE(bare.at("PATH").ends_with("/usr/bin:/sbin:/bin"));
  const Environment set =
      commandEnvironment({{"HOME", "/tmp/home"}, {"PATH", "/x"}}, agent, true, {"TERM=vt", "PATH=/y"});
  EXPECT_EQ(set.at("HOME"), "/tmp/home");
  EXPECT_EQ(set.at("PATH"), "/y");
  EXPECT_EQ(set.at("TERM"), "vt");
}

TEST(GuestEnvironment, GivesAnotherUserNotTheAgentsHome) {
  const User root{"root", 0, 0, "/root", "/bin/sh"};
  EXPECT_EQ(commandEnvironment({{"HOME", "/tmp/home"}}, root, false, {}).at("HOME"), "/root");
}

TEST(GuestUser, IsFoundByNameAndNumber) {
  std::string path = testing::TempDir() + "passwdXXXXXX";
  close(mkstemp(path.data()));
  std::ofstream(path) << "root:x:0:0::/root:/bin/sh\nbroken line\nagent:x:65532:65533::/home/agent:\n";
  const auto byName = findUser("agent", path.c_str());
  ASSERT_TRUE(byName);
  EXPECT_EQ(byName->uid, 65532u);
  EXPECT_EQ(byName->gid, 65533u);
  EXPECT_EQ(byName->home, "/home/agent");
  EXPECT_EQ(byName->shell, "/bin/sh");
  EXPECT_EQ(findUser("65532", path.c_str())->name, "agent");
  EXPECT_FALSE(findUser("nobody", path.c_str()));
  EXPECT_FALSE(findUser("", path.c_str()));
  unlink(path.c_str());
  EXPECT_EQ(errorOf([&] { findUser("agent", path.c_str()); }),
            "read " + path + ": No such file or directory");
}

TEST(GuestEnding, IsSaidAsPeopleAndSystemdReadIt) {
  const Ending seven = endingOf(W_EXITCODE(7, 0));
  EXPECT_EQ(describe(seven), "exited with status 7");
  EXPECT_EQ(exitCodeOf(seven), 7);
  const Ending crash = endingOf(W_EXITCODE(0, SIGSEGV));
  EXPECT_EQ(describe(crash), "killed by signal 11 (SEGV)");
  EXPECT_EQ(exitCodeOf(crash), 139);
  EXPECT_EQ(describe(endingOf(W_EXITCODE(0, 40))), "killed by signal 40");
}

TEST(GuestEnding, NeverAsksToBeBootedAgain) {
  EXPECT_EQ(exitCodeOf({133, false}), 1);
  EXPECT_EQ(exitCodeOf({SIGTRAP, true}), 1);
}

/// A call under construction, in the order of its arguments.
class Call {
 public:
  explicit Call(const char* member) : message_(dbus_message_new_method_call("org.x", "/x", "org.x", member)) {
    dbus_message_iter_init_append(message_, &at_);
  }
  ~Call() { dbus_message_unref(message_); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  DBusMessage* get() { return message_; }
  DBusMessageIter& at() { return at_; }

  static void putString(DBusMessageIter& at, const char* text) {
    dbus_message_iter_append_basic(&at, DBUS_TYPE_STRING, &text);
  }
  static void putStrings(DBusMessageIter& at, const std::vector<const char*>& texts) {
    DBusMessageIter array;
    dbus_message_iter_open_container(&at, DBUS_TYPE_ARRAY, "s", &array);
    for (const char* text : texts) putString(array, text);
    dbus_message_iter_close_container(&at, &array);
  }
  static void putExecStart(DBusMessageIter& at, const std::vector<std::vector<const char*>>& commands) {
    DBusMessageIter array, entry;
    dbus_message_iter_open_container(&at, DBUS_TYPE_ARRAY, "(sasb)", &array);
    for (const auto& argv : commands) {
      dbus_message_iter_open_container(&array, DBUS_TYPE_STRUCT, nullptr, &entry);
      putString(entry, "/bin/sh");
      putStrings(entry, argv);
      const dbus_bool_t no = FALSE;
      dbus_message_iter_append_basic(&entry, DBUS_TYPE_BOOLEAN, &no);
      dbus_message_iter_close_container(&array, &entry);
    }
    dbus_message_iter_close_container(&at, &array);
  }

 private:
  DBusMessage* message_;
  DBusMessageIter at_{};
};

/// StartTransientUnit with these properties.
class UnitCall : public Call {
 public:
  UnitCall() : Call("StartTransientUnit") {
    putString(at(), "shell.service");
    putString(at(), "fail");
    dbus_message_iter_open_container(&at(), DBUS_TYPE_ARRAY, "(sv)", &properties_);
  }
  template <class Put>
  UnitCall& property(const char* name, const char* signature, Put put) {
    DBusMessageIter pair, value;
    dbus_message_iter_open_container(&properties_, DBUS_TYPE_STRUCT, nullptr, &pair);
    putString(pair, name);
    dbus_message_iter_open_container(&pair, DBUS_TYPE_VARIANT, signature, &value);
    put(value);
    dbus_message_iter_close_container(&pair, &value);
    dbus_message_iter_close_container(&properties_, &pair);
    return *this;
  }
  UnitCall& property(const char* name, const char* text) {
    return property(name, "s", [&](DBusMessageIter& value) { putString(value, text); });
  }
  UnitCall& descriptor(const char* name, int fd) {
    return property(name, "h", [&](DBusMessageIter& value) {
      dbus_message_iter_append_basic(&value, DBUS_TYPE_UNIX_FD, &fd);
    });
  }
  UnitCall& execStart(const std::vector<std::vector<const char*>>& commands) {
    return property("ExecStart", "a(sasb)", [&](DBusMessageIter& value) { putExecStart(value, commands); });
  }
  TransientUnit read() {
    dbus_message_iter_close_container(&at(), &properties_);
    DBusMessageIter auxiliary;
    dbus_message_iter_open_container(&at(), DBUS_TYPE_ARRAY, "(sa(sv))", &auxiliary);
    dbus_message_iter_close_container(&at(), &auxiliary);
    EXPECT_TRUE(dbus_message_has_signature(get(), TransientUnit::signature));
    return readTransientUnit(get());
  }

 private:
  DBusMessageIter properties_{};
};

TEST(GuestCommand, IsReadFromATransientUnit) {
  int pipe[2];
  ASSERT_EQ(pipe2(pipe, O_CLOEXEC), 0);
  const TransientUnit unit =
      UnitCall()
          .property("Description", "passed over")
          .property("User", "nobody")
          .property("WorkingDirectory", "-~")
          .property("Nested", "a(sv)",
                    [](DBusMessageIter& value) {
                      DBusMessageIter array;
                      dbus_message_iter_open_container(&value, DBUS_TYPE_ARRAY, "(sv)", &array);
                      dbus_message_iter_close_container(&value, &array);
                    })
          .property("Environment", "as",
                    [](DBusMessageIter& value) { Call::putStrings(value, {"TERM=vt", "A=b=c"}); })
          .descriptor("StandardInputFileDescriptor", pipe[0])
          .descriptor("StandardOutputFileDescriptor", pipe[1])
          .execStart({{"sh", "-l"}})
          .read();
  close(pipe[0]);
  close(pipe[1]);
  EXPECT_EQ(unit.name, "shell.service");
  EXPECT_EQ(unit.command.path, "/bin/sh");
  EXPECT_EQ(unit.command.argv, (std::vector<std::string>{"sh", "-l"}));
  EXPECT_EQ(unit.command.user, "nobody");
  EXPECT_EQ(unit.command.directory, "-~");
  EXPECT_EQ(unit.command.environment, (std::vector<std::string>{"TERM=vt", "A=b=c"}));
  ASSERT_EQ(write(unit.command.streams[1].get(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(read(unit.command.streams[0].get(), &byte, 1), 1);
  EXPECT_FALSE(unit.command.streams[2]);
}

TEST(GuestCommand, KnownPropertiesOfAnotherTypeArePassedOver) {
  const auto number = [](DBusMessageIter& value) {
    const dbus_uint32_t seven = 7;
    dbus_message_iter_append_basic(&value, DBUS_TYPE_UINT32, &seven);
  };
  EXPECT_EQ(UnitCall().property("User", "u", number).execStart({{"sh"}}).read().command.user, "");
}

TEST(GuestCommand, MustBeOne) {
  EXPECT_EQ(errorOf([] { UnitCall().read(); }), "no command given");
  EXPECT_EQ(errorOf([] { UnitCall().execStart({{}}).read(); }), "no command given");
  EXPECT_EQ(errorOf([] { UnitCall().execStart({{"a"}, {"b"}}).read(); }), "ExecStart: more than one command");
}

struct ExecArguments {
  std::vector<const char*> argv = {"ls", "-l"};
  std::vector<const char*> environment = {"A=1"};
  const char* terminal = "";
  int streams = 3;
};

Command execOf(const ExecArguments& arguments) {
  Call call("Exec");
  Call::putString(call.at(), "root");
  Call::putStrings(call.at(), arguments.argv);
  Call::putStrings(call.at(), arguments.environment);
  Call::putString(call.at(), "/w");
  Call::putString(call.at(), arguments.terminal);
  DBusMessageIter array;
  dbus_message_iter_open_container(&call.at(), DBUS_TYPE_ARRAY, "h", &array);
  for (int fd = 0; fd < arguments.streams; ++fd)
    dbus_message_iter_append_basic(&array, DBUS_TYPE_UNIX_FD, &fd);
  dbus_message_iter_close_container(&call.at(), &array);
  EXPECT_TRUE(dbus_message_has_signature(call.get(), execSignature));
  return readExec(call.get());
}

TEST(GuestCommand, IsReadFromExec) {
  const Command command = execOf({});
  EXPECT_EQ(command.user, "root");
  EXPECT_EQ(command.path, "ls");
  EXPECT_EQ(command.argv, (std::vector<std::string>{"ls", "-l"}));
  EXPECT_EQ(command.environment, std::vector<std::string>{"A=1"});
  EXPECT_EQ(command.directory, "/w");
  for (const Fd& stream : command.streams) EXPECT_TRUE(stream);
  EXPECT_EQ(execOf({.terminal = "/dev/pts/12", .streams = 0}).terminal, "/dev/pts/12");
}

TEST(GuestCommand, ExecRefusesWhatMakesNoSense) {
  EXPECT_EQ(errorOf([] { execOf({.argv = {}}); }), "no command given");
  EXPECT_EQ(errorOf([] { execOf({.argv = {""}}); }), "no command given");
  EXPECT_EQ(errorOf([] { execOf({.environment = {"A"}}); }), "environment: \"A\" is not NAME=VALUE");
  EXPECT_EQ(errorOf([] { execOf({.environment = {"=A"}}); }), "environment: \"=A\" is not NAME=VALUE");
  for (int streams : {0, 2})
    EXPECT_EQ(errorOf([&] { execOf({.streams = streams}); }),
              "streams: give three of them, or a terminal and none");
  EXPECT_EQ(errorOf([] { execOf({.streams = 4}); }), "streams: more than three");
  EXPECT_EQ(errorOf([] { execOf({.terminal = "/dev/pts/1"}); }),
            "streams: give three of them, or a terminal and none");
  for (const char* bad :
       {"/etc/passwd", "/dev/pts/", "/dev/pts/../x", "/dev/pts/ptmx", "/dev/pts/1234567890", "pts/1"})
    EXPECT_EQ(errorOf([&] { execOf({.terminal = bad, .streams = 0}); }),
              "terminal: \"" + std::string(bad) + "\" is not /dev/pts/N");
}

}  // namespace
}  // namespace agentmachine
