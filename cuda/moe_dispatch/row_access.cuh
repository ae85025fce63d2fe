// How a kernel reads and writes rows: 16 bytes at a time if format and alignment are known at compile time. One
// instance takes everything else, element by element, so that there are few instances.
#pragma once

#include "device/vector_io.cuh"

namespace longcat_ops::moe_dispatch {

enum class Element : int32_t { kF32, kF16, kBF16 };  // the values of lc_dtype

template <class Format>
struct WideRows {
  static constexpr bool kWide = true;
  using Held = device::Chunk<Format>;
  static LC_DEVICE Held load(const void* matrix, Element, int64_t offset) {
    return device::load_chunk<Format, true>(static_cast<const typename Format::Storage*>(matrix) + offset);
  }
  static LC_DEVICE void unpack(const Held& held, float (&values)[device::kChunk]) { device::unpack(held, values); }
  static LC_DEVICE void store(void* matrix, Element, int64_t offset, const float (&values)[device::kChunk]) {
    auto* to = static_cast<typename Format::Storage*>(matrix) + offset;
    device::store_chunk<Format, true>(to, device::pack<Format>(values));
  }
};

// Any format, any alignment of elements; holds them as floats.
struct AnyRows {
  static constexpr bool kWide = false;
  using Held = device::Chunk<device::Float32>;
  static LC_DEVICE Held load(const void* matrix, Element element, int64_t offset) {
    if (element == Element::kF32) return load_as<device::Float32>(matrix, offset);
    if (element == Element::kF16) return load_as<device::Float16>(matrix, offset);
    return load_as<device::BFloat16>(matrix, offset);
  }
  static LC_DEVICE void unpack(const Held& held, float (&values)[device::kChunk]) { device::unpack(held, values); }
  static LC_DEVICE void store(void* matrix, Element element, int64_t offset, const float (&values)[device::kChunk]) {
    if (element == Element::kF32) return store_as<device::Float32>(matrix, offset, values);
    if (element == Element::kF16) return store_as<device::Float16>(matrix, offset, values);
    store_as<device::BFloat16>(matrix, offset, values);
  }

 private:
  template <class Format>
  static LC_DEVICE Held load_as(const void* matrix, int64_t offset) {
    const auto* from = static_cast<const typename Format::Storage*>(matrix) + offset;
    float values[device::kChunk];
    device::unpack(device::load_chunk<Format, false>(from), values);
    return device::pack<device::Float32>(values);
  }
  template <class Format>
  static LC_DEVICE void store_as(void* matrix, int64_t offset, const float (&values)[device::kChunk]) {
    auto* to = static_cast<typename Format::Storage*>(matrix) + offset;
    device::store_chunk<Format, false>(to, device::pack<Format>(values));
  }
};

}  // namespace longcat_ops::moe_dispatch
