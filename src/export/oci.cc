#include "export/oci.h"

#include <format>

#include <nlohmann/json.hpp>

#include "plan/machine.h"
#include "plan/opencode.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

constexpr auto epoch = "1970-01-01T00:00:00Z";

Json descriptor(std::string_view type, const std::string& digest, std::uint64_t bytes) {
  return {{"mediaType", std::format("application/vnd.oci.image.{}", type)},
          {"digest", "sha256:" + digest},
          {"size", bytes}};
}

}  // namespace

std::string ociConfig(const OciImage& image) {
  const Card card{.id = AgentId::parse("agent").value(),
                  .workspace = AbsolutePath::parse("/workspace").value()};
  Json environment = Json::array();
  for (const auto& [name, value] : machineEnvironment(card, {}))
    // Who the agent is and where its proxy is, a container is told when it is made.
    if (name != "AGENT_ID" && !name.ends_with("_PROXY") && !name.ends_with("_proxy"))
      environment.push_back(name + "=" + value);
  const Json config = {
      {"created", epoch},
      {"architecture", "amd64"},
      {"os", "linux"},
      {"config",
       {{"User", std::format("{0}:{0}", agentUid)},
        {"Env", environment},
        {"Entrypoint", payloadCommand(card)},
        {"WorkingDir", "/workspace"},
        {"Labels",
         {{"org.opencontainers.image.title", "agentmachine"},
          {"org.opencontainers.image.version", image.opencodeVersion},
          {"org.opencontainers.image.licenses", "Apache-2.0"},
          {"org.agentmachine.image", image.source}}}}},
      {"rootfs", {{"type", "layers"}, {"diff_ids", Json::array({"sha256:" + image.diffId})}}},
      {"history", Json::array({{{"created", epoch}, {"created_by", "agentmachine image export"}}})}};
  return config.dump();
}

std::string ociManifest(const OciImage& image, const std::string& config, const std::string& configDigest) {
  const Json manifest = {
      {"schemaVersion", 2},
      {"mediaType", "application/vnd.oci.image.manifest.v1+json"},
      {"config", descriptor("config.v1+json", configDigest, config.size())},
      {"layers", Json::array({descriptor(image.zstd ? "layer.v1.tar+zstd" : "layer.v1.tar+gzip",
                                         image.layerDigest, image.layerBytes)})}};
  return manifest.dump();
}

std::string ociIndex(const OciImage& image, const std::string& manifest, const std::string& manifestDigest) {
  Json entry = descriptor("manifest.v1+json", manifestDigest, manifest.size());
  entry["annotations"] = {{"org.opencontainers.image.ref.name", image.name}};
  entry["platform"] = {{"architecture", "amd64"}, {"os", "linux"}};
  const Json index = {{"schemaVersion", 2},
                      {"mediaType", "application/vnd.oci.image.index.v1+json"},
                      {"manifests", Json::array({entry})}};
  return index.dump();
}

std::string ociLayout() {
  return R"({"imageLayoutVersion":"1.0.0"})";
}

}  // namespace agentmachine
