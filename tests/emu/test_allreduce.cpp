// All-reduce over eight devices: exact in every schedule, and every planted bug found in every schedule.
#include <cstring>

#include "allreduce_kernel.h"
#include "planted_runs.h"

namespace test {
namespace {

using namespace longcat_ops::ptx;

constexpr uint32_t kRanks = 8, kBlocks = 4, kRounds = 2;

// Integers whose sums bf16 represents exactly, so the order of addition does not matter.
int input(uint32_t rank, uint32_t round, uint32_t i) { return int((i * 7 + rank * 5 + round * 3) % 13) - 6; }

int expected(uint32_t round, uint32_t i) {
  int sum = 0;
  for (uint32_t rank = 0; rank < kRanks; ++rank) sum += input(rank, round, i);
  return sum;
}

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

struct Rank {
  Vec16 *data, *out[kRounds];
  uint16_t* input[kRounds];
  uint32_t *inbox, *epoch;
};

Vec16 input_pack(uint32_t rank, uint32_t round, uint32_t pack) {
  const auto pair = [&](uint32_t k) {
    const uint32_t i = 8 * pack + 2 * k;
    return pack_bf16x2(float(input(rank, round, i)), float(input(rank, round, i + 1)));
  };
  return {pair(0), pair(1), pair(2), pair(3)};
}

struct Group {
  Group(emu::World& world, uint32_t packs_) : packs(packs_) {
    std::vector<void*> data, inboxes;
    for (int rank = 0; rank < int(kRanks); ++rank) {
      Rank& r = ranks[rank];
      data.push_back(r.data = world.alloc_array<Vec16>(packs, rank, "data"));
      inboxes.push_back(r.inbox = world.alloc_array<uint32_t>(kBlocks, rank, "inbox", true));
      r.epoch = world.alloc_array<uint32_t>(kBlocks, rank, "epoch", true);
      // The counters start shortly before they wrap around.
      for (uint32_t b = 0; b < kBlocks; ++b) r.inbox[b] = r.epoch[b] = 0u - 2 * kRanks;
      for (uint32_t round = 0; round < kRounds; ++round) {
        r.out[round] = world.alloc_array<Vec16>(packs, rank, "out");
        r.input[round] = world.alloc_array<uint16_t>(8 * packs, rank, "input", true);
        for (uint32_t pack = 0; pack < packs; ++pack) {
          const Vec16 v = input_pack(rank, round, pack);
          std::memcpy(r.input[round] + 8 * pack, &v, sizeof v);
        }
      }
    }
    mc_data = static_cast<Vec16*>(world.bind_multicast(data, "mc data"));
    mc_inbox = static_cast<uint32_t*>(world.bind_multicast(inboxes, "mc inbox"));
  }

  AllReduceParams params(uint32_t rank) const {
    const Rank& r = ranks[rank];
    return {r.data, mc_data, r.inbox, mc_inbox, r.epoch, nullptr, nullptr, rank, kRanks, packs};
  }

  long wrong() const {
    long count = 0;
    for (const Rank& r : ranks)
      for (uint32_t round = 0; round < kRounds; ++round)
        for (uint32_t i = 0; i < 8 * packs; ++i) {
          uint16_t bits;
          std::memcpy(&bits, reinterpret_cast<const uint8_t*>(r.out[round]) + 2 * i, 2);
          count += from_bf16(bits) != float(expected(round, i));
        }
    return count;
  }

