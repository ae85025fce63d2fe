// What a rank owns of a payload, and how the threads of its blocks share that out. Block b of a rank touches what block
// b of every other rank touches, so blocks of one index must synchronise, and no others.
#pragma once

#include <type_traits>

#include "comm/rank_view.cuh"

namespace longcat_ops::comm {

// Consecutive bytes of the symmetric memory: packs, and the bytes on either side that make up none.
struct Span {
  uint64_t head_at, packs_at, tail_at;  // from the start of the memory
  uint32_t head, packs, tail;           // bytes, packs, bytes

  static LC_DEVICE Span of(uint64_t begin, uint64_t end) {
    const Packs split = split_packs(begin, static_cast<int64_t>(end - begin), 1);
    const uint64_t first = begin + split.head, last = first + kPackBytes * split.count;
    return {begin,
            first,
            last,
            static_cast<uint32_t>(split.head),
            static_cast<uint32_t>(split.count),
            static_cast<uint32_t>(split.tail)};
  }

  // Part `index` of `parts`, as equal as packs allow. The first part has the head and the tail.
  LC_DEVICE Span part(uint32_t index, uint32_t parts) const {
    // NOTE: shard_of, in 32 bits: with 64 the all-reduce spills.
    const uint32_t size = ceil_div(packs, parts), first = index * size < packs ? index * size : packs;
    Span shard = *this;
    shard.packs_at = packs_at + kPackBytes * first;
    shard.packs = first + size < packs ? size : packs - first;
    if (index > 0) shard.head = shard.tail = 0;
    return shard;
  }
};

// The packs of a span that a thread takes: in turn with all blocks, or with its own block alone.
struct Walk {
  uint32_t first, stride;

  static LC_DEVICE Walk over_blocks(uint32_t threads) {
    return {first_pack(ptx::block_index(), ptx::grid_size(), ptx::warp_index(), ptx::lane_index()),
            pack_stride(ptx::grid_size(), threads)};
  }
  static LC_DEVICE Walk in_block(uint32_t threads) { return {ptx::thread_index(), threads}; }
};

LC_DEVICE uint64_t pack_place(const Span& span, uint32_t i) { return span.packs_at + kPackBytes * i; }

// load(at) gives a value and store(at, value) takes it, for each of this thread's packs. kPacks values are in flight,
// and the next ones are loaded before the last are stored.
template <uint32_t kPacks, class Load, class Store>
LC_DEVICE void stream_packs(const Span& span, const Walk& walk, Load load, Store store) {
  using Value = decltype(load(uint64_t{}));
  const uint32_t stride = walk.stride;
  Value now[kPacks], next[kPacks];
  const auto fetch = [&](Value(&values)[kPacks], uint64_t at, uint32_t left) {
    LC_UNROLL
    for (uint32_t j = 0; j < kPacks; ++j)
      if (j * stride < left) values[j] = load(at + kPackBytes * (j * stride));
  };
  uint64_t at = pack_place(span, walk.first);
  uint32_t left = span.packs > walk.first ? span.packs - walk.first : 0;  // packs from this thread's next one on
  fetch(now, at, left);
  while (left > 0) {
    const uint32_t rest = left > kPacks * stride ? left - kPacks * stride : 0;
    fetch(next, at + kPackBytes * (kPacks * stride), rest);
    LC_UNROLL
    for (uint32_t j = 0; j < kPacks; ++j) {
      if (j * stride < left) store(at + kPackBytes * (j * stride), now[j]);
      now[j] = next[j];
    }
    at += kPackBytes * (kPacks * stride);
    left = rest;
  }
}

// The same, one after the other.
template <class Load, class Store>
LC_DEVICE void move_packs(const Span& span, const Walk& walk, Load load, Store store) {
  LC_NO_UNROLL
  for (uint32_t i = walk.first; i < span.packs; i += walk.stride) store(pack_place(span, i), load(pack_place(span, i)));
}

// body(at) for each element of the head and the tail; block 0 has them all.
template <class Storage, class Body>
LC_DEVICE void for_each_edge(const Span& span, uint32_t threads, Body body) {
  if (ptx::block_index() != 0) return;
  LC_NO_UNROLL
  for (uint32_t i = sizeof(Storage) * ptx::thread_index(); i < span.head + span.tail; i += sizeof(Storage) * threads)
    body(i < span.head ? span.head_at + i : span.tail_at + (i - span.head));
}

// A tensor in ordinary memory, of any alignment. `base`: where byte 0 of the
// symmetric memory would lie, so that one offset serves both.
template <class Storage>
struct LocalBytes {
  uintptr_t base;

  LC_DEVICE LocalBytes(const void* data, uint64_t at) : base(reinterpret_cast<uintptr_t>(data) - at) {}

  template <class T>
  LC_DEVICE T* place(uint64_t at) const {
    return reinterpret_cast<T*>(base + at);
  }

  LC_DEVICE bool is_aligned() const { return base % kPackBytes == 0; }
  LC_DEVICE ptx::Vec16 load(uint64_t at) const { return ptx::load_global(place<const ptx::Vec16>(at)); }
  LC_DEVICE void store(uint64_t at, ptx::Vec16 pack) const { ptx::store_global(place<ptx::Vec16>(at), pack); }

  // A pack at any address, element by element: its first `bytes`, the others are 0.
  LC_DEVICE ptx::Vec16 gather(uint64_t at, uint32_t bytes = kPackBytes) const {
    const ptx::Vec8 low = gather_half(at, bytes), high = gather_half(at + 8, bytes > 8 ? bytes - 8 : 0);
    return {low.x, low.y, high.x, high.y};
  }
  LC_DEVICE void scatter(uint64_t at, ptx::Vec16 pack, uint32_t bytes = kPackBytes) const {
    scatter_half(at, pack.x, pack.y, bytes);
    scatter_half(at + 8, pack.z, pack.w, bytes > 8 ? bytes - 8 : 0);
  }

  LC_DEVICE Storage load_element(uint64_t at) const { return ptx::load_global(place<const Storage>(at)); }
  LC_DEVICE void store_element(uint64_t at, Storage value) const { ptx::store_global(place<Storage>(at), value); }

 private:
  using Element = std::conditional_t<sizeof(Storage) == 4, uint32_t, Storage>;

  // No loop is unrolled: this path is rare and must not cost the other one registers.
  LC_DEVICE ptx::Vec8 gather_half(uint64_t at, uint32_t bytes) const {
    uint64_t half = 0;
    LC_NO_UNROLL
    for (uint32_t i = 0; i < 8; i += sizeof(Element))
      if (i < bytes) half |= static_cast<uint64_t>(ptx::load_global(place<const Element>(at + i))) << 8 * i;
    return {static_cast<uint32_t>(half), static_cast<uint32_t>(half >> 32)};
  }
  LC_DEVICE void scatter_half(uint64_t at, uint32_t low, uint32_t high, uint32_t bytes) const {
    uint64_t half = low | static_cast<uint64_t>(high) << 32;
    LC_NO_UNROLL
    for (uint32_t i = 0; i < 8; i += sizeof(Element), half >>= 8 * sizeof(Element))
      if (i < bytes) ptx::store_global(place<Element>(at + i), static_cast<Element>(half));
  }
};

}  // namespace longcat_ops::comm
