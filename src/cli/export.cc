// export: cards for engines other than this host's machines.
#include <chrono>
#include <iostream>
#include <map>
#include <memory>
#include <set>

#include "cli/commands.h"
#include "cli/common.h"
#include "export/bwrap.h"
#include "export/kubernetes.h"
#include "export/podman.h"
#include "export/promises.h"
#include "plan/policy.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// Of what lies where units are put; a larger file is none.
constexpr std::size_t maxUnitBytes = std::size_t{1} << 20;

/// A value of one of the checked types, or the message of a wrong option.
template <class Type>
Type option(const std::string& name, const std::string& text) {
  auto value = Type::parse(text);
  if (!value) throw CLI::ValidationError(name, inQuotes(text) + " " + value.error());
  return *std::move(value);
}

std::vector<Card> loadCards(const std::vector<std::string>& paths) {
  std::vector<Card> cards;
  for (const auto& path : paths) cards.push_back(loadCard(path));
  return cards;
}

void warn(const std::vector<std::string>& warnings) {
  for (const auto& warning : warnings) std::cerr << "agentmachine: warning: " << printable(warning) << "\n";
}

void print(const Exported& exported) {
  std::cout << exported.text;
  warn(exported.warnings);
}

struct KubernetesWords {
  std::vector<std::string> cards;
  std::string kind, proxy, space{"opencode-agent"}, image{defaultAgentImage}, proxyImage{defaultProxyImage};
  unsigned replicas = 1;
  bool includeKeys = false, hostUsers = false;
};

KubernetesOptions optionsFrom(const KubernetesWords& words, const std::vector<Card>& cards) {
  KubernetesOptions options{.replicas = words.replicas,
                            .space = option<NamespaceName>("--namespace", words.space),
                            .image = option<ImageReference>("--image", words.image),
                            .proxyImage = option<ImageReference>("--proxy-image", words.proxyImage),
                            .hostUsers = words.hostUsers,
                            .now = std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now()),
                            .keys = {}};
  if (words.kind == "deployment") options.kind = KubernetesKind::deployment;
  if (words.kind == "job") options.kind = KubernetesKind::job;
  if (words.kind == "sandbox") options.kind = KubernetesKind::sandbox;
  if (!words.proxy.empty()) options.proxy = option<ProxyPlace>("--proxy", words.proxy);
  if (words.includeKeys) {
    for (const auto& card : cards) {
      if (!card.apiKeyFile) continue;
      const std::string& path = card.apiKeyFile->str();
      options.keys[card.id.str()] =
          inContext("read " + path, [&] { return parseKey(readFile(path, maxKeyBytes + 2)); });
    }
  }
  return options;
}

