#include "guest/sessions.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include <signal.h>
#include <sys/wait.h>

#include "guest/cgroup.h"
#include "util/error.h"

namespace agentmachine {

namespace {

/// Without cgroup2: what has made a session of its own is missed.
void killBySession(pid_t session) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    std::from_chars(name.data(), name.data() + name.size(), pid);
    if (pid > 1 && getsid(pid) == session) ::kill(pid, SIGKILL);
  }
}

}  // namespace

pid_t Sessions::start(const Command& command, const User& user, const Environment& environment, OnEnd onEnd) {
  if (sessions_.size() >= limit_) throw Error("too many sessions in this machine");
  const std::string cgroup = createCgroup("session-" + std::to_string(count_++));
  try {
    const pid_t pid = spawn(command, user, environment, cgroup);
    const bool atTerminal = !command.terminal.empty() || isatty(command.streams[0].get());
    sessions_.emplace(pid, Session{cgroup, atTerminal, std::move(onEnd)});
    return pid;
  } catch (...) {
    if (!cgroup.empty()) removeCgroup(cgroup);
    throw;
  }
}

void Sessions::killAllOf(pid_t session, const std::string& cgroup) {
  if (cgroup.empty()) return killBySession(session);
  try {
    killCgroup(cgroup);
  } catch (const Error&) {  // a kernel before 5.14
    killBySession(session);
  }
}

void Sessions::kill(pid_t session) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  // Also by pid: just forked, it may be in no group yet.
  ::kill(session, SIGKILL);
  killAllOf(session, found->second.cgroup);
}

void Sessions::askAllToEnd() {
  for (const auto& [pid, session] : sessions_)
    if (session.atTerminal) ::kill(pid, SIGHUP);  // interactive shells ignore SIGTERM
  ::kill(-1, SIGTERM);
  ::kill(-1, SIGCONT);
}

bool Sessions::reap() {
  int status = 0;
  pid_t pid = 0;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    auto ended = sessions_.extract(pid);
    if (ended.empty()) continue;
    Session& session = ended.mapped();
    killAllOf(pid, session.cgroup);
    if (!session.cgroup.empty()) endedCgroups_.push_back(session.cgroup);
    session.onEnd(pid, endingOf(status));
  }
  std::erase_if(endedCgroups_, removeCgroup);
  return pid == 0;
}

}  // namespace agentmachine
