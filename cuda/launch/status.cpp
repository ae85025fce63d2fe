#include "launch/status.h"

#include <utility>

#include "longcat_ops.h"

namespace longcat_ops {
namespace {

thread_local std::string last_error;

}  // namespace

int set_status(int status, std::string message) {
  last_error = std::move(message);
  return status;
}

}  // namespace longcat_ops

extern "C" const char* lc_last_error(void) { return longcat_ops::last_error.c_str(); }
