// Lines of data and flag without any barrier: every rank sends each of its values to all and sums what it receives.
#include <cstring>

#include "planted_runs.h"
#include "ptx/ptx.cuh"

namespace test {
namespace {

using namespace longcat_ops::ptx;

constexpr uint32_t kRanks = 4, kBlocks = 2, kThreads = 32, kLines = kBlocks * kThreads;

enum class Line {
  kWord,           // {data, flag} in 8 bytes
  kTwoWords,       // {data, flag, data, flag} in 16 bytes
  kMulticastWord,  // {data, flag} in 8 bytes to all at once
};
enum class LineBug {
  kNone,
  kOneFlag,          // {data, data, data, flag} in 16 bytes
  kFirstFlagOnly,    // the second of two flags is ignored
  kMulticastVector,  // 16 bytes to all at once: to the ISA, four separate words
  kApart,            // data and flag in two stores
  kPlainStore,
  kPlainLoad,
  kSameFlag,  // every round uses the same flag
  kOneSlot,   // all rounds share a slot: a fast rank overwrites what a slow one has not read
};

struct LineParams {
  Vec16* slots[kRanks];  // [2][kRanks][kLines] of every rank
  Vec16* mc_slots;
  uint64_t* sums;  // [kLines] of this rank
  uint32_t rank, round;
};

uint32_t value(uint32_t rank, uint32_t round, uint32_t line, uint32_t half) {
  return 1000 * (rank + 1) + 100 * round + 3 * line + half;
}

template <Line LINE, LineBug BUG>
void send(const LineParams& p, uint32_t slot, uint32_t line, uint32_t flag) {
  const uint32_t low = value(p.rank, p.round, line, 0), high = value(p.rank, p.round, line, 1);
  Vec16* const mc = p.mc_slots + slot;
  if (BUG == LineBug::kMulticastVector) return multimem_store_relaxed_sys(mc, Vec16{low, flag, high, flag});
  if (LINE == Line::kMulticastWord) return multimem_store_relaxed_sys(reinterpret_cast<Vec8*>(mc), Vec8{low, flag});
  for (uint32_t peer = 0; peer < kRanks; ++peer) {
    Vec16* const to = p.slots[peer] + slot;
    if (BUG == LineBug::kPlainStore) {
      store_global(to, Vec16{low, flag, high, flag});
    } else if (BUG == LineBug::kApart) {
      store_relaxed_sys(&to->x, low);
      store_relaxed_sys(&to->y, flag);
    } else if (LINE == Line::kWord) {
      store_relaxed_sys(reinterpret_cast<Vec8*>(to), Vec8{low, flag});
    } else if (BUG == LineBug::kOneFlag) {
      store_relaxed_sys_two_words(to, Vec16{low, high, 0, flag});
    } else {
      store_relaxed_sys_two_words(to, Vec16{low, flag, high, flag});
    }
  }
}

template <Line LINE, LineBug BUG>
uint64_t receive(const Vec16* from, uint32_t flag) {
  if (LINE != Line::kTwoWords) {
    for (;; spin_pause()) {
      const auto* word = reinterpret_cast<const Vec8*>(from);
      const Vec8 v = BUG == LineBug::kPlainLoad ? load_global(word) : load_relaxed_sys(word);
      if (v.y == flag) return v.x;
    }
  }
  for (;; spin_pause()) {
    const Vec16 v = load_relaxed_sys_two_words(from);
    if (BUG == LineBug::kOneFlag) {
      if (v.w == flag) return v.x + v.y;
    } else if (v.y == flag && (BUG == LineBug::kFirstFlagOnly || v.w == flag)) {
      return v.x + v.z;
    }
  }
}

template <Line LINE, LineBug BUG>
void line_kernel(const LineParams& p) {
  const uint32_t line = block_index() * kThreads + thread_index();
  const uint32_t flag = BUG == LineBug::kSameFlag ? 1 : p.round + 1;
  // A rank is at most one round ahead: it has read what every rank sent in the previous round.
  const uint32_t parity = BUG == LineBug::kOneSlot ? 0 : p.round % 2;
  const auto slot = [&](uint32_t rank) { return (parity * kRanks + rank) * kLines + line; };
  send<LINE, BUG>(p, slot(p.rank), line, flag);
  uint64_t sum = 0;
  for (uint32_t rank = 0; rank < kRanks; ++rank) sum += receive<LINE, BUG>(p.slots[p.rank] + slot(rank), flag);
  store_global(p.sums + line, sum);
}

template <Line LINE, LineBug BUG = LineBug::kNone>
long exchange(const Schedule& schedule, uint32_t rounds = 4) {
  emu::World world(schedule.seed, schedule.policy, schedule.settings);
  LineParams p{};
  std::vector<uint64_t*> sums[kRanks];
  std::vector<void*> members;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    p.slots[rank] = world.alloc_array<Vec16>(2 * kRanks * kLines, int(rank), "slots", true);
    std::memset(p.slots[rank], 0, 2 * kRanks * kLines * sizeof(Vec16));
    world.make_peer_accessible(p.slots[rank]);
    members.push_back(p.slots[rank]);
  }
  p.mc_slots = static_cast<Vec16*>(world.bind_multicast(members, "mc slots"));
  for (uint32_t round = 0; round < rounds; ++round)
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      p.sums = sums[rank].emplace_back(world.alloc_array<uint64_t>(kLines, int(rank), "sums"));
      p.rank = rank;
      p.round = round;
      world.launch(
          {.device = int(rank), .grid = kBlocks, .block = kThreads, .body = [p] { line_kernel<LINE, BUG>(p); }});
    }
  world.synchronize();
  long wrong = 0;
  for (uint32_t rank = 0; rank < kRanks; ++rank)
    for (uint32_t round = 0; round < rounds; ++round)
      for (uint32_t line = 0; line < kLines; ++line) {
        uint64_t expected = 0;
        for (uint32_t from = 0; from < kRanks; ++from)
          expected += value(from, round, line, 0) + (LINE == Line::kTwoWords ? value(from, round, line, 1) : 0);
        wrong += sums[rank][round][line] != expected;
      }
  return wrong;
}

