// Writes an image as an OCI layout: the tree as one layer, the same bytes for the same tree. Never changes
// the tree.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "system/archive.h"

namespace agentmachine {

enum class LayerCompression { gzip, zstd };

struct Layer {
  std::string diffId;   ///< SHA-256 of the tar, lower case hexadecimal
  std::string digest;   ///< SHA-256 of what was written
  std::uint64_t bytes;  ///< that were written
};

/// Writes all of `tree` to `out` as a compressed tar: paths in order, modes and numeric owners as they are,
/// no times. `progress` gets the bytes of content read; their sum isn't known. Throws Error that names what
/// it can't read.
Layer packLayer(const std::filesystem::path& tree, int out, LayerCompression compression,
                const UnpackProgress& progress = {});

/// Writes a layout: `documents` and the content of `layer`, a file that is open, at `layerPath`; by paths in
/// the layout. To a new tar file that replaces `target` when it is whole, or, if `target` is a directory,
/// which must be empty, into that. Throws Error.
void writeOciLayout(const std::filesystem::path& target, const std::map<std::string, std::string>& documents,
                    const std::string& layerPath, int layer);

}  // namespace agentmachine
