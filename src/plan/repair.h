// What brings a host to what its cards say: what belongs to no machine goes, what a machine lacks comes.
// Pure: no I/O.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "plan/plan.h"
#include "plan/snapshot.h"

namespace agentmachine {

/// What is at paths; one where nothing is, is absent.
using FoundAt = std::map<std::string, Found>;

/// Whether what an action of a plan writes is there, and is what it writes. What writes nothing is as
/// planned.
enum class Rendered { asPlanned, missing, altered };
Rendered compare(const Action& action, const FoundAt& found);

/// The path that an action writes, or "".
std::string pathOf(const Action& action);

/// The paths that the functions below want to have looked at.
std::vector<std::string> pathsToLookAt(const Host& host, const Remains& remains);

/// Takes away what no machine of the state has any more, keys first. Nothing is touched that can't be told to
/// be ours: in directories that others write to, a link, or a file that says so.
Plan planLeftovers(const Host& host, const Remains& remains, const FoundAt& found);

/// The machine that has what an action of planLeftovers takes away again when it is started; null if none has
/// it.
const Machine* whoseRun(const Action& action, const Host& host);

/// The part of planRender that is missing or altered. A machine that `run` started has a payload of its own.
Plan planMissing(const Machine& machine, const Host& host, const Remains& remains, const FoundAt& found);

}  // namespace agentmachine
