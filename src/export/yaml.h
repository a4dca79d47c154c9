// Documents as YAML, of which every string stays a string. Pure: no I/O.
#pragma once
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace agentmachine {

/// The documents one after the other, in order, each begun by "---".
std::string renderYaml(const std::vector<nlohmann::ordered_json>& documents);

}  // namespace agentmachine
