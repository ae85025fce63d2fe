// moe_combine: out[t] = sum over k of weights[t, k] * y[row_of[t, k]] + zero_weight[t] * x[t] + add[t], in float32 and
// in this order, every product and every sum rounded, then rounded once to x's dtype.
//
// Floor per element of out: 2 bytes (4 for f32) for each of the token's rows of y, for x, for out and, if given, for
// add: 20 bytes for bf16 with 8 FFN experts. Every row is read once; a choice without a row costs nothing.
#pragma once

#include "device/trace.cuh"
#include "moe_dispatch/choices.cuh"
#include "moe_dispatch/row_access.cuh"

namespace longcat_ops::moe_dispatch {

struct MoeCombineParams {
  const void* y;             // [rows, H]
  const void* x;             // [T, H]
  const void* add;           // [T, H] or null
  void* out;                 // [T, H]
  const int32_t* row_of;     // [T, top_k]
  const float* weights;      // [T, top_k]
  const float* zero_weight;  // [T]
  int64_t rows, stride_y, stride_x, stride_add, stride_out;
  TokenWarps warps;
  uint32_t top_k;
  Element y_element, x_element;  // x_element: also of add and out
};

using RowAndWeight = ptx::Vec8;  // an entry of a warp's list: the row, the bits of its weight

LC_DEVICE void add_product(float (&sum)[device::kChunk], const float (&values)[device::kChunk], float weight) {
  LC_UNROLL
  for (uint32_t i = 0; i < device::kChunk; ++i) sum[i] = ptx::add_rn(sum[i], ptx::multiply_rn(values[i], weight));
}

template <class Rows>
LC_KERNEL LC_LAUNCH_BOUNDS(kDispatchThreads, 7) moe_combine_kernel(LC_GRID_CONSTANT MoeCombineParams p) {
  using namespace device;
  trace(TracedKernel::kCombine, TracePoint::kEntered);
  using Held = typename Rows::Held;
  constexpr uint32_t kInFlight = 128 / sizeof(Held);  // rows read before one is used: 32 registers
  const WarpPlace place = locate(p.warps);
  if (!place.inside) return;
  const uint32_t lane = ptx::lane_index(), list = list_of_warp<RowAndWeight>();
  const int64_t choice = place.token * p.top_k + lane;
  const uint32_t chunk = 32 * place.cell + lane;
  const bool inside = chunk < p.warps.chunks;
  const int64_t column = static_cast<int64_t>(kChunk) * chunk;

  // Read what needs no row number.
  ptx::grid_dependency_wait();
  trace(TracedKernel::kCombine, TracePoint::kReady);
  int32_t own_row = -1;
  float own_weight = 0.0f;
  if (lane < p.top_k) {
    own_row = ptx::load_global(p.row_of + choice);
    own_weight = ptx::load_global(p.weights + choice);
  }
  const float zero_weight = ptx::load_global(p.zero_weight + place.token);
  Held x = {}, add = {};
  if (inside) {
    x = Rows::load(p.x, p.x_element, place.token * p.stride_x + column);
    if (p.add != nullptr) add = Rows::load(p.add, p.x_element, place.token * p.stride_add + column);
  }

  // Sum the rows in the order of k.
  // NOTE: a choice without a row adds +0. That only shows in a sum of nothing but -0, so the start value accounts for
  // it, once: -0 is the neutral element.
  const bool has_row = own_row >= 0 && own_row < p.rows;
  const RowAndWeight own{static_cast<uint32_t>(own_row), float_bits(own_weight)};
  const uint32_t count = list_choices(list, has_row, own);
  if (!inside) return;
  float sum[kChunk], values[kChunk];
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) sum[i] = count < p.top_k ? 0.0f : -0.0f;
  // NOTE: a batch that reaches past the list rereads its last row, from L1, so that no load waits for a branch.
  for (uint32_t first = 0; first < count; first += kInFlight) {
    Held held[kInFlight];
    LC_UNROLL
    for (uint32_t j = 0; j < kInFlight; ++j) {
      const uint32_t i = first + j < count ? first + j : count - 1;
      const int64_t row = choice_of_list<RowAndWeight>(list, i).x;
      held[j] = Rows::load(p.y, p.y_element, row * p.stride_y + column);
    }
    LC_UNROLL
    for (uint32_t j = 0; j < kInFlight; ++j) {
      if (first + j >= count) break;
      Rows::unpack(held[j], values);
      add_product(sum, values, bits_float(choice_of_list<RowAndWeight>(list, first + j).y));
    }
  }
  ptx::grid_dependency_launch();

  // Add the zero experts' part and `add`, round, store.
  Rows::unpack(x, values);
  add_product(sum, values, zero_weight);
  if (p.add != nullptr) {
    Rows::unpack(add, values);
    LC_UNROLL
    for (uint32_t i = 0; i < kChunk; ++i) sum[i] = ptx::add_rn(sum[i], values[i]);
  }
  Rows::store(p.out, p.x_element, place.token * p.stride_out + column, sum);
}

}  // namespace longcat_ops::moe_dispatch