template <Line LINE, LineBug BUG>
long plant(const Schedule& schedule) {
  return exchange<LINE, BUG>(schedule);
}

const PlantedRun kPlantedLines[] = {
    {"one_flag_in_16_bytes", plant<Line::kTwoWords, LineBug::kOneFlag>},
    {"first_flag_only", plant<Line::kTwoWords, LineBug::kFirstFlagOnly>},
    {"multicast_vector", plant<Line::kTwoWords, LineBug::kMulticastVector>},
    {"data_and_flag_apart", plant<Line::kWord, LineBug::kApart>},
    {"plain_store", plant<Line::kWord, LineBug::kPlainStore>},
    {"plain_load", plant<Line::kWord, LineBug::kPlainLoad>, true},
    {"same_flag", plant<Line::kWord, LineBug::kSameFlag>},
    // Breaks no memory rule. It shows when one rank is fast and another slow, which happens in some round.
    {"one_slot", [](const Schedule& schedule) { return exchange<Line::kWord, LineBug::kOneSlot>(schedule, 12); }},
};

}  // namespace

TEST(low_latency_no_complaints) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const emu::Policy policy = kPolicies[seed % 3];
    CHECK_EQ(exchange<Line::kWord>({seed, policy, {}}), 0);
    CHECK_EQ(exchange<Line::kTwoWords>({seed, policy, {}}), 0);
    CHECK_EQ(exchange<Line::kMulticastWord>({seed, policy, {}}), 0);
  }
}
TEST(low_latency_planted) { check_planted_runs(kPlantedLines); }

}  // namespace test
