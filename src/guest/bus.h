// The machine's system bus, as far as `machinectl shell` and `agentmachine exec` need one: only root can
// connect, and all it can do is to run commands. Never blocks; never routes a message between clients.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <dbus/dbus.h>
#include <poll.h>

#include "guest/command.h"
#include "guest/sessions.h"

namespace agentmachine {

class Bus {
 public:
  struct Machine {
    User payloadUser;
    std::string directory;    ///< where a command runs that names no directory
    Environment environment;  ///< of every session; holds no secret
  };

  struct Unref {
    void operator()(DBusMessage* message) const { dbus_message_unref(message); }
  };
  using Reply = std::unique_ptr<DBusMessage, Unref>;  ///< null: later

  /// Listens on a socket with mode 0600 at `path`. Throws Error. `sessions` must outlive this.
  Bus(const std::string& path, Machine machine, Sessions& sessions);
  ~Bus();
  Bus(const Bus&) = delete;
  Bus& operator=(const Bus&) = delete;

  /// What to poll(2) for, added at the end of `polls`.
  void prepare(std::vector<pollfd>& polls);
  /// Takes what prepare() added, with the result of poll(2), and does what is to be done.
  void handle(std::span<const pollfd> polls);

  /// From now on no session is started.
  void close() { open_ = false; }

 private:
  struct Connection {
    DBusConnection* bus;
    bool subscribed = false;
    std::vector<pid_t> execs;  ///< die with the connection
  };
  using Method = Reply (Bus::*)(Connection&, DBusMessage*);
  struct Known;
  static const Known methods[];

  static dbus_bool_t addWatch(DBusWatch* watch, void* self);
  static void removeWatch(DBusWatch* watch, void* self);
  void accept(DBusConnection* connection);
  DBusHandlerResult receive(DBusConnection* from, DBusMessage* message);
  void closeConnection(Connection& connection);
  void dispatch();

  Reply hello(Connection&, DBusMessage* call);
  Reply acknowledge(Connection&, DBusMessage* call);
  Reply subscribe(Connection&, DBusMessage* call);
  Reply startTransientUnit(Connection&, DBusMessage* call);
  Reply exec(Connection&, DBusMessage* call);

  User resolve(const std::string& user);
  pid_t start(Command& command, const User& user, Sessions::OnEnd onEnd);

  Machine machine_;
  Sessions& sessions_;
  bool open_ = true;
  unsigned names_ = 0;  ///< unique bus names given out
  unsigned jobs_ = 0;
  std::size_t maxConnections_;
  DBusServer* server_;
  std::vector<DBusWatch*> watches_;
  DBusWatch* listening_;            ///< the server's own among them
  std::vector<DBusWatch*> polled_;  ///< in the order that prepare() added them; null if gone since
  std::vector<Connection> connections_;
};

}  // namespace agentmachine
