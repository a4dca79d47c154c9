// Collects what `agentmachine doctor` judges. Reads only.
#pragma once
#include "observe/doctor.h"

namespace agentmachine {

/// Looks at everything. What can't be found out counts as missing; never throws for it. Root only.
DoctorFacts collectDoctorFacts();

}  // namespace agentmachine
