#include "emu/error.h"

namespace longcat_ops::emu {

std::string describe(const Location& where) {
  const std::string file = where.file_name();
  const size_t slash = file.rfind('/');
  return (slash == std::string::npos ? file : file.substr(slash + 1)) + ":" + std::to_string(where.line());
}

}  // namespace longcat_ops::emu
