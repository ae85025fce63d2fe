// Tables of bugs planted in whole kernels. With the detectors, every schedule finds every bug; without them, a bug is
// found by luck.
#pragma once

#include <functional>
#include <span>

#include "planted.h"

namespace test {

struct Schedule {
  uint64_t seed;
  emu::Policy policy;
  emu::Settings settings;
};

struct PlantedRun {
  const char* name;
  std::function<long(const Schedule&)> wrong;  // runs the kernel; returns the count of wrong numbers
  bool silent = false;                         // no order of events makes it show in a result here
};

struct Found {
  int schedules = 0;
  std::string first = "-";  // kind of the first report; "numbers": the run ended with wrong results
};

inline Found find(const PlantedRun& bug, bool detectors) {
  emu::Settings settings;
  settings.detectors = detectors;
  Found found;
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= kPlantedSeeds; ++seed) {
      std::string kind;
      try {
        if (bug.wrong({seed, policy, settings}) > 0) kind = "numbers";
      } catch (const emu::Error& error) {
        kind = error.kind;
      }
      if (kind.empty()) continue;
      if (++found.schedules == 1) found.first = kind;
    }
  return found;
}

// Prints the table; every bug must be found in every schedule.
inline void check_planted_runs(std::span<const PlantedRun> bugs) {
  std::string missed;
  std::printf("| planted bug | found, detectors on | first report | found, detectors off | first report |\n");
  std::printf("| --- | --- | --- | --- | --- |\n");
  for (const PlantedRun& bug : bugs) {
    const Found on = find(bug, true), off = find(bug, false);
    std::printf("| %s | %d of %d | %s | %d of %d | %s |\n", bug.name, on.schedules, kPlantedSchedules, on.first.c_str(),
                off.schedules, kPlantedSchedules, off.first.c_str());
    if (bug.silent) CHECK_EQ(off.schedules, 0);
    if (on.schedules != kPlantedSchedules) missed += std::string(" ") + bug.name;
  }
  CHECK_EQ(missed, "");
}

}  // namespace test
