// Tables of planted bugs: small kernels that are right without one, and must be reported with any of them in every
// schedule.
#pragma once

#include <cstdio>
#include <set>

#include "check.h"

namespace test {

constexpr const char* kWrongValue = "launch";  // the kind of report when a kernel throws

template <class Bug>
struct PlantedBug {
  const char* name;
  void (*run)(emu::World& world, Bug bug);  // launches and synchronises
  Bug bug;
  std::set<std::string> kinds;  // of the report that is due
};

constexpr uint64_t kPlantedSeeds = 3;
constexpr int kPlantedSchedules = 3 * int(kPlantedSeeds);

// Prints a line for each bug; those that went unreported, or were reported as something else.
template <class Bug, size_t N>
std::string check_planted(const PlantedBug<Bug> (&table)[N]) {
  std::string missed;
  std::printf("| planted bug | found | kinds of report |\n| --- | --- | --- |\n");
  for (const PlantedBug<Bug>& planted : table) {
    int found = 0;
    std::set<std::string> kinds;
    for (const emu::Policy policy : kPolicies)
      for (uint64_t seed = 1; seed <= kPlantedSeeds; ++seed) {
        emu::World world(seed, policy);
        try {
          planted.run(world, planted.bug);
        } catch (const emu::Error& error) {
          kinds.insert(error.kind);
          found += int(planted.kinds.count(error.kind));
        }
      }
    std::string list;
    for (const std::string& kind : kinds) list += (list.empty() ? "" : ", ") + kind;
    std::printf("| %s | %d of %d | %s |\n", planted.name, found, kPlantedSchedules, list.c_str());
    if (found != kPlantedSchedules) missed += std::string(" ") + planted.name;
  }
  std::printf("%zu planted bugs\n", N);
  return missed;
}

// The kernels of the table without a bug: no complaint for any seed.
template <class Bug, size_t N>
void check_no_complaints(const PlantedBug<Bug> (&table)[N], Bug none, uint64_t seeds) {
  std::set<void (*)(emu::World&, Bug)> kernels;
  for (const PlantedBug<Bug>& planted : table) kernels.insert(planted.run);
  for (auto* run : kernels)
    for (uint64_t seed = 100; seed < 100 + seeds; ++seed) {
      emu::World world(seed, kPolicies[seed % 3]);
      run(world, none);
    }
}

}  // namespace test
