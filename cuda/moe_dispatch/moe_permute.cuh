// moe_permute: writes each row of x, unchanged, to the rows that the plan gives its token. It is for bf16 experts what
// moe_permute_quant is for FP8 ones.
//
// Floor per element of a token that has a row: 2 bytes (4 for f32) read, as many written per row: 18 for bf16 with 8
// FFN experts. The format does not matter: a chunk is 8 halves, and a row of f32 counts as one of twice the width.
#pragma once

#include "moe_dispatch/choices.cuh"

namespace longcat_ops::moe_dispatch {

struct MoePermuteParams {
  const uint16_t* x;  // [T, H], or [T, 2H] for f32; strides likewise
  uint16_t* out;      // [R, H]
  int64_t stride_x, stride_out;
  PlanView plan;
  TokenWarps warps;
};

template <bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kDispatchThreads, 12) moe_permute_kernel(LC_GRID_CONSTANT MoePermuteParams p) {
  using namespace device;
  using Halves = BFloat16;
  const WarpPlace place = locate(p.warps);
  if (!place.inside) return;
  const uint32_t list = list_of_warp<int32_t>();
  const uint32_t chunk = 32 * place.cell + ptx::lane_index();
  const bool inside = chunk < p.warps.chunks;

  ptx::grid_dependency_wait();
  const PlanChoice choice = load_choice(p.plan, place.token);
  if (!ptx::any(choice.row >= 0)) return;
  Chunk<Halves> held = {};
  if (inside) held = load_chunk<Halves, kWide>(p.x + place.token * p.stride_x + kChunk * chunk);
  const bool keep = is_agreed(p.plan, choice);
  ptx::grid_dependency_launch();
  const uint32_t count = list_choices(list, keep, choice.row);

  if (!inside) return;
  for (uint32_t i = 0; i < count; ++i) {
    const int64_t row = choice_of_list<int32_t>(list, i);
    store_chunk<Halves, kWide>(p.out + row * p.stride_out + kChunk * chunk, held);
  }
}

}  // namespace longcat_ops::moe_dispatch
