// Collectives of two barriers: all-reduce, reduce-scatter, all-gather, broadcast.
//
// Every rank owns a part of the payload: an equal share of an all-reduce, its rows otherwise. All-reduce: it sums its
// part over all ranks and at once sends the sum to all, so that both directions of its links are busy at the same time:
// S (1 + 1/N) bytes each way, where one phase after the other takes the time of 2 S. Reduce-scatter keeps the sum,
// all-gather sends what it has; a broadcast is an all-gather to which one rank contributes.
//
// Before: a barrier, after which all inputs are there and no rank still reads what will be overwritten. After: a
// barrier, after which all results are there and no rank still reads this one's input. A rank that owns nothing comes
// to both. A tensor outside the symmetric memory is copied into it before the first barrier, or out of it after the
// last, by the block that the others' blocks of that index read and write.
#pragma once

#include "comm/config.h"
#include "comm/rank_barrier.cuh"
#include "comm/spans.cuh"
#include "comm/switch.cuh"

namespace longcat_ops::comm {

struct ExchangeParams {
  RankView view;
  const void* input;  // null: the payload lies in the symmetric memory
  void* output;       // null: the result stays there
  uint64_t payload;   // where it lies in the symmetric memory
  uint64_t bytes;     // of the payload of an all-reduce
  uint64_t row_bytes;
  const int32_t* device_rows;  // [ranks] or null
  int32_t rows[kMaxRanks];     // if there are none on the device
  int64_t max_rows;            // of all ranks together
  int64_t max_own_rows;        // that this rank's tensor holds
  uint32_t threads;            // of a block
};

// Rows of the ranks before `rank`.
LC_DEVICE int64_t rows_before(const ExchangeParams& p, uint32_t rank) {
  int64_t sum = 0;
  LC_NO_UNROLL
  for (uint32_t r = 0; r < rank; ++r) sum += p.device_rows != nullptr ? ptx::load_global(p.device_rows + r) : p.rows[r];
  return sum;
}

// Counts of the host have been checked there.
LC_DEVICE bool rows_fit(const ExchangeParams& p) {
  if (p.device_rows == nullptr) return true;
  bool fit = rows_before(p, p.view.ranks) <= p.max_rows;
  fit &= ptx::load_global(p.device_rows + p.view.rank) <= p.max_own_rows;
  LC_NO_UNROLL
  for (uint32_t r = 0; r < p.view.ranks; ++r) fit &= ptx::load_global(p.device_rows + r) >= 0;
  return fit;
}

template <Collective kWhat, class Element, class Switch, class Sync>
LC_KERNEL LC_LAUNCH_BOUNDS(kMaxThreads, 1) exchange_kernel(LC_GRID_CONSTANT ExchangeParams p) {
  using Storage = typename Element::Storage;
  constexpr bool kReduces = kWhat != Collective::kAllGather, kSends = kWhat != Collective::kReduceScatter;
  const RankView& v = p.view;
  RankBarrier<Sync> barrier(v);

  // The part of each rank.
  if (kWhat != Collective::kAllReduce && !rows_fit(p)) {
    if (ptx::thread_index() == 0)
      give_up(v, {Status::kBadRows, Stage::kRows, static_cast<uint32_t>(p.max_rows),
                  static_cast<uint32_t>(rows_before(p, v.ranks)), 1u << v.rank});
    return;
  }
  const auto part = [&](uint32_t rank) {
    if constexpr (kWhat == Collective::kAllReduce) return Span::of(p.payload, p.payload + p.bytes).part(rank, v.ranks);
    return Span::of(p.payload + p.row_bytes * rows_before(p, rank), p.payload + p.row_bytes * rows_before(p, rank + 1));
  };
  const Walk walk = Walk::over_blocks(p.threads);
  const LocalBytes<Storage> memory(v.memory[v.rank], 0);
  const auto copy = [&](const LocalBytes<Storage>& to, const LocalBytes<Storage>& from) {
    LC_NO_UNROLL
    for (uint32_t rank = 0; rank < v.ranks; ++rank) {
      const Span span = part(rank);
      if (to.is_aligned() && from.is_aligned()) {
        stream_packs<2>(
            span, walk, [&](uint64_t at) { return from.load(at); },
            [&](uint64_t at, ptx::Vec16 pack) { to.store(at, pack); });
      } else {
        move_packs(
            span, walk, [&](uint64_t at) { return from.gather(at); },
            [&](uint64_t at, ptx::Vec16 pack) { to.scatter(at, pack); });
      }
      for_each_edge<Storage>(span, p.threads, [&](uint64_t at) { to.store_element(at, from.load_element(at)); });
    }
  };

  const bool staged = kReduces && p.input != nullptr;
  if (staged) copy(memory, LocalBytes<Storage>(p.input, p.payload));
  if (!barrier.wait(Stage::kEntry, staged)) return;

  const Span own = part(v.rank);
  const uint64_t own_at = own.head_at;
  const LocalBytes<Storage> input(p.input != nullptr ? p.input : v.memory[v.rank] + own_at, own_at);
  const LocalBytes<Storage> output(p.output, own_at);
  const auto send = [&](auto at, ptx::Vec16 pack) { Switch::send(v, at, pack); };
  const auto reduce = [&](auto at) { return Switch::reduce(v, at); };
  for_each_edge<Storage>(own, p.threads, [&](uint64_t at) {
    Storage value;
    if constexpr (kReduces) {
      value = Switch::reduce_element(v, at);
    } else {
      value = input.load_element(at);
    }
    if constexpr (kSends) {
      Switch::send_element(v, at, value);
    } else {
      output.store_element(at, value);
    }
  });
  if constexpr (kWhat == Collective::kAllReduce) {
    stream_packs<Switch::kPacks>(own, walk, reduce, send);
  } else if constexpr (kReduces) {
    if (output.is_aligned()) {
      stream_packs<Switch::kPacks>(own, walk, reduce, [&](uint64_t at, ptx::Vec16 pack) { output.store(at, pack); });
    } else {
      move_packs(own, walk, reduce, [&](uint64_t at, ptx::Vec16 pack) { output.scatter(at, pack); });
    }
  } else if (input.is_aligned()) {
    stream_packs<Switch::kPacks>(own, walk, [&](uint64_t at) { return input.load(at); }, send);
  } else {
    move_packs(own, walk, [&](uint64_t at) { return input.gather(at); }, send);
  }

  if (!barrier.wait(Stage::kExit, true)) return;
  if (kSends && p.output != nullptr) copy(LocalBytes<Storage>(p.output, p.payload), memory);
  if (ptx::thread_index() == 0) barrier.save();
}

}  // namespace longcat_ops::comm
