// Golden tests: a case is a file or folder, what is expected of it is a file that a person has reviewed.
// AGENTMACHINE_TEST_ACCEPT=1 writes the expected files instead of comparing.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace agentmachine {

/// The largest file of a case.
constexpr std::size_t maxGoldenBytes = 4 * 1024 * 1024;

/// Registers one test "SUITE.NAME" for each entry of `folder` except `expected`, NAME being its stem. `check`
/// gets the entry.
void forEachCase(const std::string& suite, const std::filesystem::path& folder,
                 const std::function<void(const std::filesystem::path& entry)>& check);

/// Fails unless `actual` is what the file holds.
void expectGolden(const std::filesystem::path& expected, std::string_view actual);

/// Fails unless `table` is what stands in the document between its two comments that name begin and end.
void expectTable(const std::filesystem::path& document, std::string_view table);

// The suites, each in its own file; main.cc registers them. `root` is tests/golden.
void registerCardGoldens(const std::filesystem::path& root);
void registerExportGoldens(const std::filesystem::path& root);
void registerPlanGoldens(const std::filesystem::path& root);
void registerCliGoldens(const std::filesystem::path& root);
void registerStateGoldens(const std::filesystem::path& root);

}  // namespace agentmachine
