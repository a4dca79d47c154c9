// The JSON documents of an image in the OCI's layout (github.com/opencontainers/image-spec), the same for the
// same image. Pure: no I/O.
#pragma once
#include <cstdint>
#include <string>

namespace agentmachine {

struct OciImage {
  std::string name;  ///< REGISTRY/NAME:TAG, as it is known after a load
  std::string opencodeVersion;
  std::string source;       ///< digest of ours, "sha256-…"
  std::string diffId;       ///< SHA-256 of the layer's tar, in hexadecimal
  std::string layerDigest;  ///< of the layer as it is compressed
  std::uint64_t layerBytes = 0;
  bool zstd = false;  ///< else gzip
};

/// The document that the manifest names. It says to run opencode's server as `agent`, in /workspace, without
/// the requests that opencode would make on its own.
std::string ociConfig(const OciImage& image);

/// The digests are the SHA-256 of those documents, in hexadecimal.
std::string ociManifest(const OciImage& image, const std::string& config, const std::string& configDigest);
std::string ociIndex(const OciImage& image, const std::string& manifest, const std::string& manifestDigest);

/// The file "oci-layout".
std::string ociLayout();

}  // namespace agentmachine
