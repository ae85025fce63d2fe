// The result of a C ABI call: a status and a text, kept per thread for lc_last_error().
#pragma once

#include <string>

namespace longcat_ops {

int set_status(int status, std::string message);  // returns the status

}  // namespace longcat_ops
