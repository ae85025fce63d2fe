// Formats values as text.
#pragma once

#include <sstream>
#include <string>

namespace longcat_ops {

// Concatenates its arguments with operator<<.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

}  // namespace longcat_ops
