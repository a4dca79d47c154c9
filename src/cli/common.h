// What several commands need: cards from files, machines by the name a person typed, the root check.
#pragma once
#include <expected>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "plan/machine.h"

namespace agentmachine {

/// Does `act` for each name. One that fails doesn't keep the others from being tried; all failures are told.
void forEach(const std::vector<std::string>& names, const std::function<void(const std::string&)>& act);

/// Throws Error that says so unless this process is root's. `what` is the command.
void requireRoot(const std::string& what);

/// The name of the person who runs this command: behind sudo, or as they logged in.
std::string caller();

/// Has the journal tell, among all that concerns this machine, that the caller did this: the command's name
/// and, where that isn't all, to what.
void tellOfCommand(const Machine& machine, const std::string& command, const std::string& detail = "");

/// Reads a card, or what is wrong with it; its format is told by the ending, .toml or anything else. Throws
/// Error if there is nothing that can be read.
std::expected<Card, std::vector<Problem>> readCard(const std::string& path);

/// The same. Throws Error that lists every problem.
Card loadCard(const std::string& path);

/// The machine a person means: by id or by machine name. Throws Error that says what to type if there is
/// none.
Machine findMachine(const Settings& settings, const std::string& idOrName);

/// As findMachine, but without a machine a card of that id in the cards directory will do; then the card.
struct MachineOrCard {
  std::optional<Machine> machine;
  std::optional<Card> card;
};
MachineOrCard findMachineOrCard(const Settings& settings, const std::string& idOrName);

/// Of an option: a whole number in this range.
CLI::Validator wholeNumber(std::uint64_t least, std::uint64_t most);

/// Whether colours belong on standard output: a terminal, and NO_COLOR (no-color.org) is not set.
bool useColour();

/// "3.2 GiB"
std::string humanBytes(std::uint64_t bytes);
/// "2h 5min", in systemd's style, two units at most.
std::string humanDuration(std::chrono::seconds duration);
/// "2026-11-24 04:20:01" in local time.
std::string humanTime(std::chrono::sys_seconds time);

/// Prints rows under their headings in aligned columns, and whatever a terminal would obey escaped.
void printTable(const std::vector<std::string>& headings, std::vector<std::vector<std::string>> rows);

}  // namespace agentmachine
