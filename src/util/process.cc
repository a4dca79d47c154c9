#include "util/process.h"

#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/pipe.h"
#include "util/text.h"

extern char** environ;

namespace agentmachine {

namespace {

constexpr std::size_t maxCollected = 16 * 1024 * 1024;

bool isPassing(int error) {
  return error == EINTR || error == EAGAIN;
}

/// Appends what is there; false at end of file, or, with the cause in `failed`, if it can't be read.
bool drain(Fd& fd, std::string& into, int& failed) {
  char buffer[16384];
  const ssize_t n = read(fd.get(), buffer, sizeof buffer);
  if (n < 0 && isPassing(errno)) return true;
  if (n < 0) failed = errno;
  if (n <= 0) return false;
  if (into.size() < maxCollected) into.append(buffer, static_cast<std::size_t>(n));
  return true;
}

/// Starts it; each of `descriptors` is there under the number beside it.
pid_t spawn(const std::vector<std::string>& argv, const std::vector<std::pair<int, int>>& descriptors) {
  std::vector<char*> words;
  for (const auto& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const auto& [fd, number] : descriptors) posix_spawn_file_actions_adddup2(&actions, fd, number);
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, words[0], &actions, nullptr, words.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) throw errnoError("run " + argv[0], failed);
  return pid;
}

/// Its status, which counts for nothing if what it was told or said was `broken` off: it may have ended well
/// with half of its input.
int waitFor(pid_t pid, const std::string& name, int broken) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (broken) throw errnoError("talk to " + name, broken);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

ProcessResult runProcess(const std::vector<std::string>& argv, std::string_view input, Errors errors) {
  Pipe in = makePipe(), out = makePipe(), err = makePipe();
  std::vector<std::pair<int, int>> descriptors{{in.read.get(), 0}, {out.write.get(), 1}};
  if (errors == Errors::collected) descriptors.emplace_back(err.write.get(), 2);
  const pid_t pid = spawn(argv, descriptors);
  in.read.reset();
  out.write.reset();
  err.write.reset();
  fcntl(in.write.get(), F_SETFL, O_NONBLOCK);

  ProcessResult result;
  int broken = 0;
  while (out.read || err.read) {
    if (in.write && input.empty()) in.write.reset();
    pollfd polled[] = {
        {out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}, {in.write.get(), POLLOUT, 0}};
    if (poll(polled, 3, -1) < 0) continue;
    if (polled[0].revents && !drain(out.read, result.output, broken)) out.read.reset();
    if (polled[1].revents && !drain(err.read, result.errors, broken)) err.read.reset();
    if (polled[2].revents) {
      // A child that reads no input may close it: that is its right, and SIGPIPE is ignored by main.
      const ssize_t n = write(in.write.get(), input.data(), input.size());
      if (n > 0) input.remove_prefix(static_cast<std::size_t>(n));
      if (n < 0 && !isPassing(errno)) {
        if (errno != EPIPE) broken = errno;
        in.write.reset();
      }
    }
  }
  result.status = waitFor(pid, argv[0], broken);
  return result;
}

int runLines(const std::vector<std::string>& argv, const std::function<bool(const std::string&)>& line) {
  Pipe out = makePipe();
  const pid_t pid = spawn(argv, {{out.write.get(), 1}});
  out.write.reset();
  std::string text;
  int broken = 0;
  for (bool more = true; more;) {
    more = drain(out.read, text, broken);
    for (auto end = text.find('\n'); end != std::string::npos; end = text.find('\n')) {
      const std::string first = text.substr(0, end);
      text.erase(0, end + 1);
      if (line(first)) continue;
      kill(pid, SIGTERM);
      return waitFor(pid, argv[0], broken);
    }
  }
  if (!text.empty()) line(text);
  return waitFor(pid, argv[0], broken);
}

std::string runChecked(const std::vector<std::string>& argv, std::string_view input) {
  auto result = runProcess(argv, input);
  if (result.status == 0) return std::move(result.output);
  const auto cause = trim(result.errors);
  throw Error(argv[0] + ": " + (cause.empty() ? "exit status " + std::to_string(result.status) : cause));
}

}  // namespace agentmachine