  uint32_t packs;
  Rank ranks[kRanks];
  Vec16* mc_data;
  uint32_t* mc_inbox;
};

void launch_copy(emu::World& world, int device, Vec16* to, const Vec16* from, uint32_t packs) {
  world.launch({.device = device, .block = 32, .body = [=] {
                  for (uint32_t i = thread_index(); i < packs; i += 32) store_global(to + i, load_global(from + i));
                }});
}

// Channel 2 has one pack of a shard, channel 3 none.
constexpr uint32_t kFewPacks = 515;
// Some threads have two packs of a shard, and the last shard is shorter.
constexpr uint32_t kMorePacks = 1027;

// In place: on each device one launch writes the input, one reduces and one reads the result. Only the kernels' own
// barriers order the devices.
template <ReduceBug BUG = ReduceBug::kNone, bool ALIAS_FENCES = false>
long in_place(const Schedule& schedule) {
  emu::World world(schedule.seed, schedule.policy, schedule.settings);
  const Group group(world, kFewPacks);
  for (uint32_t round = 0; round < kRounds; ++round)
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      const AllReduceParams p = group.params(rank);
      const int device = int(rank);
      launch_copy(world, device, p.data, reinterpret_cast<const Vec16*>(group.ranks[rank].input[round]), kFewPacks);
      world.launch(
          {.device = device, .grid = kBlocks, .block = 32, .body = [=] { all_reduce_kernel<BUG, ALIAS_FENCES>(p); }});
      launch_copy(world, device, group.ranks[rank].out[round], p.data, kFewPacks);
    }
  world.synchronize();
  return group.wrong();
}

// One launch a round: copies the input in, reduces, reads the result.
template <ReduceBug BUG = ReduceBug::kNone, bool ALIAS_FENCES = false>
long copied(const Schedule& schedule) {
  emu::World world(schedule.seed, schedule.policy, schedule.settings);
  const Group group(world, kMorePacks);
  for (uint32_t round = 0; round < kRounds; ++round)
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      AllReduceParams p = group.params(rank);
      p.input = reinterpret_cast<const Vec16*>(group.ranks[rank].input[round]);
      p.out = group.ranks[rank].out[round];
      world.launch({.device = int(rank), .grid = kBlocks, .block = 32, .body = [=] {
                      all_reduce_kernel<BUG, ALIAS_FENCES>(p);
                    }});
    }
  world.synchronize();
  return group.wrong();
}

const PlantedRun kPlanted[] = {
    {"no_entry_barrier", in_place<ReduceBug::kNoEntryBarrier>},
    {"no_exit_barrier", in_place<ReduceBug::kNoExitBarrier>},
    {"relaxed_exit", in_place<ReduceBug::kRelaxedExit>},
    {"relaxed_after_copy", copied<ReduceBug::kRelaxedAfterCopy>, true},
    {"no_sync_before_signal", copied<ReduceBug::kNoSyncBeforeSignal>},
    {"no_sync_after_wait", in_place<ReduceBug::kNoSyncAfterWait>},
    {"relaxed_wait", copied<ReduceBug::kRelaxedWait>, true},
    {"gpu_scope", in_place<ReduceBug::kGpuScope>, true},
    {"plain_store", in_place<ReduceBug::kPlainStore>},
    {"own_store", in_place<ReduceBug::kOwnStore>},
    {"own_signal", in_place<ReduceBug::kOwnSignal>},
    {"wrong_epoch", in_place<ReduceBug::kWrongEpoch>},
    {"epoch_not_saved", in_place<ReduceBug::kEpochNotSaved>},
    {"copy_elsewhere", copied<ReduceBug::kCopyElsewhere>},
};

template <class Run>
void check_seeds(uint64_t first, uint64_t count, Run run, emu::Settings settings = {}) {
  for (uint64_t seed = first; seed < first + count; ++seed) CHECK_EQ(run({seed, kPolicies[seed % 3], settings}), 0);
}

}  // namespace

TEST(allreduce_in_place_no_complaints) { check_seeds(1, 25, in_place<>); }
TEST(allreduce_copied_no_complaints) { check_seeds(101, 25, copied<>); }
TEST(allreduce_without_detectors) {
  emu::Settings settings;
  settings.detectors = false;
  check_seeds(1, 6, in_place<>, settings);
  check_seeds(1, 6, copied<>, settings);
}
TEST(allreduce_planted) { check_planted_runs(kPlanted); }

// By the letter of the ISA, a barrier without fence.proxy.alias on both sides is reported. The start and the end of a
// launch count as such fences.
TEST(allreduce_pedantic_aliases) {
  emu::Settings settings;
  settings.pedantic_aliases = true;
  check_seeds(1, 3, in_place<>, settings);
  check_seeds(1, 3, copied<ReduceBug::kNone, true>, settings);
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 3; ++seed) CHECK_ERROR("alias", copied<>({seed, policy, settings}));
}

}  // namespace test
