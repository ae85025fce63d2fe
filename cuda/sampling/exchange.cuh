// Values that the warps of a cluster show each other, and float64 sums of them in one fixed order.
#pragma once

#include "sampling/config.h"
#include "sampling/row_best.cuh"

namespace longcat_ops::sampling {

constexpr uint32_t kLaneValues = kMaxSampledWarps / 32;  // of neighbouring warps, which a lane takes
constexpr uint32_t kShown = 4;                           // values of a warp at a time
constexpr uint32_t kShownBytes = kShown * 8 * kMaxSampledWarps;
static_assert(kSampledSmemBytes == 3 * kShownBytes);

// Every warp stores its values in the shared memory of every block, in one of three places in turn: others may still
// read those of the call before, and a draw those of the call before that.
struct Exchange {
  Team team;
  uint32_t warp, warps;  // of the cluster
  uint32_t memory, turn;
};

LC_DEVICE double bits_double(ptx::Vec8 words) {
  double value;
  memcpy(&value, &words, sizeof value);
  return value;
}
LC_DEVICE ptx::Vec8 double_bits(double value) {
  ptx::Vec8 words;
  memcpy(&words, &value, sizeof words);
  return words;
}
LC_DEVICE double shuffle(double value, uint32_t lane) {
  const ptx::Vec8 words = double_bits(value);
  return bits_double({ptx::shuffle(words.x, static_cast<int>(lane)), ptx::shuffle(words.y, static_cast<int>(lane))});
}
LC_DEVICE double shuffle_up(double value, int delta) {
  const ptx::Vec8 words = double_bits(value);
  return bits_double({ptx::shuffle_up(words.x, delta), ptx::shuffle_up(words.y, delta)});
}

// The sum over all lanes, a butterfly. NOTE: loops over lanes are not unrolled: there are many sums, and each shuffle
// of 8 bytes is several instructions.
LC_DEVICE double sum_lanes(double value) {
  LC_NO_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const ptx::Vec8 words = double_bits(value);
    value += bits_double({ptx::shuffle_xor(words.x, mask), ptx::shuffle_xor(words.y, mask)});
  }
  return value;
}
// The sum over the lanes up to this one.
LC_DEVICE double scan_lanes(double value) {
  LC_NO_UNROLL
  for (int delta = 1; delta < 32; delta *= 2) {
    const double other = shuffle_up(value, delta);
    if (ptx::lane_index() >= static_cast<uint32_t>(delta)) value += other;
  }
  return value;
}

LC_DEVICE void sync_team(const Team& team) {
  if (team.blocks > 1)
    ptx::cluster_sync();
  else
    ptx::sync_threads();
}

// By all threads of the cluster, before they use the result.
LC_DEVICE Exchange start_exchange(const Team& team, uint32_t memory) {
  if (team.blocks > 1) ptx::cluster_sync();  // every block has started
  const uint32_t warps = team.threads / 32;
  return {team, team.rank * warps + ptx::warp_index(), team.blocks * warps, memory, 0};
}

// Shows values that all lanes of a warp have, and returns where those of all warps lie. They stay until this warp calls
// it a second time after that.
template <uint32_t kValues>
LC_DEVICE uint32_t show(Exchange& e, const ptx::Vec8 (&values)[kValues]) {
  static_assert(kValues <= kShown);
  const uint32_t lane = ptx::lane_index(), shown = e.memory + e.turn * kShownBytes;
  LC_UNROLL
  for (uint32_t i = 0; i < kValues; ++i)
    if (lane < e.team.blocks)
      ptx::store_shared_cluster(ptx::cluster_address(shown + 8 * (i * kMaxSampledWarps + e.warp), lane), values[i]);
  e.turn = e.turn < 2 ? e.turn + 1 : 0;
  sync_team(e.team);
  return shown;
}

// What a warp shows as its value number `index`; 0 of a warp that does not exist.
LC_DEVICE ptx::Vec8 shown_by(const Exchange& e, uint32_t shown, uint32_t index, uint32_t warp) {
  if (warp >= e.warps) return {0, 0};
  return ptx::load_shared<ptx::Vec8>(shown + 8 * (index * kMaxSampledWarps + warp));
}

// The sum over all warps before `end`.
LC_DEVICE double sum_shown(const Exchange& e, uint32_t shown, uint32_t index, uint32_t end = kMaxSampledWarps) {
  double sum = 0;
  LC_UNROLL
  for (uint32_t i = 0; i < kLaneValues; ++i) {
    const uint32_t warp = kLaneValues * ptx::lane_index() + i;
    const double value = bits_double(shown_by(e, shown, index, warp));
    sum += warp < end ? value : 0.0;
  }
  return sum_lanes(sum);
}

// The largest of each word, over all warps.
LC_DEVICE ptx::Vec8 most_shown(const Exchange& e, uint32_t shown, uint32_t index) {
  ptx::Vec8 most{0, 0};
  LC_UNROLL
  for (uint32_t i = 0; i < kLaneValues; ++i) {
    const ptx::Vec8 other = shown_by(e, shown, index, kLaneValues * ptx::lane_index() + i);
    most = {other.x > most.x ? other.x : most.x, other.y > most.y ? other.y : most.y};
  }
  return {ptx::redux_max(most.x), ptx::redux_max(most.y)};
}

LC_DEVICE Best best_shown(Exchange& e, Best own) {
  own = best_of_warp(own);
  const uint32_t shown = show(e, {{own.key, own.id}});
  Best best{0, kNoToken};
  LC_UNROLL
  for (uint32_t i = 0; i < kLaneValues; ++i) {
    const ptx::Vec8 other = shown_by(e, shown, 0, kLaneValues * ptx::lane_index() + i);
    if (other.x > best.key || (other.x == best.key && other.y < best.id)) best = {other.x, other.y};
  }
  return best_of_warp(best);
}

// The first warp up to whose end the running sum exceeds `wanted` and that adds to it. NOTE: rounding may leave none:
// then it is the last that adds anything.
struct Owner {
  uint32_t warp;
  double before;  // the running sum
};

LC_DEVICE Owner find_owner(const Exchange& e, uint32_t shown, double wanted) {
  const uint32_t lane = ptx::lane_index();
  double value[kLaneValues], sum = 0;
  LC_UNROLL
  for (uint32_t i = 0; i < kLaneValues; ++i) {
    value[i] = bits_double(shown_by(e, shown, 0, kLaneValues * lane + i));
    sum += value[i];
  }
  const double below = shuffle_up(scan_lanes(sum), 1);
  double run = lane > 0 ? below : 0.0;
  Owner first{kNoToken, 0}, last{kNoToken, 0};
  LC_UNROLL
  for (uint32_t i = 0; i < kLaneValues; ++i) {
    const Owner here{kLaneValues * lane + i, run};
    run += value[i];
    if (!(value[i] > 0)) continue;
    last = here;
    if (first.warp == kNoToken && run > wanted) first = here;
  }
  const uint32_t found = ptx::redux_min(first.warp != kNoToken ? lane : kNoToken);
  const uint32_t ending = ptx::redux_max(last.warp != kNoToken ? lane : 0);
  const bool is_found = found != kNoToken;
  const uint32_t from = is_found ? found : ending;
  return {ptx::shuffle(is_found ? first.warp : last.warp, static_cast<int>(from)),
          shuffle(is_found ? first.before : last.before, from)};
}

}  // namespace longcat_ops::sampling
