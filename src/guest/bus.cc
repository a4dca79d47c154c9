#include "guest/bus.h"

#include <algorithm>
#include <new>

#include <sys/resource.h>
#include <sys/stat.h>

#include "util/error.h"

namespace agentmachine {

namespace {

// Far above what anyone needs, far below what would hurt.
constexpr std::size_t maxConnections = 32;
constexpr long maxMessageBytes = 1 << 20;
constexpr long maxMessageFds = 3;

constexpr const char* manager = "org.freedesktop.systemd1.Manager";

/// libdbus says with a null or FALSE only that there is no memory.
template <class Result>
Result enough(Result result) {
  if (!result) throw std::bad_alloc();
  return result;
}

/// libdbus is C: an exception must not pass through it. False is "no memory", which it handles.
template <class Body>
dbus_bool_t guarded(Body&& body) noexcept {
  try {
    body();
    return TRUE;
  } catch (...) {
    return FALSE;
  }
}

/// Takes a reply to `call` over and signs it with the name by which we were called, as a bus would.
Bus::Reply named(DBusMessage* call, DBusMessage* message) {
  Bus::Reply reply(enough(message));
  if (const char* name = dbus_message_get_destination(call)) enough(dbus_message_set_sender(message, name));
  return reply;
}

std::size_t connectionLimit() {
  // A connection can hold its socket and the descriptors of two messages; leave enough to PID 1 itself, for a
  // listener that can't accept would keep it busy.
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  return std::clamp<std::size_t>(files.rlim_cur / 16, 2, maxConnections);
}

}  // namespace

struct Bus::Known {
  const char* interface;
  const char* member;
  const char* signature;
  Method method;
};

const Bus::Known Bus::methods[] = {
    // What a client says to any bus. We send no signal that has to be asked for by a match.
    {DBUS_INTERFACE_DBUS, "Hello", "", &Bus::hello},
    {DBUS_INTERFACE_DBUS, "AddMatch", "s", &Bus::acknowledge},
    {DBUS_INTERFACE_DBUS, "RemoveMatch", "s", &Bus::acknowledge},
    {manager, "Subscribe", "", &Bus::subscribe},
    {manager, "StartTransientUnit", TransientUnit::signature, &Bus::startTransientUnit},
    {"org.agentmachine.Init1", "Exec", execSignature, &Bus::exec},
};

Bus::Bus(const std::string& path, Machine machine, Sessions& sessions)
    : machine_(std::move(machine)), sessions_(sessions), maxConnections_(connectionLimit()) {
  DBusError error = DBUS_ERROR_INIT;
  server_ = dbus_server_listen(("unix:path=" + path).c_str(), &error);
  if (!server_) {
    const Error failure("listen on " + path + ": " + error.message);
    dbus_error_free(&error);
    throw failure;
  }
  // libdbus opens it to everybody. Nothing but us runs yet; and others are refused by their uid, too: its
  // rule for EXTERNAL without a function of ours is "root, or the server's own user", by SO_PEERCRED.
  if (chmod(path.c_str(), 0600) < 0) throw errnoError("chmod " + path);
  const char* mechanisms[] = {"EXTERNAL", nullptr};
  enough(dbus_server_set_auth_mechanisms(server_, mechanisms));
  enough(dbus_server_set_watch_functions(server_, &Bus::addWatch, &Bus::removeWatch, nullptr, this, nullptr));
  listening_ = watches_.at(0);
  dbus_server_set_new_connection_function(
      server_,
      [](DBusServer*, DBusConnection* connection, void* self) {
        static_cast<Bus*>(self)->accept(connection);
      },
      this, nullptr);
}

Bus::~Bus() {
  for (auto& connection : connections_) closeConnection(connection);
  dbus_server_disconnect(server_);
  dbus_server_unref(server_);
}

dbus_bool_t Bus::addWatch(DBusWatch* watch, void* self) {
  return guarded([&] { static_cast<Bus*>(self)->watches_.push_back(watch); });
}

void Bus::removeWatch(DBusWatch* watch, void* self) {
  Bus& bus = *static_cast<Bus*>(self);
  std::erase(bus.watches_, watch);
  std::ranges::replace(bus.polled_, watch, nullptr);
}

void Bus::accept(DBusConnection* connection) {
  // A connection that we take no reference to is closed by libdbus.
  const auto filter = [](DBusConnection* from, DBusMessage* message, void* self) {
    return static_cast<Bus*>(self)->receive(from, message);
  };
  if (!guarded([&] { connections_.push_back({dbus_connection_ref(connection), false, {}}); })) return;
  dbus_connection_set_max_message_size(connection, maxMessageBytes);
  dbus_connection_set_max_received_size(connection, maxMessageBytes);
  dbus_connection_set_max_message_unix_fds(connection, maxMessageFds);
  dbus_connection_set_max_received_unix_fds(connection, maxMessageFds);
  if (!dbus_connection_add_filter(connection, filter, this, nullptr) ||
      !dbus_connection_set_watch_functions(connection, &Bus::addWatch, &Bus::removeWatch, nullptr, this,
                                           nullptr))
    dbus_connection_close(connection);
}

void Bus::closeConnection(Connection& connection) {
  for (const pid_t session : connection.execs) sessions_.kill(session);
  dbus_connection_set_watch_functions(connection.bus, nullptr, nullptr, nullptr, nullptr, nullptr);
  dbus_connection_close(connection.bus);
  dbus_connection_unref(connection.bus);
}

void Bus::prepare(std::vector<pollfd>& polls) {
  polled_.clear();
  for (DBusWatch* watch : watches_) {
    if (!dbus_watch_get_enabled(watch)) continue;
    if (watch == listening_ && connections_.size() >= maxConnections_) continue;
    const unsigned flags = dbus_watch_get_flags(watch);
    short events = 0;
    if (flags & DBUS_WATCH_READABLE) events |= POLLIN;
    if (flags & DBUS_WATCH_WRITABLE) events |= POLLOUT;
    polled_.push_back(watch);
    polls.push_back({dbus_watch_get_unix_fd(watch), events, 0});
  }
}

void Bus::handle(std::span<const pollfd> polls) {
  for (std::size_t i = 0; i < polls.size(); ++i) {
    if (!polled_[i] || !polls[i].revents) continue;
    unsigned flags = 0;
    if (polls[i].revents & POLLIN) flags |= DBUS_WATCH_READABLE;
    if (polls[i].revents & POLLOUT) flags |= DBUS_WATCH_WRITABLE;
    if (polls[i].revents & POLLERR) flags |= DBUS_WATCH_ERROR;
    if (polls[i].revents & POLLHUP) flags |= DBUS_WATCH_HANGUP;
    dbus_watch_handle(polled_[i], flags);
  }
  dispatch();
}

void Bus::dispatch() {
  for (const auto& connection : connections_) {
    while (dbus_connection_dispatch(connection.bus) == DBUS_DISPATCH_DATA_REMAINS) {
    }
    // One that asks and does not read the answers.
    if (dbus_connection_get_outgoing_size(connection.bus) > maxMessageBytes)
      dbus_connection_close(connection.bus);
  }
  std::erase_if(connections_, [&](Connection& connection) {
    const bool gone = !dbus_connection_get_is_connected(connection.bus);
    if (gone) closeConnection(connection);
    return gone;
  });
}

DBusHandlerResult Bus::receive(DBusConnection* from, DBusMessage* message) {
  const auto* known = std::ranges::find_if(methods, [&](const Known& candidate) {
    return dbus_message_is_method_call(message, candidate.interface, candidate.member);
  });
  if (known == std::end(methods))
    return DBUS_HANDLER_RESULT_NOT_YET_HANDLED;  // libdbus refuses it; Ping it answers
  const bool answered = guarded([&] {
    Reply reply;
    try {
      if (!dbus_message_has_signature(message, known->signature))
        throw Error(std::string(known->member) + ": its arguments must be of signature \"" +
                    known->signature + "\"");
      reply = (this->*known->method)(*std::ranges::find(connections_, from, &Connection::bus), message);
    } catch (const Error& error) {
      reply = named(message, dbus_message_new_error(message, DBUS_ERROR_FAILED, error.what()));
    }
    if (reply && !dbus_message_get_no_reply(message))
      enough(dbus_connection_send(from, reply.get(), nullptr));
  });
  // Not "again when there is memory": a session may have been started.
  if (!answered) dbus_connection_close(from);
  return DBUS_HANDLER_RESULT_HANDLED;
}

Bus::Reply Bus::acknowledge(Connection&, DBusMessage* call) {
  return named(call, dbus_message_new_method_return(call));
}

Bus::Reply Bus::hello(Connection& from, DBusMessage* call) {
  Reply reply = acknowledge(from, call);
  const std::string name = ":1." + std::to_string(++names_);
  const char* text = name.c_str();
  enough(dbus_message_append_args(reply.get(), DBUS_TYPE_STRING, &text, DBUS_TYPE_INVALID));
  return reply;
}

Bus::Reply Bus::subscribe(Connection& from, DBusMessage* call) {
  from.subscribed = true;
  return acknowledge(from, call);
}

pid_t Bus::start(Command& command, const User& user, Sessions::OnEnd onEnd) {
  if (!open_) throw Error("the machine is stopping");
  if (command.directory.empty()) command.directory = machine_.directory;
  const bool ownHome = user.uid == machine_.payloadUser.uid;
  return sessions_.start(command, user,
                         commandEnvironment(machine_.environment, user, ownHome, command.environment),
                         std::move(onEnd));
}

User Bus::resolve(const std::string& user) {
  if (user.empty()) return machine_.payloadUser;
  if (auto found = findUser(user)) return *found;
  throw Error("no user " + user + " in this machine");
}

Bus::Reply Bus::startTransientUnit(Connection& from, DBusMessage* call) {
  TransientUnit unit = readTransientUnit(call);
  // `machinectl shell` asks for root unless told otherwise; here nobody is root without saying so to Exec.
  User user = resolve(unit.command.user);
  if (user.uid == 0) user = machine_.payloadUser;
  start(unit.command, user, [](pid_t, const Ending&) {});

  const std::uint32_t id = ++jobs_;
  const std::string job = "/org/freedesktop/systemd1/job/" + std::to_string(id);
  const char *path = job.c_str(), *name = unit.name.c_str(), *result = "done";
  Reply reply = acknowledge(from, call);
  enough(dbus_message_append_args(reply.get(), DBUS_TYPE_OBJECT_PATH, &path, DBUS_TYPE_INVALID));
  if (!from.subscribed) return reply;
  enough(dbus_connection_send(from.bus, reply.get(), nullptr));
  const Reply removed(enough(dbus_message_new_signal("/org/freedesktop/systemd1", manager, "JobRemoved")));
  enough(dbus_message_set_sender(removed.get(), "org.freedesktop.systemd1"));
  enough(dbus_message_append_args(removed.get(), DBUS_TYPE_UINT32, &id, DBUS_TYPE_OBJECT_PATH, &path,
                                  DBUS_TYPE_STRING, &name, DBUS_TYPE_STRING, &result, DBUS_TYPE_INVALID));
  enough(dbus_connection_send(from.bus, removed.get(), nullptr));
  return nullptr;
}

Bus::Reply Bus::exec(Connection& from, DBusMessage* call) {
  Command command = readExec(call);
  // The answer is made now: the call holds descriptors, and must not be kept until the command ends.
  auto onEnd = [this, reply = acknowledge(from, call)](pid_t session, const Ending& ending) {
    const auto waiting = std::ranges::find_if(
        connections_, [&](Connection& connection) { return std::erase(connection.execs, session) > 0; });
    if (waiting == connections_.end()) return;
    const dbus_int32_t code = ending.code;
    const dbus_bool_t signaled = ending.signaled;
    enough(dbus_message_append_args(reply.get(), DBUS_TYPE_INT32, &code, DBUS_TYPE_BOOLEAN, &signaled,
                                    DBUS_TYPE_INVALID));
    enough(dbus_connection_send(waiting->bus, reply.get(), nullptr));
  };
  from.execs.reserve(from.execs.size() + 1);
  from.execs.push_back(start(command, resolve(command.user), std::move(onEnd)));
  return nullptr;
}

}  // namespace agentmachine
