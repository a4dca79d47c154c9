// The sessions that run in the machine, the payload among them: started, ended as a whole, reaped. Knows no
// protocol.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <sys/types.h>

#include "guest/ending.h"
#include "guest/spawn.h"

namespace agentmachine {

class Sessions {
 public:
  /// Called once, when the session's first process has been reaped and the rest of it killed.
  using OnEnd = std::move_only_function<void(pid_t session, const Ending&)>;

  explicit Sessions(std::size_t limit) : limit_(limit) {}

  /// Starts a session; its first process is the name by which it goes. Throws Error, also if there are too
  /// many.
  pid_t start(const Command& command, const User& user, const Environment& environment, OnEnd onEnd);

  /// Kills all of a session, if it has not ended yet.
  void kill(pid_t session);

  /// Asks every process in the machine to end, the sessions at a terminal as if it had been hung up.
  void askAllToEnd();

  /// Reaps what has ended, orphans too. False if no process is left but us.
  bool reap();

 private:
  struct Session {
    std::string cgroup;
    bool atTerminal;
    OnEnd onEnd;
  };
  void killAllOf(pid_t session, const std::string& cgroup);

  std::size_t limit_;
  unsigned long long count_ = 0;
  std::map<pid_t, Session> sessions_;
  std::vector<std::string> endedCgroups_;  ///< to be removed when their last process has ended
};

}  // namespace agentmachine
