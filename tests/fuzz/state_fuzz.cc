// libFuzzer: the small files that we read back: what the host gave a machine, how its run began and ended.
// Each is read, or refused with an Error. The first byte says which.
#include <cstdint>
#include <filesystem>

#include "plan/machine.h"
#include "require.h"
#include "system/run_record.h"
#include "util/error.h"
#include "util/file.h"

using namespace agentmachine;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Scratch scratch;
  const std::string directory = scratch.path();
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 4 == 0) {
      const auto allocation = parseAllocation(text);
      require(parseAllocation(toJson(allocation)) == allocation);
    } else if (data[0] % 4 == 1) {
      writeFileAtomically(directory + "/run.json", text, 0600);
      if (const auto record = readRunRecord(directory)) writeRunRecord(directory, *record);
    } else if (data[0] % 4 == 3) {
      writeFileAtomically(directory + "/oom-kills.json", text, 0600);
      (void)readOomKills(directory);
    } else {
      writeFileAtomically(directory + "/end.json", text, 0600);
      if (const auto record = readEndRecord(directory)) writeEndRecord(directory, *record);
    }
  } catch (const Error&) {
  }
  return 0;
}
