#include "guest/command.h"

#include <algorithm>

#include "util/error.h"

namespace agentmachine {

namespace {

// The readers take what the iterator stands on and move it on. Callers have compared the signature, so the
// types fit.

std::string readString(DBusMessageIter& at) {
  const char* text = nullptr;
  dbus_message_iter_get_basic(&at, static_cast<void*>(&text));
  dbus_message_iter_next(&at);
  return text;
}

Fd readDescriptor(DBusMessageIter& at) {
  int fd = -1;
  dbus_message_iter_get_basic(&at, &fd);  // a duplicate with O_CLOEXEC, or -1 if there are too many open
  dbus_message_iter_next(&at);
  if (fd < 0) throw Error("no file descriptor left in the machine's PID 1");
  return Fd{fd};
}

/// Calls `each` with an iterator inside the array (or struct) that `at` stands on, until it is at the end.
template <class Each>
void inside(DBusMessageIter& at, Each each) {
  DBusMessageIter element;
  dbus_message_iter_recurse(&at, &element);
  while (dbus_message_iter_get_arg_type(&element) != DBUS_TYPE_INVALID) each(element);
  dbus_message_iter_next(&at);
}

std::vector<std::string> readStrings(DBusMessageIter& at) {
  std::vector<std::string> texts;
  inside(at, [&](DBusMessageIter& element) { texts.push_back(readString(element)); });
  return texts;
}

/// a(sasb) or a(sasas): path, arguments, and flags that don't concern us.
void readExecStart(DBusMessageIter& value, Command& command) {
  inside(value, [&](DBusMessageIter& element) {
    if (!command.path.empty()) throw Error("ExecStart: more than one command");
    DBusMessageIter field;
    dbus_message_iter_recurse(&element, &field);
    command.path = readString(field);
    command.argv = readStrings(field);
    dbus_message_iter_next(&element);
  });
}

struct Property {
  const char* name;
  const char* signature;
  void (*read)(DBusMessageIter&, Command&);
};

constexpr Property properties[] = {
    {"ExecStart", "a(sasb)", readExecStart},
    {"ExecStartEx", "a(sasas)", readExecStart},
    {"User", "s", [](DBusMessageIter& value, Command& to) { to.user = readString(value); }},
    {"Environment", "as", [](DBusMessageIter& value, Command& to) { to.environment = readStrings(value); }},
    {"WorkingDirectory", "s", [](DBusMessageIter& value, Command& to) { to.directory = readString(value); }},
    {"StandardInputFileDescriptor", "h",
     [](DBusMessageIter& value, Command& to) { to.streams[0] = readDescriptor(value); }},
    {"StandardOutputFileDescriptor", "h",
     [](DBusMessageIter& value, Command& to) { to.streams[1] = readDescriptor(value); }},
    {"StandardErrorFileDescriptor", "h",
     [](DBusMessageIter& value, Command& to) { to.streams[2] = readDescriptor(value); }},
};

/// (sv); ours if both name and type are known.
void readProperty(DBusMessageIter& at, Command& command) {
  DBusMessageIter pair;
  dbus_message_iter_recurse(&at, &pair);
  const std::string name = readString(pair);
  DBusMessageIter value;
  dbus_message_iter_recurse(&pair, &value);
  char* signature = dbus_message_iter_get_signature(&value);
  if (!signature) throw std::bad_alloc();
  const auto* known = std::ranges::find_if(properties, [&](const Property& property) {
    return name == property.name && std::string_view(signature) == property.signature;
  });
  dbus_free(signature);
  if (known != std::end(properties)) known->read(value, command);
  dbus_message_iter_next(&at);
}

void check(const Command& command) {
  if (command.path.empty() || command.argv.empty()) throw Error("no command given");
  for (const auto& assignment : command.environment)
    if (assignment.find('=') == std::string::npos || assignment.starts_with('='))
      throw Error("environment: \"" + assignment + "\" is not NAME=VALUE");
}

bool isPseudoTerminal(std::string_view path) {
  constexpr std::string_view directory = "/dev/pts/";
  if (!path.starts_with(directory)) return false;
  path.remove_prefix(directory.size());
  return !path.empty() && path.size() < 10 &&
         std::ranges::all_of(path, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

TransientUnit readTransientUnit(DBusMessage* call) {
  TransientUnit unit;
  DBusMessageIter at;
  dbus_message_iter_init(call, &at);
  unit.name = readString(at);
  readString(at);  // the job mode: there is only one way to start here
  inside(at, [&](DBusMessageIter& property) { readProperty(property, unit.command); });
  check(unit.command);
  return unit;
}

Command readExec(DBusMessage* call) {
  Command command;
  DBusMessageIter at;
  dbus_message_iter_init(call, &at);
  command.user = readString(at);
  command.argv = readStrings(at);
  command.environment = readStrings(at);
  command.directory = readString(at);
  command.terminal = readString(at);
  std::size_t streams = 0;
  inside(at, [&](DBusMessageIter& element) {
    if (streams == command.streams.size()) throw Error("streams: more than three");
    command.streams[streams++] = readDescriptor(element);
  });
  if (!command.argv.empty()) command.path = command.argv[0];
  check(command);
  if (streams != (command.terminal.empty() ? command.streams.size() : 0))
    throw Error("streams: give three of them, or a terminal and none");
  if (!command.terminal.empty() && !isPseudoTerminal(command.terminal))
    throw Error("terminal: \"" + command.terminal + "\" is not /dev/pts/N");
  return command;
}

}  // namespace agentmachine
