// What a rank owns of a payload, and how the threads of its blocks share that out. Block b of a rank touches what block
// b of every other rank touches, so blocks of one index must meet, and no others.
#pragma once

#include <type_traits>

#include "comm/rank_view.cuh"

namespace longcat_ops::comm {

constexpr uint32_t kPackBytes = 16;

// Consecutive bytes of the symmetric memory: packs, and the bytes on either side that make up none.
struct Span {
  uint64_t head_at, packs_at, tail_at;  // from the start of the memory
  uint32_t head, packs, tail;           // bytes, packs, bytes

  static LC_DEVICE Span of(uint64_t begin, uint64_t end) {
    uint64_t first = (begin + kPackBytes - 1) / kPackBytes * kPackBytes;
    first = first < end ? first : end;
    const auto packs = static_cast<uint32_t>((end - first) / kPackBytes);
    const uint64_t last = first + static_cast<uint64_t>(kPackBytes) * packs;
    return {begin, first, last, static_cast<uint32_t>(first - begin), packs, static_cast<uint32_t>(end - last)};
  }

  // Part `index` of `parts`, as equal as packs allow. The first part has the head and the tail.
  LC_DEVICE Span part(uint32_t index, uint32_t parts) const {
    const uint32_t size = (packs + parts - 1) / parts, first = index * size < packs ? index * size : packs;
    Span shard = *this;
    shard.packs_at = packs_at + static_cast<uint64_t>(kPackBytes) * first;
    shard.packs = first + size < packs ? size : packs - first;
    if (index > 0) shard.head = shard.tail = 0;
    return shard;
  }
};

// The packs of a span that a thread takes. Warps of all blocks take 512 bytes in turn, so a small message occupies
// every block.
struct Walk {
  uint32_t first, stride;

  LC_DEVICE explicit Walk(uint32_t threads)
      : first((ptx::block_index() + ptx::grid_size() * ptx::warp_index()) * 32 + ptx::lane_index()),
        stride(ptx::grid_size() * threads) {}
};

LC_DEVICE uint64_t pack_place(const Span& span, uint32_t i) {
  return span.packs_at + static_cast<uint64_t>(kPackBytes) * i;
}

// load(at) gives a value and store(at, value) takes it, for each of this thread's packs. kPacks values are in flight,
// and the next ones are loaded before the last are stored.
template <uint32_t kPacks, class Load, class Store>
LC_DEVICE void stream_packs(const Span& span, const Walk& walk, Load load, Store store) {
  using Value = decltype(load(uint64_t{}));
  Value now[kPacks], next[kPacks];
  const auto fetch = [&](Value(&values)[kPacks], uint32_t i) {
    LC_UNROLL
    for (uint32_t j = 0; j < kPacks; ++j)
      if (i + j * walk.stride < span.packs) values[j] = load(pack_place(span, i + j * walk.stride));
  };
  fetch(now, walk.first);
  for (uint32_t i = walk.first; i < span.packs; i += kPacks * walk.stride) {
    fetch(next, i + kPacks * walk.stride);
    LC_UNROLL
    for (uint32_t j = 0; j < kPacks; ++j) {
      if (i + j * walk.stride < span.packs) store(pack_place(span, i + j * walk.stride), now[j]);
      now[j] = next[j];
    }
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

  // A pack at any address.
  LC_DEVICE ptx::Vec16 gather(uint64_t at) const {
    if (base % 4 == 0) return gather<uint32_t>(at);
    return sizeof(Storage) == 2 || base % 2 == 0 ? gather<uint16_t>(at) : gather<uint8_t>(at);
  }
  LC_DEVICE void scatter(uint64_t at, ptx::Vec16 pack) const {
    if (base % 4 == 0) return scatter<uint32_t>(at, pack);
    sizeof(Storage) == 2 || base % 2 == 0 ? scatter<uint16_t>(at, pack) : scatter<uint8_t>(at, pack);
  }
  // The first `bytes` of a pack; the others are 0.
  LC_DEVICE ptx::Vec16 load_part(uint64_t at, uint32_t bytes) const { return gather<Element>(at, bytes); }
  LC_DEVICE void store_part(uint64_t at, ptx::Vec16 pack, uint32_t bytes) const { scatter<Element>(at, pack, bytes); }

  LC_DEVICE Storage load_element(uint64_t at) const { return ptx::load_global(place<const Storage>(at)); }
  LC_DEVICE void store_element(uint64_t at, Storage value) const { ptx::store_global(place<Storage>(at), value); }

 private:
  using Element = std::conditional_t<sizeof(Storage) == 4, uint32_t, Storage>;

  // Piece by piece; no loop is unrolled, because this path is rare and must not cost the other one registers.
  template <class Piece>
  LC_DEVICE ptx::Vec16 gather(uint64_t at, uint32_t bytes = kPackBytes) const {
    const ptx::Vec8 low = gather_half<Piece>(at, bytes), high = gather_half<Piece>(at + 8, bytes > 8 ? bytes - 8 : 0);
    return {low.x, low.y, high.x, high.y};
  }
  template <class Piece>
  LC_DEVICE ptx::Vec8 gather_half(uint64_t at, uint32_t bytes) const {
    uint64_t half = 0;
    LC_NO_UNROLL
    for (uint32_t i = 0; i < 8; i += sizeof(Piece))
      if (i < bytes) half |= static_cast<uint64_t>(ptx::load_global(place<const Piece>(at + i))) << 8 * i;
    return {static_cast<uint32_t>(half), static_cast<uint32_t>(half >> 32)};
  }
  template <class Piece>
  LC_DEVICE void scatter(uint64_t at, ptx::Vec16 pack, uint32_t bytes = kPackBytes) const {
    scatter_half<Piece>(at, pack.x, pack.y, bytes);
    scatter_half<Piece>(at + 8, pack.z, pack.w, bytes > 8 ? bytes - 8 : 0);
  }
  template <class Piece>
  LC_DEVICE void scatter_half(uint64_t at, uint32_t low, uint32_t high, uint32_t bytes) const {
    uint64_t half = low | static_cast<uint64_t>(high) << 32;
    LC_NO_UNROLL
    for (uint32_t i = 0; i < 8; i += sizeof(Piece), half >>= 8 * sizeof(Piece) % 64)
      if (i < bytes) ptx::store_global(place<Piece>(at + i), static_cast<Piece>(half));
  }
};

}  // namespace longcat_ops::comm
