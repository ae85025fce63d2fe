#include "check/error.h"

#include <utility>

namespace longcat_ops {
namespace {

std::string full_text(CheckCode code, const std::string& reason, const std::string& fix) {
  std::string out = text("[", check_code_name(code), "] ", reason);
  if (!fix.empty()) out += "\n  fix: " + fix;
  return out;
}

}  // namespace

CheckError::CheckError(CheckCode code_, std::string reason_, std::string fix_)
    : std::runtime_error(full_text(code_, reason_, fix_)),
      code(code_),
      reason(std::move(reason_)),
      fix(std::move(fix_)) {}

const char* check_code_name(CheckCode code) { return code == CheckCode::kShape ? "LC-SHAPE" : "LC-UNSUPPORTED"; }

void fail_argument(const char* op, const char* argument, const std::string& got, const std::string& expected,
                   const std::string& context, const std::string& fix) {
  std::string reason = text(op, ": argument `", argument, "` is ", got, ", expected ", expected, ".");
  if (!context.empty()) reason += "\n  " + context;
  throw CheckError(CheckCode::kShape, std::move(reason), fix);
}

void fail_unsupported(const std::string& reason, const std::string& fix) {
  throw CheckError(CheckCode::kUnsupported, reason, fix);
}

}  // namespace longcat_ops
