#include "cli/common.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <format>
#include <iostream>

#include <pwd.h>
#include <unistd.h>

#include "system/host.h"
#include "system/journal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace fs = std::filesystem;

namespace {

/// The card of this id in the cards directory, or nothing.
std::optional<std::string> cardPath(const Settings& settings, const AgentId& id) {
  for (const char* ending : {".json", ".toml"}) {
    std::string path = settings.cardsDirectory + "/" + id.str() + ending;
    if (fs::exists(path)) return path;
  }
  return std::nullopt;
}

std::optional<Machine> tryFindMachine(const Settings& settings, const std::string& idOrName) {
  // That one alone is read: what became of others' state, or is just becoming of it, is no matter of this
  // one.
  constexpr std::string_view prefix = "agent-";
  if (const auto id = AgentId::parse(idOrName))
    if (auto machine = readMachine(settings, *id)) return machine;
  if (!idOrName.starts_with(prefix)) return std::nullopt;
  const auto id = AgentId::parse(idOrName.substr(prefix.size()));
  return id ? readMachine(settings, *id) : std::nullopt;
}

/// Printed width of UTF-8 text whose characters are one column wide each.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](unsigned char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

void forEach(const std::vector<std::string>& names, const std::function<void(const std::string&)>& act) {
  std::string failures;
  for (const auto& name : names) {
    try {
      act(name);
    } catch (const Error& error) {
      failures += (failures.empty() ? "" : "\nagentmachine: ") + std::string(error.what());
    }
  }
  if (!failures.empty()) throw Error(failures);
}

void requireRoot(const std::string& what) {
  if (geteuid() != 0) throw Error(what + ": only root may do this; try: sudo agentmachine " + what);
}

std::string caller() {
  if (const char* name = std::getenv("SUDO_USER"); name && *name) return printable(name);
  uid_t user = geteuid();
  try {
    // Of the login; 4294967295 if there was none (proc(5)).
    const auto login = trim(readFile("/proc/self/loginuid", 16));
    std::uint32_t number = 0;
    const auto [end, error] = std::from_chars(login.data(), login.data() + login.size(), number);
    if (error == std::errc() && end == login.data() + login.size() && number != ~std::uint32_t{0})
      user = number;
  } catch (const Error&) {
    // A kernel without CONFIG_AUDIT.
  }
  const auto* entry = getpwuid(user);
  return entry ? printable(entry->pw_name) : std::to_string(user);
}

void tellOfCommand(const Machine& machine, const std::string& command, const std::string& detail) {
  const auto by = caller();
  tellJournal(machine,
              {.event = command,
               .message = std::format("{} by {}{}{}", command, by, detail.empty() ? "" : ": ", detail),
               .by = by});
}

std::expected<Card, std::vector<Problem>> readCard(const std::string& path) {
  // Whoever types an id here means the card of that id.
  if (!path.contains('/') && !path.contains('.') && !fs::exists(path))
    throw Error(std::format("there is no file \"{}\": a card is given by its file's name, like {}/{}.json",
                            path, Settings{}.cardsDirectory, path));
  const auto format = fs::path(path).extension() == ".toml" ? CardFormat::toml : CardFormat::json;
  return parseCard(readFile(path, maxCardBytes), format);
}

Card loadCard(const std::string& path) {
  auto card = readCard(path);
  if (!card) throw Error(trim(describe(path, card.error())));
  return std::move(*card);
}

Machine findMachine(const Settings& settings, const std::string& idOrName) {
  if (auto machine = tryFindMachine(settings, idOrName)) return std::move(*machine);
  throw Error(
      std::format("there is no machine \"{}\": `agentmachine ls` lists those there are, "
                  "`agentmachine create CARD` makes one",
                  idOrName));
}

MachineOrCard findMachineOrCard(const Settings& settings, const std::string& idOrName) {
  if (auto machine = tryFindMachine(settings, idOrName)) return {.machine = std::move(machine), .card = {}};
  const auto id = AgentId::parse(idOrName);
  if (!id) throw Error(std::format("\"{}\" is no agent id: {}", idOrName, id.error()));
  const auto path = cardPath(settings, *id);
  if (!path)
    throw Error(
        std::format("there is neither a machine \"{0}\" nor a card {1}/{0}.json or .toml: `agentmachine ls` "
                    "lists the machines there are",
                    idOrName, settings.cardsDirectory));
  auto card = loadCard(*path);
  if (card.id != *id)
    throw Error(std::format("{}: its agent_id is \"{}\", not \"{}\": rename one of them", *path,
                            card.id.str(), idOrName));
  return {.machine = {}, .card = std::move(card)};
}

CLI::Validator wholeNumber(std::uint64_t least, std::uint64_t most) {
  return {[least, most](const std::string& text) -> std::string {
            std::uint64_t number = 0;
            const auto* end = text.data() + text.size();
            const auto [next, error] = std::from_chars(text.data(), end, number);
            if (error == std::errc() && next == end && number >= least && number <= most) return "";
            return std::format("{} is no whole number from {} to {}", inQuotes(text), least, most);
          },
          "", ""};
}

bool useColour() {
  const char* noColour = std::getenv("NO_COLOR");
  return isatty(STDOUT_FILENO) && !(noColour && *noColour);
}

std::string humanBytes(std::uint64_t bytes) {
  constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < units.size(); ++unit) value /= 1024;
  return unit == 0 ? std::format("{} B", bytes) : std::format("{:.1f} {}", value, units[unit]);
}

std::string humanDuration(std::chrono::seconds duration) {
  using namespace std::chrono;
  if (duration < minutes(1)) return std::format("{}s", duration.count());
  if (duration < hours(1)) return std::format("{}min {}s", duration.count() / 60, duration.count() % 60);
  if (duration < days(1))
    return std::format("{}h {}min", duration.count() / 3600, duration.count() / 60 % 60);
  return std::format("{}d {}h", duration.count() / 86400, duration.count() / 3600 % 24);
}

std::string humanTime(std::chrono::sys_seconds time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm local{};
  localtime_r(&seconds, &local);
  char text[32];
  (void)std::strftime(text, sizeof text, "%F %T", &local);
  return text;
}

void printTable(const std::vector<std::string>& headings, std::vector<std::vector<std::string>> rows) {
  for (auto& row : rows)
    for (auto& cell : row) cell = printable(cell);
  std::vector<std::size_t> widths;
  for (std::size_t column = 0; column < headings.size(); ++column) {
    std::size_t widest = width(headings[column]);
    for (const auto& row : rows) widest = std::max(widest, width(row[column]));
    widths.push_back(widest);
  }
  const auto print = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (std::size_t column = 0; column < cells.size(); ++column) {
      line += cells[column];
      if (column + 1 < cells.size()) line.append(widths[column] - width(cells[column]) + 2, ' ');
    }
    return line;
  };
  const bool colour = useColour();
  std::cout << (colour ? "\033[1m" : "") << print(headings) << (colour ? "\033[0m" : "") << "\n";
  for (const auto& row : rows) std::cout << print(row) << "\n";
}

}  // namespace agentmachine
