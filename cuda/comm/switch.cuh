// How a pack of 16 bytes is summed over all ranks and sent to all ranks: in the switch, by multimem, or by loops over
// the peers in the order of ranks. The loops give the same bits on every rank and every time.
#pragma once

#include "comm/rank_view.cuh"
#include "device/vector_io.cuh"

namespace longcat_ops::comm {

// Elements in memory. Sums are float32 and rounded once.
struct F32 {
  using Format = device::Float32;
  using Storage = float;
  static constexpr ptx::MultimemType kMultimem = ptx::MultimemType::kF32;
  static constexpr uint32_t kWidth = 4;  // elements of a pack
  static LC_DEVICE void unpack(ptx::Vec16 pack, float (&values)[kWidth]) {
    const uint32_t words[] = {pack.x, pack.y, pack.z, pack.w};
    LC_UNROLL
    for (uint32_t i = 0; i < kWidth; ++i) values[i] = device::bits_float(words[i]);
  }
  static LC_DEVICE ptx::Vec16 pack(const float (&v)[kWidth]) {
    return {device::float_bits(v[0]), device::float_bits(v[1]), device::float_bits(v[2]), device::float_bits(v[3])};
  }
  static LC_DEVICE float widen(float value) { return value; }
  static LC_DEVICE float round(float value) { return value; }
};

template <class Format_, ptx::MultimemType kType>
struct Halves {
  using Format = Format_;
  using Storage = uint16_t;
  static constexpr ptx::MultimemType kMultimem = kType;
  static constexpr uint32_t kWidth = 8;
  static LC_DEVICE void unpack(ptx::Vec16 pack, float (&values)[kWidth]) {
    Format::unpack({pack.x, pack.y, pack.z, pack.w}, values);
  }
  static LC_DEVICE ptx::Vec16 pack(const float (&values)[kWidth]) {
    uint32_t words[4];
    Format::pack(values, words);
    return {words[0], words[1], words[2], words[3]};
  }
  static LC_DEVICE float widen(uint16_t value) {
    float values[kWidth];
    Format::unpack({value, 0, 0, 0}, values);
    return values[0];
  }
  static LC_DEVICE uint16_t round(float value) {
    uint32_t words[4];
    Format::pack({value, 0, 0, 0, 0, 0, 0, 0}, words);
    return static_cast<uint16_t>(words[0]);
  }
};
using F16 = Halves<device::Float16, ptx::MultimemType::kF16>;
using BF16 = Halves<device::BFloat16, ptx::MultimemType::kBF16>;

template <class Element>
LC_DEVICE ptx::Vec16 add_packs(ptx::Vec16 a, ptx::Vec16 b) {
  float sum[Element::kWidth], other[Element::kWidth];
  Element::unpack(a, sum);
  Element::unpack(b, other);
  LC_UNROLL
  for (uint32_t i = 0; i < Element::kWidth; ++i) sum[i] = ptx::add_rn(sum[i], other[i]);
  return Element::pack(sum);
}

// What is moved and never summed.
struct Bytes {
  using Storage = uint8_t;
};

// Peers: also what a switch cannot do, single elements of 1 or 2 bytes.
template <class Element>
struct PeerSwitch {
  static constexpr uint32_t kPacks = 1;  // a thread has in flight, of each rank

  static LC_DEVICE ptx::Vec16 reduce(const RankView& v, uint64_t at) {
    float sum[Element::kWidth], other[Element::kWidth];
    Element::unpack(ptx::load_global(reinterpret_cast<const ptx::Vec16*>(v.memory[0] + at)), sum);
    for (uint32_t rank = 1; rank < v.ranks; ++rank) {
      Element::unpack(ptx::load_global(reinterpret_cast<const ptx::Vec16*>(v.memory[rank] + at)), other);
      LC_UNROLL
      for (uint32_t i = 0; i < Element::kWidth; ++i) sum[i] = ptx::add_rn(sum[i], other[i]);
    }
    return Element::pack(sum);
  }
  static LC_DEVICE void send(const RankView& v, uint64_t at, ptx::Vec16 pack) {
    for (uint32_t rank = 0; rank < v.ranks; ++rank)
      ptx::store_global(reinterpret_cast<ptx::Vec16*>(v.memory[rank] + at), pack);
  }

  static LC_DEVICE typename Element::Storage reduce_element(const RankView& v, uint64_t at) {
    using Storage = typename Element::Storage;
    float sum = Element::widen(ptx::load_global(reinterpret_cast<const Storage*>(v.memory[0] + at)));
    LC_NO_UNROLL
    for (uint32_t rank = 1; rank < v.ranks; ++rank)
      sum = ptx::add_rn(sum, Element::widen(ptx::load_global(reinterpret_cast<const Storage*>(v.memory[rank] + at))));
    return Element::round(sum);
  }
  static LC_DEVICE void send_element(const RankView& v, uint64_t at, typename Element::Storage value) {
    LC_NO_UNROLL
    for (uint32_t rank = 0; rank < v.ranks; ++rank)
      ptx::store_global(reinterpret_cast<typename Element::Storage*>(v.memory[rank] + at), value);
  }
};

template <class Element>
struct MulticastSwitch : PeerSwitch<Element> {
  static constexpr uint32_t kPacks = 4;

  static LC_DEVICE ptx::Vec16 reduce(const RankView& v, uint64_t at) {
    return ptx::multimem_load_add_relaxed_sys<Element::kMultimem>(
        reinterpret_cast<const ptx::Vec16*>(v.multicast + at));
  }
  static LC_DEVICE void send(const RankView& v, uint64_t at, ptx::Vec16 pack) {
    ptx::multimem_store_relaxed_sys(reinterpret_cast<ptx::Vec16*>(v.multicast + at), pack);
  }
};

}  // namespace longcat_ops::comm
