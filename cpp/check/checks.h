// Every op's argument check, by name. `longcat_ops.supports`, the CPU paths in Python and the torch bindings share
// them.
#pragma once

#include <string>
#include <vector>

#include "check/tensor_desc.h"

namespace longcat_ops {

std::vector<std::string> checked_ops();

// Throws CheckError for a bad argument, std::invalid_argument for an op or an argument list that does not exist.
void check(const std::string& op, const std::vector<Argument>& arguments);

}  // namespace longcat_ops
