// moe_permute_quant: quantises each row of x once, 1x128 as per_token_group_quant_fp8 does, and writes it to the rows
// of q and s that the plan gives its token.
//
// Floor per token that has a row: 2 (16-bit x) or 4 (f32) bytes read per element, 1 + 4 / 128 written per element and
// row: 62 976 bytes for bf16, 6144 columns and 8 FFN experts, of which the copies are 50 688.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/trace.cuh"
#include "device/warp_reduce.cuh"
#include "moe_dispatch/choices.cuh"
#include "moe_dispatch/row_access.cuh"

namespace longcat_ops::moe_dispatch {

struct MoePermuteQuantParams {
  const void* x;  // [T, H]
  uint8_t* q;     // [R, H]
  float* s;       // [R, ceil(H / 128)], any strides
  int64_t stride_x, stride_q, stride_s_row, stride_s_column;
  PlanView plan;
  TokenWarps warps;
  Element x_element;
};

template <class Rows>
LC_KERNEL LC_LAUNCH_BOUNDS(kDispatchThreads, 12) moe_permute_quant_kernel(LC_GRID_CONSTANT MoePermuteQuantParams p) {
  using namespace device;
  trace(TracedKernel::kPermuteQuant, TracePoint::kEntered);
  constexpr uint32_t kGroupLanes = 16;  // a half-warp takes a group, one chunk per lane
  const WarpPlace place = locate(p.warps);
  if (!place.inside) return;
  const uint32_t lane = ptx::lane_index(), list = list_of_warp<int32_t>();
  const uint32_t chunk = 32 * place.cell + lane;
  const bool inside = chunk < p.warps.chunks;

  // Read the chunk of a token that has a row. Zeros do not change a maximum.
  ptx::grid_dependency_wait();
  trace(TracedKernel::kPermuteQuant, TracePoint::kReady);
  const PlanChoice choice = load_choice(p.plan, place.token);
  if (!ptx::any(choice.row >= 0)) return;
  typename Rows::Held held = {};
  if (inside) held = Rows::load(p.x, p.x_element, place.token * p.stride_x + kChunk * chunk);
  const bool keep = is_agreed(p.plan, choice);
  ptx::grid_dependency_launch();
  const uint32_t count = list_choices(list, keep, choice.row);

  // Quantise it once.
  float values[kChunk];
  Rows::unpack(held, values);
  const Fp8Scale scale = make_fp8_scale(reduce_lanes<kGroupLanes>(max_abs_bits(values), Max()));
  const ptx::Vec8 codes = quantise_chunk(values, scale);

  // Store the scale: lane i of the group to row i.
  const uint32_t group = chunk / kGroupLanes;
  if (group * kGroupLanes < p.warps.chunks) {
    float* s = p.s + group * p.stride_s_column;
    for (uint32_t i = lane % kGroupLanes; i < count; i += kGroupLanes)
      ptx::store_global(s + choice_of_list<int32_t>(list, i) * p.stride_s_row, scale.value);
  }

  // Store the codes. Two neighbours exchange theirs, so that each has 16 bytes, and split the rows.
  if constexpr (Rows::kWide) {
    const bool odd = lane % 2 != 0;
    const ptx::Vec8 other{ptx::shuffle_xor(codes.x, 1), ptx::shuffle_xor(codes.y, 1)};
    const ptx::Vec8 low = odd ? other : codes, high = odd ? codes : other;
    uint8_t* q = p.q + kChunk * (chunk - odd);
    if (!inside) return;
    for (uint32_t i = odd; i < count; i += 2) {
      uint8_t* to = q + choice_of_list<int32_t>(list, i) * p.stride_q;
      ptx::store_global(reinterpret_cast<ptx::Vec16*>(to), ptx::Vec16{low.x, low.y, high.x, high.y});
    }
  } else {
    if (!inside) return;
    for (uint32_t i = 0; i < count; ++i)
      store_codes<false>(p.q + choice_of_list<int32_t>(list, i) * p.stride_q + kChunk * chunk, codes);
  }
}

}  // namespace longcat_ops::moe_dispatch
