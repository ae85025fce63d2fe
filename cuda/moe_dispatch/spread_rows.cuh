// A token's chunk that goes to several rows: to those of permute here, or to other GPUs. Quantised once, stored to
// each.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/warp_reduce.cuh"
#include "moe_dispatch/choices.cuh"

namespace longcat_ops::moe_dispatch {

constexpr uint32_t kGroupLanes = kQuantBlock / device::kChunk;  // a half-warp takes a group, one chunk per lane

struct QuantisedChunk {
  ptx::Vec8 codes;
  float scale;  // of the group
};

// All lanes; a lane outside of the row has zeros, which do not change a maximum.
template <class Rows>
LC_DEVICE QuantisedChunk quantise_token(const typename Rows::Held& held) {
  using namespace device;
  float values[kChunk];
  Rows::unpack(held, values);
  const Fp8Scale scale = make_fp8_scale(reduce_lanes<kGroupLanes>(max_abs_bits(values), Max()));
  return {quantise_chunk(values, scale), scale.value};
}

// Lane i of the group stores to row i of `count`. row(i): where the row's scales begin, `stride` apart.
template <class Row>
LC_DEVICE void spread_scale(const QuantisedChunk& held, uint32_t chunk, uint32_t chunks, uint32_t count, Row row,
                            int64_t stride) {
  const uint32_t group = chunk / kGroupLanes;
  if (group * kGroupLanes >= chunks) return;
  for (uint32_t i = ptx::lane_index() % kGroupLanes; i < count; i += kGroupLanes)
    ptx::store_global(row(i) + group * stride, held.scale);
}

// row(i): where row i of `count` begins. kWide: rows begin on 16 bytes and have an even number of chunks; then two
// neighbours exchange their codes, so that each has 16 bytes, and split the rows.
template <bool kWide, class Row>
LC_DEVICE void spread_codes(const QuantisedChunk& held, uint32_t chunk, uint32_t chunks, uint32_t count, Row row) {
  const ptx::Vec8 codes = held.codes;
  if constexpr (kWide) {
    const bool odd = ptx::lane_index() % 2 != 0;
    const ptx::Vec8 other{ptx::shuffle_xor(codes.x, 1), ptx::shuffle_xor(codes.y, 1)};
    const ptx::Vec8 low = odd ? other : codes, high = odd ? codes : other;
    if (chunk >= chunks) return;
    for (uint32_t i = odd; i < count; i += 2)
      ptx::store_global(reinterpret_cast<ptx::Vec16*>(row(i) + device::kChunk * (chunk - odd)),
                        ptx::Vec16{low.x, low.y, high.x, high.y});
  } else {
    if (chunk >= chunks) return;
    for (uint32_t i = 0; i < count; ++i) device::store_codes<false>(row(i) + device::kChunk * chunk, codes);
  }
}

}  // namespace longcat_ops::moe_dispatch
