#include "apply/key.h"

#include <format>

#include <sys/stat.h>

#include "apply/run.h"
#include "plan/policy.h"
#include "system/api_key.h"
#include "system/host.h"
#include "system/journal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/lock.h"

namespace agentmachine {

namespace {

/// Held while a machine's key is delivered or taken back, so that a key that changes just then can't outlive
/// the run: a machine that ends after it was asked for (isUp) takes the key back when we are done.
FileLock lockKey(const Settings& settings, const MachineName& machine, const MachinePaths& paths) {
  return {settings.runtimeDirectory + "/lock/key-" + machine.str(), paths.state};
}
FileLock lockKey(const Settings& settings, const Machine& machine) {
  return lockKey(settings, machine.name(),
                 machinePaths(settings, machine.card.id, machine.allocation.address));
}

void removeKeys(const MachinePaths& paths) {
  removeFile(paths.key);
  removeFile(paths.agentKey);
}

/// To the broker or to the agent, as the card says. Without a good key there is none afterwards: who removes
/// or empties a key file wants it to be used no more, and an old one that goes on working would hide the
/// fault until the next start.
void deliverKey(const Settings& settings, const Machine& machine) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  try {
    if (!machine.card.apiKeyFile) return removeKeys(paths);
    const auto key = readApiKey(*machine.card.apiKeyFile);
    if (machine.card.apiKeyDelivery == KeyDelivery::broker) {
      const auto broker = policyFor(machine.card, settings).broker.value();
      writeFileAtomically(paths.key, renderDeliveredKey(broker, key), 0440, FileOwner{0, proxyGroup()});
      removeFile(paths.agentKey);
    } else {
      writeFileAtomically(paths.agentKey, key, 0400, FileOwner{agentUid, agentUid});
      removeFile(paths.key);
    }
  } catch (...) {
    removeKeys(paths);
    throw;
  }
}

/// Has the key's file watched, if there is one. To be called before deliverKey: then no change falls between
/// the two.
void watchKey(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  if (machine.card.apiKeyFile)
    systemd.startWatch(paths.keyWatch, "API key of agent " + machine.card.id.str(),
                       machine.card.apiKeyFile->str());
  else
    systemd.stop(paths.keyWatch);
}

Error withoutKey(const Machine& machine, const Error& cause) {
  return Error(std::format("{}; agent {} has no key until the file is good again", cause.what(),
                           machine.card.id.str()));
}

/// What tells one state of a file from another, without reading it.
std::string stateOf(const std::string& path) {
  struct stat st{};
  if (stat(path.c_str(), &st) < 0) return "absent";
  return std::format("{}:{}:{}:{}.{}:{}.{}", st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec,
                     st.st_mtim.tv_nsec, st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

}  // namespace

void giveKey(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto lock = lockKey(settings, machine);
  const Machine present = presentMachine(settings, machine);
  watchKey(settings, present, systemd);
  deliverKey(settings, present);
}

void takeKeyBack(const Settings& settings, const MachineName& machine, const MachinePaths& paths) {
  const auto lock = lockKey(settings, machine, paths);
  removeKeys(paths);
}

void changeKey(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto lock = lockKey(settings, machine);
  if (!isUp(machine, systemd)) return;
  const Machine present = presentMachine(settings, machine);
  watchKey(settings, present, systemd);
  try {
    deliverKey(settings, present);
  } catch (const Error& cause) {
    throw withoutKey(machine, cause);
  }
}

void renewKey(const Settings& settings, const Machine& known, Systemd& systemd) {
  const auto lock = lockKey(settings, known);
  if (!isUp(known, systemd)) return;
  const Machine machine = presentMachine(settings, known);
  if (!machine.card.apiKeyFile) return;
  const std::string file = machine.card.apiKeyFile->str();
  // systemd doesn't watch while this runs, so a change meanwhile is looked for here.
  for (std::string state;;) {
    state = stateOf(file);
    try {
      deliverKey(settings, machine);
    } catch (const Error& cause) {
      if (state == stateOf(file)) throw withoutKey(machine, cause);
      continue;
    }
    if (state != stateOf(file)) continue;
    return tellJournal(machine,
                       {.event = "key", .message = "its key file changed; the key was handed over again"});
  }
}

void takeKeyBackByRecord(const AgentId& id) {
  const auto held = readHeld(id);
  takeKeyBack({}, MachineName(id), machinePaths({}, id, held ? held->address : Ipv4{}));
}

bool isDelivered(const Settings& settings, const Machine& machine) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const auto content = readFileIfExists(paths.key, 2 * maxKeyBytes);
  const auto broker = policyFor(machine.card, settings).broker;
  if (!content || !broker) return true;
  try {
    (void)deliveredKey(*content, *broker);
    return true;
  } catch (const Error&) {
    return false;
  }
}

void removeKeyLock(const Settings& settings, const Machine& machine) {
  lockKey(settings, machine).removeFile();
}

}  // namespace agentmachine
