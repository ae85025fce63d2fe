// Texts out of values.
#pragma once

#include <sstream>
#include <string>

namespace longcat_ops {

// Joins its arguments through operator<<.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

}  // namespace longcat_ops
