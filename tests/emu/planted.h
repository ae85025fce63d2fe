// Tables of planted bugs in small kernels. Without a bug a kernel is right; with any bug every schedule must report it.
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
  std::set<std::string> kinds;  // the kinds of report that count as found
};

constexpr uint64_t kPlantedSeeds = 3;
constexpr int kPlantedSchedules = 3 * int(kPlantedSeeds);

// Prints a line for each bug. Returns the bugs that some schedule did not report as one of their kinds.
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

// Runs the table's kernels without a bug: no seed may report anything.
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