void addKubernetes(CLI::App& engines) {
  auto* command = engines.add_subcommand("kubernetes", "print objects for kubectl apply");
  auto words = std::make_shared<KubernetesWords>();
  command->add_option("CARD", words->cards, "card files, JSON or TOML")->required();
  command
      ->add_option(
          "--kind", words->kind,
          "what keeps the agent running; job if the card has ttl_seconds, a command, or restart \"no\"")
      ->check(CLI::IsMember({"deployment", "job", "sandbox"}));
  command->add_option("--replicas", words->replicas, "so many agents, in one workspace")
      ->type_name("N")
      ->check(wholeNumber(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--proxy", words->proxy,
                   "in-cluster, the default unless the card names one: made here; or ADDRESS:PORT of one "
                   "that is there")
      ->type_name("PLACE");
  command->add_option("--namespace", words->space, "where all of it goes")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--image", words->image, "the agent's image")->type_name("REF")->capture_default_str();
  command->add_option("--proxy-image", words->proxyImage, "the proxy's image")
      ->type_name("REF")
      ->capture_default_str();
  command->add_flag("--host-users", words->hostUsers,
                    "no users of the pods' own, for nodes or workspaces that can't have them");
  command->add_flag("--include-key", words->includeKeys, "write the API keys into the output");
  command->callback([words] {
    const auto cards = loadCards(words->cards);
    print(exportKubernetes(cards, optionsFrom(*words, cards)));
  });
}

/// What is in `directory` beside the exported files that have an address, and isn't of this export.
std::map<std::string, std::string> filesBeside(const ExportedFiles& exported,
                                               const std::filesystem::path& directory) {
  std::map<std::string, std::string> beside;
  std::set<std::filesystem::path> places;
  for (const auto& [name, line] : exported.addresses)
    places.insert(std::filesystem::path(name).parent_path());
  for (const auto& place : places) {
    for (const auto& file : namesIn(directory / place)) {
      const std::string name = place / file;
      const std::filesystem::directory_entry entry(directory / name);
      if (entry.is_regular_file() && entry.file_size() <= maxUnitBytes && !exported.files.contains(name))
        beside[name] = readFile(entry.path(), maxUnitBytes);
    }
  }
  return beside;
}

/// Into `directory`, or all in one text.
void write(const ExportedFiles& exported, const std::string& directory) {
  warn(exported.warnings);
  if (directory.empty()) {
    std::cout << inOne(exported);
    return;
  }
  warn(takenAddresses(exported, filesBeside(exported, directory)));
  for (const auto& [name, content] : exported.files) {
    const auto path = std::filesystem::path(directory) / name;
    std::filesystem::create_directories(path.parent_path());
    writeFileAtomically(path, content, 0644);
    std::cout << printable(path.string()) << "\n";
  }
}

void addPodman(CLI::App& engines) {
  struct Words {
    std::vector<std::string> cards;
    std::string image{defaultAgentImage}, proxyImage{defaultProxyImage}, subnet{"10.214.0.0/16"}, output;
    bool rootful = false;
  };
  auto* command = engines.add_subcommand("podman", "write quadlets for Podman");
  auto words = std::make_shared<Words>();
  command->add_option("CARD", words->cards, "card files, JSON or TOML")->required();
  command->add_option("--output", words->output, "directory for the files; else all are printed")
      ->type_name("DIR");
  command->add_flag("--rootful", words->rootful, "for the Podman of root instead of a user's");
  command->add_option("--image", words->image, "the agent's image")->type_name("REF")->capture_default_str();
  command->add_option("--proxy-image", words->proxyImage, "the proxy's image")
      ->type_name("REF")
      ->capture_default_str();
  command->add_option("--subnet", words->subnet, "where the agents' networks are, eight addresses each")
      ->type_name("ADDRESS/LENGTH")
      ->capture_default_str();
  command->callback([words] {
    write(exportPodman(loadCards(words->cards),
                       {.rootful = words->rootful,
                        .image = option<ImageReference>("--image", words->image),
                        .proxyImage = option<ImageReference>("--proxy-image", words->proxyImage),
                        .subnet = option<Subnet>("--subnet", words->subnet)}),
          words->output);
  });
}

void addBwrap(CLI::App& engines) {
  struct Words {
    std::vector<std::string> cards;
    std::string root, output;
  };
  auto* command = engines.add_subcommand("bwrap", "write units for bubblewrap");
  auto words = std::make_shared<Words>();
  command->add_option("CARD", words->cards, "card files, JSON or TOML")->required();
  command->add_option("--root", words->root, "the image's root file system")->type_name("DIR")->required();
  command
      ->add_option("--output", words->output,
                   "directory for the files, as if it were /; else all are printed")
      ->type_name("DIR");
  command->callback([words] {
    write(exportBwrap(loadCards(words->cards), {.root = option<AbsolutePath>("--root", words->root)}),
          words->output);
  });
}

}  // namespace

void addExportCommand(CLI::App& app) {
  auto* engines = app.add_subcommand("export", "print cards for other engines");
  engines->require_subcommand(1);
  addBwrap(*engines);
  addKubernetes(*engines);
  addPodman(*engines);
  engines->add_subcommand("table", "print what each engine keeps of a machine's promises")->callback([] {
    std::cout << renderFidelityTable();
  });
}

}  // namespace agentmachine
