// All-reduce of a few KB without a meeting: every rank sends its whole input to all others as lines of 8 bytes, 4 of
// data and 4 of flag, and sums what it receives in the order of ranks. A line is whole when its flag is there, because
// 8 bytes arrive together. 2 S bytes sent and 2 N S received a rank.
//
// Lines have room for two calls in turn. A rank that has finished call k has lines of call k from all, so all have
// started k and finished k - 1: nobody can still read what call k + 1 overwrites. A flag is the number of the call with
// its highest bit set, so 0 is none; every 2^30 calls each rank sends all lines, so no flag of 2^31 calls ago is left.
// All calls of a channel have the same number of blocks: a line keeps its block, and its calls are numbered by it.
#pragma once

#include "comm/meeting.cuh"
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

// False: given up.
LC_DEVICE bool receive_lines(const RankView& v, uint64_t at, uint32_t flag, uint32_t from, ptx::Vec16& pack) {
  const auto* lines = reinterpret_cast<const ptx::Vec16*>(v.memory[v.rank] + at);
  Patience patience(v);
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

template <class Element, bool kMulticast>
LC_KERNEL LC_LAUNCH_BOUNDS(kMaxThreads, 1) low_latency_kernel(LC_GRID_CONSTANT LowLatencyParams p) {
  using Storage = typename Element::Storage;
  const RankView& v = p.view;
  uint32_t* epoch_word = word(v, v.rank, cell_of(v) + kLineEpoch);
  const uint32_t epoch = ptx::load_global(epoch_word) + 1, flag = epoch | 1u << 31;
  const bool clean = epoch % kCleanPeriod >= kCleanPeriod - 2;
  ptx::sync_threads();  // all have read the epoch
  const uint32_t max_packs = p.max_bytes / kPackBytes, packs = ceil_div(p.bytes, kPackBytes);
  const uint32_t sent = clean ? max_packs : packs;
  const Walk walk(p.threads);
  const LocalBytes<Storage> input(p.input, 0), output(p.output, 0);
  const auto place = [&](uint32_t rank, uint32_t i) {
    return p.lines + ll_slot_offset(epoch % kLlParities, rank, v.ranks, p.max_bytes) + kPackLineBytes * i;
  };

  // The last pack may be cut; its other elements are sent as 0.
  for (uint32_t i = walk.first; i < sent; i += walk.stride) {
    ptx::Vec16 pack{};
    const uint32_t at = kPackBytes * i;
    if (at + kPackBytes <= p.bytes) {
      pack = input.is_aligned() ? input.load(at) : input.gather(at);
    } else if (at < p.bytes) {
      pack = input.gather(at, p.bytes - at);
    }
    send_lines<kMulticast>(v, place(v.rank, i), pack, flag);
  }

  for (uint32_t i = walk.first; i < packs; i += walk.stride) {
    float sum[Element::kWidth];
    for (uint32_t rank = 0; rank < v.ranks; ++rank) {
      ptx::Vec16 pack;
      if (!receive_lines(v, place(rank, i), flag, rank, pack)) return;
      float other[Element::kWidth];
      Element::unpack(pack, other);
      LC_UNROLL
      for (uint32_t j = 0; j < Element::kWidth; ++j) sum[j] = rank == 0 ? other[j] : ptx::add_rn(sum[j], other[j]);
    }
    const uint32_t at = kPackBytes * i;
    if (at + kPackBytes <= p.bytes) {
      output.is_aligned() ? output.store(at, Element::pack(sum)) : output.scatter(at, Element::pack(sum));
    } else {
      output.scatter(at, Element::pack(sum), p.bytes - at);
    }
  }
  if (ptx::thread_index() == 0) ptx::store_global(epoch_word, epoch);
}

}  // namespace longcat_ops::comm
