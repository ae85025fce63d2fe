// The one form of an argument error: op, argument, got, expected, context, fix. Texts are built from the checked
// values.
#pragma once

#include <stdexcept>
#include <string>

#include "common/text.h"

namespace longcat_ops {

enum class CheckCode { kShape, kUnsupported };

// Thrown by every check. what() starts with "[LC-SHAPE] " or "[LC-UNSUPPORTED] ", which Python turns into an exception
// type and strips.
class CheckError : public std::runtime_error {
 public:
  CheckError(CheckCode code, std::string reason, std::string fix);

  const CheckCode code;
  const std::string reason;  // everything but the fix
  const std::string fix;     // may be empty
};

const char* check_code_name(CheckCode code);

[[noreturn]] void fail_argument(const char* op, const char* argument, const std::string& got,
                                const std::string& expected, const std::string& context, const std::string& fix);
[[noreturn]] void fail_unsupported(const std::string& reason, const std::string& fix);

}  // namespace longcat_ops

// The four texts are evaluated only when the condition is false.
#define LC_CHECK(condition, op, argument, got, expected, context, fix)                     \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::longcat_ops::fail_argument((op), (argument), (got), (expected), (context), (fix)); \
  } while (false)
