// All-reduce of a few KB without a barrier: every rank sends its whole input to all others as lines of 8 bytes, 4 of
// data and 4 of flag, and sums what it receives in the order of ranks. A line is whole when its flag is there, because
// 8 bytes arrive together. 2 S bytes sent and 2 N S received a rank.
//
// Lines have room for two calls in turn. A rank that has finished call k has lines of call k from all, so all have
// started k and finished k - 1: nobody can still read what call k + 1 overwrites. A flag is the number of the call with
// its highest bit set, so 0 is none; every 2^30 calls each rank sends all lines, so no flag of 2^31 calls ago is left.
// All calls of a channel have the same number of blocks, so that all blocks have counted the same calls.
#pragma once

#include "comm/rank_barrier.cuh"
#include "comm/spans.cuh"
#include "comm/switch.cuh"

namespace longcat_ops::comm {

struct LowLatencyParams {
  RankView view;
  const void* input;
  void* output;
  uint64_t lines;      // where they lie in the symmetric memory: [2][ranks][max_bytes / 4]
  uint32_t max_bytes;  // of a message: whole packs
  uint32_t bytes;      // of this one
  uint32_t threads;    // of a block
};

constexpr int64_t kPackLineBytes = kPackBytes / kLlDataBytes * kLlLineBytes;  // of the 4 lines of a pack
constexpr uint32_t kCleanPeriod = 1u << 30;

template <bool kMulticast>
LC_DEVICE void send_lines(const RankView& v, uint64_t at, ptx::Vec16 pack, uint32_t flag) {
  if constexpr (kMulticast) {
    auto* lines = reinterpret_cast<ptx::Vec8*>(v.multicast + at);
    ptx::multimem_store_relaxed_sys(lines, ptx::Vec8{pack.x, flag});
    ptx::multimem_store_relaxed_sys(lines + 1, ptx::Vec8{pack.y, flag});
    ptx::multimem_store_relaxed_sys(lines + 2, ptx::Vec8{pack.z, flag});
    ptx::multimem_store_relaxed_sys(lines + 3, ptx::Vec8{pack.w, flag});
  } else {
    for (uint32_t rank = 0; rank < v.ranks; ++rank) {
      auto* lines = reinterpret_cast<ptx::Vec16*>(v.memory[rank] + at);
      ptx::store_relaxed_sys_two_words(lines, ptx::Vec16{pack.x, flag, pack.y, flag});
      ptx::store_relaxed_sys_two_words(lines + 1, ptx::Vec16{pack.z, flag, pack.w, flag});
    }
  }
}

// One call that uses the lines of a channel. All threads of a block make one; it synchronises them.
class Lines {
 public:
  LC_DEVICE Lines(const RankView& view, uint64_t lines, uint32_t most)
      : v(view), at(lines), max_bytes(most), epoch_word(word(view, view.rank, cell_of(view) + kLineEpoch)) {
    epoch = ptx::load_global(epoch_word) + 1;
    flag = epoch | 1u << 31;
    ptx::sync_threads();  // all have read the epoch
  }

  // This thread's packs of a message, to all ranks. The last pack may be cut; its other elements are sent as 0.
  template <bool kMulticast, class Storage>
  LC_DEVICE void send(const LocalBytes<Storage>& input, uint32_t bytes, const Walk& walk) const {
    const bool clean = epoch % kCleanPeriod >= kCleanPeriod - 2;
    for (uint32_t i = walk.first; i < (clean ? max_bytes : bytes + kPackBytes - 1) / kPackBytes; i += walk.stride) {
      ptx::Vec16 pack{};
      const uint32_t from = kPackBytes * i;
      if (from + kPackBytes <= bytes) {
        pack = input.is_aligned() ? input.load(from) : input.gather(from);
      } else if (from < bytes) {
        pack = input.gather(from, bytes - from);
      }
      send_lines<kMulticast>(v, place(v.rank, i), pack, flag);
    }
  }

  // Pack i summed over all ranks in their order. False: given up.
  template <class Element>
  LC_DEVICE bool sum(uint32_t i, ptx::Vec16& result) const {
    float total[Element::kWidth];
    for (uint32_t rank = 0; rank < v.ranks; ++rank) {
      ptx::Vec16 pack;
      if (!receive(i, rank, pack)) return false;
      float other[Element::kWidth];
      Element::unpack(pack, other);
      LC_UNROLL
      for (uint32_t j = 0; j < Element::kWidth; ++j) total[j] = rank == 0 ? other[j] : ptx::add_rn(total[j], other[j]);
    }
    result = Element::pack(total);
    return true;
  }

  // One thread, at the end.
  LC_DEVICE void save() const { ptx::store_global(epoch_word, epoch); }

 private:
  LC_DEVICE uint64_t place(uint32_t rank, uint32_t i) const {
    return at + ll_slot_offset(epoch % kLlParities, rank, v.ranks, max_bytes) + kPackLineBytes * i;
  }

  LC_DEVICE bool receive(uint32_t i, uint32_t from, ptx::Vec16& pack) const {
    const auto* lines = reinterpret_cast<const ptx::Vec16*>(v.memory[v.rank] + place(from, i));
    Patience patience(v, kManyPolls);
    for (;;) {
      const ptx::Vec16 low = ptx::load_relaxed_sys_two_words(lines), high = ptx::load_relaxed_sys_two_words(lines + 1);
      pack = {low.x, low.z, high.x, high.z};
      if (low.y == flag && low.w == flag && high.y == flag && high.w == flag) return true;
      if (const Status status = patience.after_poll(); status != Status::kNone) {
        give_up(v, {status, Stage::kLines, flag, low.y, 1u << from});
        return false;
      }
      ptx::spin_pause();
    }
  }

  const RankView& v;
  uint64_t at;
  uint32_t max_bytes;
  uint32_t* epoch_word;
  uint32_t epoch, flag;
};

template <class Element, bool kMulticast>
LC_KERNEL LC_LAUNCH_BOUNDS(kMaxThreads, 1) low_latency_kernel(LC_GRID_CONSTANT LowLatencyParams p) {
  using Storage = typename Element::Storage;
  Lines lines(p.view, p.lines, p.max_bytes);
  const Walk walk = Walk::over_blocks(p.threads);
  lines.send<kMulticast>(LocalBytes<Storage>(p.input, 0), p.bytes, walk);
  const LocalBytes<Storage> output(p.output, 0);
  for (uint32_t i = walk.first; i < ceil_div(p.bytes, kPackBytes); i += walk.stride) {
    ptx::Vec16 sum;
    if (!lines.sum<Element>(i, sum)) return;
    const uint32_t at = kPackBytes * i, rest = p.bytes - at;
    if (rest >= kPackBytes && output.is_aligned()) {
      output.store(at, sum);
    } else {
      output.scatter(at, sum, rest);
    }
  }
  if (ptx::thread_index() == 0) lines.save();
}

}  // namespace longcat_ops::comm
