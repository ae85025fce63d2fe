// rms_norm: y = rms_norm of x, or of x + residual rounded to x's dtype, which residual_out keeps.
//
// Floor per element: 2 bytes read and 2 written (f32: 4 and 4), twice that with a residual. A block takes a row. A
// thread holds three chunks in registers, which is 6144 columns in all: those of LongCat-Flash. What lies beyond is
// read twice, and so is everything where elements move one by one. The weight (4 bytes per column) is shared by all
// rows and stays in L1 and L2.
//
// The sum of squares has the order of norm_row.cuh.
#pragma once

#include "device/norm_row.cuh"
#include "device/warp_reduce.cuh"
#include "rows/row_chunks.cuh"

namespace longcat_ops::rows {

static_assert(kRmsNormSmemBytes == device::kReduceScratchBytes);

struct RmsNormParams {
  const void *x, *residual;  // [T, H]; residual or null
  const float* weight;       // [H]
  void *y, *residual_out;    // [T, H]; residual_out is null where residual is
  int64_t stride_x, stride_residual, stride_y, stride_residual_out;
  int64_t width;
  uint32_t threads;  // of a block: norm_threads
  float eps;
};

template <class Format, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(device::kNormMaxThreads, 3) rms_norm_kernel(LC_GRID_CONSTANT RmsNormParams p) {
  using namespace device;
  using Storage = typename Format::Storage;
  constexpr int kHeld = kWide ? 3 : 0, kSlots = kHeld > 0 ? kHeld : 1;
  const int64_t row = ptx::block_index(), step = static_cast<int64_t>(kChunk) * p.threads;
  const int64_t first = static_cast<int64_t>(kChunk) * ptx::thread_index(), beyond = first + kHeld * step;
  const bool has_residual = p.residual != nullptr;
  const auto* x = static_cast<const Storage*>(p.x) + row * p.stride_x;
  const auto* residual = static_cast<const Storage*>(p.residual) + row * p.stride_residual;
  auto* y = static_cast<Storage*>(p.y) + row * p.stride_y;
  auto* residual_out = static_cast<Storage*>(p.residual_out) + row * p.stride_residual_out;
  const auto load = [&](const Storage* from, int64_t at) { return load_part<Format, kWide>(from + at, p.width - at); };
  const auto store = [&](Storage* to, int64_t at, const Chunk<Format>& chunk) {
    store_part<Format, kWide>(to + at, chunk, p.width - at);
  };
  const auto load_weight = [&](int64_t at, float (&weight)[kChunk]) {
    unpack(load_part<Float32, kWide>(p.weight + at, p.width - at), weight);
  };

  // Read what is held, all of x before the residual, and the weight, which arrives during the reduction.
  ptx::grid_dependency_wait();
  Chunk<Format> held[kSlots] = {};
  float weight[kSlots][kChunk] = {};
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i)
    if (first + i * step < p.width) held[i] = load(x, first + i * step);
  if (has_residual) {
    Chunk<Format> other[kSlots] = {};
    LC_UNROLL
    for (int i = 0; i < kHeld; ++i)
      if (first + i * step < p.width) other[i] = load(residual, first + i * step);
    LC_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      held[i] = add_chunks(held[i], other[i]);
      if (first + i * step < p.width) store(residual_out, first + i * step, held[i]);
    }
  }
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i)
    if (first + i * step < p.width) load_weight(first + i * step, weight[i]);
  ptx::grid_dependency_launch();

  // Sum the squares.
  float sum = 0.0f, values[kChunk];
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    unpack(held[i], values);
    sum = ptx::add_rn(sum, sum_of_squares(values));
  }
  for (int64_t at = beyond; at < p.width; at += step) {
    Chunk<Format> input = load(x, at);
    if (has_residual) {
      input = add_chunks(input, load(residual, at));
      store(residual_out, at, input);
    }
    unpack(input, values);
    sum = ptx::add_rn(sum, sum_of_squares(values));
  }
  sum = reduce_block(sum, Sum(), p.threads / 32, ptx::dynamic_smem_base());
  const float inverse_rms = inverse_rms_of(sum, static_cast<float>(p.width), p.eps);

  // Normalise what is held, and what lies beyond: x again, or the sum that this thread stored.
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i)
    if (first + i * step < p.width) store(y, first + i * step, normalise(held[i], inverse_rms, weight[i]));
  for (int64_t at = beyond; at < p.width; at += step) {
    load_weight(at, weight[0]);
    store(y, at, normalise(load(has_residual ? residual_out : x, at), inverse_rms, weight[0]));
  }
}

}  // namespace longcat_ops::rows
