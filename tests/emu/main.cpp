// emu_tests [--list | NAME...]; without arguments all run. `planted` prints how each planted bug is found, `time`
// prints timings.
#include <cstring>

#include "check.h"

namespace test {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

void check_error(const std::string& kind, const std::function<void()>& body, int line) {
  const std::string at = "line " + std::to_string(line) + ": ";
  try {
    body();
  } catch (const longcat_ops::emu::Error& error) {
    if (error.kind != kind) throw Failure(at + "expected the error " + kind + ", got " + error.what());
    return;
  }
  throw Failure(at + "expected the error " + kind + ", got none");
}

}  // namespace test

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const test::Case& one : test::cases()) std::puts(one.name);
    return 0;
  }
  int failed = 0;
  for (const test::Case& one : test::cases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], one.name) == 0;
    if (!wanted) continue;
    try {
      one.body();
      std::printf("ok %s\n", one.name);
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", one.name, error.what());
      ++failed;
    }
    std::fflush(stdout);
  }
  return failed == 0 ? 0 : 1;
}
