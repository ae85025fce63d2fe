// moe_permute_quant: quantises each row of x once, 1x128 as per_token_group_quant_fp8 does, and writes it to the rows
// of q and s that the plan gives its token.
//
// Floor per token that has a row: 2 (16-bit x) or 4 (f32) bytes read per element, 1 + 4 / 128 written per element and
// row: 62 976 bytes for bf16, 6144 columns and 8 FFN experts, of which the copies are 50 688.
#pragma once

#include "device/trace.cuh"
#include "moe_dispatch/choices.cuh"
#include "moe_dispatch/row_access.cuh"
#include "moe_dispatch/spread_rows.cuh"

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
  const WarpPlace place = locate(p.warps);
  if (!place.inside) return;
  const uint32_t list = list_of_warp<int32_t>();
  const uint32_t chunk = 32 * place.cell + ptx::lane_index();
  const bool inside = chunk < p.warps.chunks;

  // Read the chunk of a token that has a row.
  ptx::grid_dependency_wait();
  trace(TracedKernel::kPermuteQuant, TracePoint::kReady);
  const PlanChoice choice = load_choice(p.plan, place.token);
  if (!ptx::any(choice.row >= 0)) return;
  typename Rows::Held held = {};
  if (inside) held = Rows::load(p.x, p.x_element, place.token * p.stride_x + kChunk * chunk);
  const bool keep = is_agreed(p.plan, choice);
  ptx::grid_dependency_launch();
  const uint32_t count = list_choices(list, keep, choice.row);

  const auto row = [&](uint32_t i) { return choice_of_list<int32_t>(list, i); };
  const QuantisedChunk quantised = quantise_token<Rows>(held);
  spread_scale(
      quantised, chunk, p.warps.chunks, count, [&](uint32_t i) { return p.s + row(i) * p.stride_s_row; },
      p.stride_s_column);
  spread_codes<Rows::kWide>(quantised, chunk, p.warps.chunks, count,
                            [&](uint32_t i) { return p.q + row(i) * p.stride_q; });
}

}  // namespace longcat_ops::moe_dispatch
