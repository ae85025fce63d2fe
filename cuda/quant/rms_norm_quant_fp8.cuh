// rms_norm_quant_fp8: y = rms_norm of x, or of x + residual rounded to x's dtype; q, s = y quantised 1x128.
//
// Floor per element, bf16: 2 read (4 with a residual), 2 y + 1 q + 4 / 128 s written (+ 2 residual_out): 5.03 (9.03)
// bytes; f32: 9.03 (17.03). A block takes a row and holds it in registers, so it is read once; above 16384 columns it
// is read twice. The weight (4 bytes per column) is shared by all rows and stays in L1 and L2.
//
// The sum of squares has the order of norm_row.cuh.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/warp_reduce.cuh"
#include "quant/norm_row.cuh"

namespace longcat_ops::quant {

struct RmsNormQuantFp8Params {
  const void* x;         // [rows, columns]
  const void* residual;  // [rows, columns] or null
  const float* weight;   // [columns]
  void* y;               // [rows, columns]
  void* residual_out;    // [rows, columns]; null where residual is
  uint8_t* q;            // [rows, columns]
  float* s;              // [rows, ceil(columns / 128)], any strides
  int64_t stride_x, stride_residual, stride_y, stride_residual_out, stride_q, stride_s_row, stride_s_column;
  uint32_t chunks;   // of a row
  uint32_t threads;  // of a block: a multiple of 32
  float width, eps;  // width: the number of columns
};

constexpr uint32_t kNormSmemBytes = device::kReduceScratchBytes;

// kHeld chunks of the row per thread; 0: any number, by reading the row a second time.
template <class Format, int kHeld, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kNormMaxThreads, (kHeld >= 1 && kHeld <= 4) ? 3 : 1)
    rms_norm_quant_fp8_kernel(LC_GRID_CONSTANT RmsNormQuantFp8Params p) {
  using namespace device;
  using Storage = typename Format::Storage;
  constexpr uint32_t kGroupChunks = 16;
  const uint32_t thread = ptx::thread_index();
  const int64_t row = ptx::block_index();
  const auto* x = static_cast<const Storage*>(p.x) + row * p.stride_x;
  const auto* residual = static_cast<const Storage*>(p.residual) + row * p.stride_residual;
  auto* residual_out = static_cast<Storage*>(p.residual_out) + row * p.stride_residual_out;
  auto* y = static_cast<Storage*>(p.y) + row * p.stride_y;
  uint8_t* q = p.q + row * p.stride_q;
  const bool has_residual = p.residual != nullptr;
  // NOTE: every lane makes every trip, inside the row or not, because whole warps reduce over a group.
  const uint32_t trips = (p.chunks + p.threads - 1) / p.threads;

  // Turn 8 elements into y, codes and, in the first lane of each group, a scale.
  float inverse_rms = 0.0f;
  auto emit = [&](uint32_t chunk, const Chunk<Format>& input, const float (&weight)[kChunk]) {
    const Chunk<Format> rounded = normalise(input, inverse_rms, weight);
    float values[kChunk];
    unpack(rounded, values);  // quantise y as it is stored
    const bool inside = chunk < p.chunks;
    const Fp8Scale scale = make_fp8_scale(reduce_lanes<kGroupChunks>(inside ? max_abs_bits(values) : 0, Max()));
    if (!inside) return;
    store_chunk<Format, kWide>(y + kChunk * chunk, rounded);
    store_codes<kWide>(q + kChunk * chunk, quantise_chunk(values, scale));
    if (chunk % kGroupChunks == 0)
      ptx::store_global(p.s + row * p.stride_s_row + chunk / kGroupChunks * p.stride_s_column, scale.value);
  };
  auto finish_sum = [&](float sum) {
    sum = reduce_block(sum, Sum(), p.threads / 32, ptx::dynamic_smem_base());
    inverse_rms = inverse_rms_of(sum, p.width, p.eps);
  };

  ptx::grid_dependency_wait();
  float sum = 0.0f, values[kChunk];
  if constexpr (kHeld > 0) {
    // Read the row and, if registers allow, the weight, so that it arrives during the reduction.
    constexpr bool kWeightEarly = kHeld <= 4;
    Chunk<Format> held[kHeld] = {};
    float weight[kWeightEarly ? kHeld : 1][kChunk] = {};
    LC_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const uint32_t chunk = thread + i * p.threads;
      if (chunk < p.chunks) held[i] = load_chunk<Format, kWide>(x + kChunk * chunk);
    }
    if (has_residual) {
      Chunk<Format> other[kHeld] = {};
      LC_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        const uint32_t chunk = thread + i * p.threads;
        if (chunk < p.chunks) other[i] = load_chunk<Format, kWide>(residual + kChunk * chunk);
      }
      LC_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        const uint32_t chunk = thread + i * p.threads;
        held[i] = add_chunks(held[i], other[i]);
        if (chunk < p.chunks) store_chunk<Format, kWide>(residual_out + kChunk * chunk, held[i]);
      }
    }
    if constexpr (kWeightEarly) {
      LC_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        const uint32_t chunk = thread + i * p.threads;
        if (chunk < p.chunks) load_floats<kWide>(p.weight + kChunk * chunk, weight[i]);
      }
      ptx::grid_dependency_launch();
    }

    // Sum the squares.
    LC_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      unpack(held[i], values);
      sum = ptx::add_rn(sum, sum_of_squares(values));
    }
    finish_sum(sum);

    // Normalise, quantise, store.
    LC_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const uint32_t chunk = thread + i * p.threads;
      if (static_cast<uint32_t>(i) >= trips) continue;
      if constexpr (!kWeightEarly) {
        if (chunk < p.chunks) load_floats<kWide>(p.weight + kChunk * chunk, weight[0]);
      }
      emit(chunk, held[i], weight[kWeightEarly ? i : 0]);
    }
    if constexpr (!kWeightEarly) ptx::grid_dependency_launch();
  } else {
    // Read the row and sum the squares.
    for (uint32_t chunk = thread; chunk < p.chunks; chunk += p.threads) {
      Chunk<Format> input = load_chunk<Format, kWide>(x + kChunk * chunk);
      if (has_residual) {
        input = add_chunks(input, load_chunk<Format, kWide>(residual + kChunk * chunk));
        store_chunk<Format, kWide>(residual_out + kChunk * chunk, input);
      }
      unpack(input, values);
      sum = ptx::add_rn(sum, sum_of_squares(values));
    }
    finish_sum(sum);

    // Read it again, or the sum this thread stored; normalise, quantise, store.
    const Storage* again = has_residual ? residual_out : x;
    for (uint32_t trip = 0; trip < trips; ++trip) {
      const uint32_t chunk = thread + trip * p.threads;
      Chunk<Format> input = {};
      float weight[kChunk] = {};
      if (chunk < p.chunks) {
        input = load_chunk<Format, kWide>(again + kChunk * chunk);
        load_floats<kWide>(p.weight + kChunk * chunk, weight);
      }
      emit(chunk, input, weight);
    }
    ptx::grid_dependency_launch();
  }
}

}  // namespace longcat_ops::quant
