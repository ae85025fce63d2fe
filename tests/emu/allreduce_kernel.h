// Two-shot all-reduce through multicast memory: every rank sums its shard over all ranks and writes the sum to all
// ranks. Block b of a rank synchronises only with block b of the other ranks: channel b.
#pragma once

#include "ptx/ptx.cuh"

namespace test {

enum class ReduceBug {
  kNone,
  kNoEntryBarrier,
  kNoExitBarrier,
  kRelaxedExit,         // the sums are not released
  kRelaxedAfterCopy,    // the copied input is not released
  kNoSyncBeforeSignal,  // thread 0 signals before the other threads may be done
  kNoSyncAfterWait,     // the other threads continue before thread 0 has waited
  kRelaxedWait,
  kGpuScope,
  kPlainStore,     // to the multicast address
  kOwnStore,       // the sum goes to this rank alone
  kOwnSignal,      // the signal goes to this rank alone
  kWrongEpoch,     // one arrival too few
  kEpochNotSaved,  // the next launch counts old arrivals as its own
  kCopyElsewhere,  // a block copies what another channel sums
};

struct AllReduceParams {
  longcat_ops::ptx::Vec16* data;         // [packs] of 8 bf16, this rank's: input and result
  longcat_ops::ptx::Vec16* mc_data;      // the same of all ranks
  uint32_t* inbox;                       // [blocks] arrivals of all ranks, never reset
  uint32_t* mc_inbox;                    // the same of all ranks
  uint32_t* epoch;                       // [blocks] arrivals that this rank has waited for
  const longcat_ops::ptx::Vec16* input;  // [packs] copied to data first; null: an earlier launch wrote data
  longcat_ops::ptx::Vec16* out;          // [packs] the result is read back to here; null: a later launch reads data
  uint32_t rank, ranks, packs;
};

template <ReduceBug BUG, bool ALIAS_FENCES>
LC_DEVICE void meet_ranks(const AllReduceParams& p, uint32_t& epoch, bool release) {
  using namespace longcat_ops::ptx;
  const uint32_t channel = block_index();
  if (ALIAS_FENCES) fence_proxy_alias();
  if (BUG != ReduceBug::kNoSyncBeforeSignal) sync_threads();
  if (thread_index() == 0) {
    uint32_t* const to = p.mc_inbox + channel;
    if (BUG == ReduceBug::kOwnSignal) {
      red_add_release_sys(p.inbox + channel, 1);
    } else if (BUG == ReduceBug::kGpuScope) {
      multimem_red_add_release_gpu(to, 1u);
    } else if (release) {
      multimem_red_add_release_sys(to, 1u);
    } else {
      multimem_red_add_relaxed_sys(to, 1u);
    }
    epoch += p.ranks;
    const uint32_t target = epoch - (BUG == ReduceBug::kWrongEpoch ? 1 : 0);
    const auto seen = [&] {
      return BUG == ReduceBug::kRelaxedWait ? load_relaxed_sys(p.inbox + channel) : load_acquire_sys(p.inbox + channel);
    };
    while (static_cast<int32_t>(seen() - target) < 0) spin_pause();
    if (ALIAS_FENCES) fence_proxy_alias();
  }
  if (BUG != ReduceBug::kNoSyncAfterWait) sync_threads();
}

template <ReduceBug BUG, bool ALIAS_FENCES = false>
LC_KERNEL all_reduce_kernel(LC_GRID_CONSTANT AllReduceParams p) {
  using namespace longcat_ops::ptx;
  const uint32_t lane = thread_index(), threads = 32, stride = threads * grid_size();
  const uint32_t shard = (p.packs + p.ranks - 1) / p.ranks;
  const auto end = [&](uint32_t rank) { return rank * shard + shard < p.packs ? rank * shard + shard : p.packs; };
  const uint32_t first = block_index() * threads + lane;  // this thread's first pack of a shard
  uint32_t epoch = lane == 0 ? load_global(p.epoch + block_index()) : 0;

  if (p.input != nullptr) {
    const uint32_t start = BUG == ReduceBug::kCopyElsewhere ? (first + threads) % stride : first;
    for (uint32_t rank = 0; rank < p.ranks; ++rank)
      for (uint32_t i = rank * shard + start; i < end(rank); i += stride)
        store_global(p.data + i, load_global_nc(p.input + i));
  }
  // What an earlier launch wrote needs no release.
  if (BUG != ReduceBug::kNoEntryBarrier)
    meet_ranks<BUG, ALIAS_FENCES>(p, epoch, p.input != nullptr && BUG != ReduceBug::kRelaxedAfterCopy);

  for (uint32_t i = p.rank * shard + first; i < end(p.rank); i += stride) {
    const Vec16 sum = multimem_load_add_relaxed_sys<MultimemType::kBF16>(p.mc_data + i);
    if (BUG == ReduceBug::kPlainStore) {
      store_global(p.mc_data + i, sum);
    } else if (BUG == ReduceBug::kOwnStore) {
      store_global(p.data + i, sum);
    } else {
      multimem_store_relaxed_sys(p.mc_data + i, sum);
    }
  }
  if (BUG != ReduceBug::kNoExitBarrier) meet_ranks<BUG, ALIAS_FENCES>(p, epoch, BUG != ReduceBug::kRelaxedExit);

  if (p.out != nullptr)
    for (uint32_t rank = 0; rank < p.ranks; ++rank)
      for (uint32_t i = rank * shard + first; i < end(rank); i += stride)
        store_global(p.out + i, load_global(p.data + i));
  if (lane == 0 && BUG != ReduceBug::kEpochNotSaved) store_global(p.epoch + block_index(), epoch);
}

}  // namespace test
