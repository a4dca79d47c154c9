// Checks a JSON value against card.schema.json: the schema drives, so that what is published is what is
// enforced. Knows no field. Pure: no I/O.
#pragma once
#include <string>
#include <vector>

#include "card/card.h"
#include "card/document.h"

namespace agentmachine {

/// What is wrong with `value`, in its order. Knows those keywords of draft-07 that the schema uses, and these
/// in a way of its own:
/// - `format` names a rule of types.h. `pattern` beside it is only its approximation for other validators.
/// - `writeOnly`: the value, and all below, is never shown.
/// - a number with a fraction or an exponent is no integer, not even 1.0.
/// A keyword or format that it does not know throws Error.
std::vector<Problem> validate(const Json& schema, const Json& value);

}  // namespace agentmachine
