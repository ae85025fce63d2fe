// moe_route: softmax over E experts, the top_k of p + bias, weights p * scale, zero experts summed into one number.
//
// Floor: the logits read once, 8 bytes written per choice, 5 per token; 3173 bytes per token for 768 float32 logits and
// 12 choices. All tokens share bias and counts, which stay in L2. Above some thousand tokens the selection's
// instructions take longer than the memory traffic.
//
// A warp takes a token. Its lanes hold the row in chunks of 8: lane l has chunks l, l + 32, ... That order, and so
// every bit of a result, is the same for any number of slots, layout or batch. Selection uses an integer key per expert
// that orders as its biased score does: in each of top_k rounds redux.max finds the warp's largest key and redux.min
// the lowest id that has it. Weights are computed for the chosen experts alone, from their logits, by the operations
// that made the scores.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/math.cuh"
#include "device/vector_io.cuh"
#include "device/warp_reduce.cuh"
#include "moe_route/config.h"

namespace longcat_ops::moe_route {

// Block 0 zeroes counts while the others route. It then leaves a mark where the first choice of each other block will
// stand, and that block waits for its mark before it counts and writes. Block 0 waits for nobody, and all blocks fit on
// the GPU at once. A mark is 62 random bits, new for every launch, so whatever the memory held before is none: after a
// launch choices stand there, and no choice has an id below -1.
struct Mark {
  int32_t id;       // below -1; 0: no marks, counts are zero by other means
  uint32_t weight;  // bits of a float
};

struct MoeRouteParams {
  const void* logits;        // [tokens, experts]
  const float* bias;         // [experts]
  const int32_t* num_valid;  // [1] or null
  int32_t* ids;              // [tokens, top_k]
  float* weights;            // [tokens, top_k]
  float* zero_weight;        // [tokens]
  uint8_t* num_real;         // [tokens]
  uint32_t* counts;          // [experts]
  uint32_t* errors;          // [1]
  int64_t tokens, stride_logits;
  uint32_t experts;
  uint32_t ffn_experts;  // experts before the first zero expert
  uint32_t top_k;
  uint32_t block_tokens;  // warps of a block
  Mark mark;
  float scale;
};

constexpr uint32_t kMinusInfinity = 0xff800000, kNan = 0x7fc00000;  // of a float

// Turns a float into an integer of the same order, and back. 0 is below every number.
LC_DEVICE uint32_t ordered_bits(float value) {
  const uint32_t bits = device::float_bits(value);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
LC_DEVICE float ordered_float(uint32_t ordered) {
  return device::bits_float(ordered & 0x80000000 ? ordered & 0x7fffffff : ~ordered);
}

// A chosen expert's id in ids: -1 for zero experts. NOTE: a table of expert placement (logical to physical) belongs
// here.
LC_DEVICE int32_t public_id(const MoeRouteParams& p, uint32_t expert) {
  return expert < p.ffn_experts ? static_cast<int32_t>(expert) : -1;
}

LC_DEVICE void clear_counts(const MoeRouteParams& p, uint32_t threads) {
  for (uint32_t expert = ptx::thread_index(); expert < p.experts; expert += threads)
    ptx::store_global(p.counts + expert, 0u);
}

// Runs before moe_route_kernel if that has more blocks than may wait for one of them.
LC_KERNEL LC_LAUNCH_BOUNDS(kRouteMaxThreads, 1) moe_route_clear_kernel(LC_GRID_CONSTANT MoeRouteParams p) {
  ptx::grid_dependency_launch();
  ptx::grid_dependency_wait();
  clear_counts(p, kRouteMaxThreads);
}

// All of block 0.
LC_DEVICE void leave_marks(const MoeRouteParams& p) {
  const uint32_t threads = 32 * p.block_tokens;
  clear_counts(p, threads);
  ptx::sync_threads();
  for (uint32_t block = 1 + ptx::thread_index(); block < ptx::grid_size(); block += threads) {
    const int64_t place = static_cast<int64_t>(block) * p.block_tokens * p.top_k;
    ptx::store_relaxed_gpu(reinterpret_cast<uint32_t*>(p.weights) + place, p.mark.weight);
    ptx::store_release_gpu(p.ids + place, p.mark.id);
  }
}

// Every warp of a block, once, before it counts or writes.
LC_DEVICE void wait_for_mark(const MoeRouteParams& p) {
  if (p.mark.id == 0 || ptx::block_index() == 0) return;
  if (ptx::thread_index() == 0) {
    const int64_t place = static_cast<int64_t>(ptx::block_index()) * p.block_tokens * p.top_k;
    while (ptx::load_acquire_gpu(p.ids + place) != p.mark.id ||
           ptx::load_relaxed_gpu(reinterpret_cast<const uint32_t*>(p.weights) + place) != p.mark.weight)
      ptx::spin_pause();
  }
  ptx::sync_threads();
}

// What a lane adds to its token's outputs.
struct Choice {
  int32_t id;
  float weight;
};

LC_DEVICE void store_token(const MoeRouteParams& p, int64_t token, Choice choice, float zero_weight,
                           uint32_t num_real) {
  const uint32_t lane = ptx::lane_index();
  if (lane < p.top_k) {
    ptx::store_global(p.ids + token * p.top_k + lane, choice.id);
    ptx::store_global(p.weights + token * p.top_k + lane, choice.weight);
  }
  if (lane == 0) {
    ptx::store_global(p.zero_weight + token, zero_weight);
    ptx::store_global(p.num_real + token, static_cast<uint8_t>(num_real));
  }
}

// kSlots: chunks per lane, at least experts / 256.
template <class Format, int kSlots, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kRouteMaxThreads, 2) moe_route_kernel(LC_GRID_CONSTANT MoeRouteParams p) {
  using namespace device;
  constexpr uint32_t kSlotWidth = 32 * kChunk, kNone = 0xffffffff;
  const uint32_t lane = ptx::lane_index(), first = kChunk * lane;
  const int64_t token = static_cast<int64_t>(ptx::block_index()) * p.block_tokens + ptx::warp_index();
  const auto* logits = static_cast<const typename Format::Storage*>(p.logits) + token * p.stride_logits;

  ptx::grid_dependency_wait();
  if (p.mark.id != 0 && ptx::block_index() == 0) leave_marks(p);
  if (token >= p.tokens) {
    wait_for_mark(p);
    return;
  }
  if (p.num_valid != nullptr && token >= ptx::load_global(p.num_valid)) {
    wait_for_mark(p);
    store_token(p, token, {-1, 0.0f}, 0.0f, 0);
    return;
  }

  // Read the row and the bias before any of it is used.
  uint32_t size[kSlots];
  Chunk<Format> row[kSlots] = {};
  Chunk<Float32> bias_row[kSlots] = {};
  LC_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    const uint32_t begin = first + kSlotWidth * s, rest = begin < p.experts ? p.experts - begin : 0;
    size[s] = rest < kChunk ? rest : kChunk;
    if constexpr (kWide) {
      if (size[s] == 0) continue;
      row[s] = load_chunk<Format, true>(logits + begin);
      bias_row[s] = load_chunk<Float32, true>(p.bias + begin);
    } else {
      row[s] = load_elements<Format>(logits + begin, size[s]);
      bias_row[s] = load_elements<Float32>(p.bias + begin, size[s]);
    }
  }
  ptx::grid_dependency_launch();

  // Softmax. Elements beyond the row count as -inf, of probability 0; a NaN is never the largest.
  float score[kSlots][kChunk], top = bits_float(kMinusInfinity), sum = 0.0f;
  LC_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    unpack(row[s], score[s]);
    LC_UNROLL
    for (uint32_t j = 0; j < kChunk; ++j) {
      if (j >= size[s]) score[s][j] = bits_float(kMinusInfinity);
      top = score[s][j] > top ? score[s][j] : top;
    }
  }
  top = ordered_float(ptx::redux_max(ordered_bits(top)));
  LC_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    float* e = score[s];
    LC_UNROLL
    for (uint32_t j = 0; j < kChunk; ++j) e[j] = ptx::exp(ptx::add_rn(e[j], -top));
    const float low = ptx::add_rn(ptx::add_rn(e[0], e[1]), ptx::add_rn(e[2], e[3]));
    const float high = ptx::add_rn(ptx::add_rn(e[4], e[5]), ptx::add_rn(e[6], e[7]));
    sum = ptx::add_rn(sum, ptx::add_rn(low, high));
  }
  sum = reduce_lanes<32>(sum, Sum());
  const float inverse = ptx::divide_rn(1.0f, sum);
  const auto probability = [&](float e) { return divide_shared(e, sum, inverse, -inverse); };

  // Compute the keys and the largest of each chunk. A NaN, a +inf or a row of -inf has made the sum a NaN.
  uint32_t keys[kSlots][kChunk], best[kSlots] = {};
  bool bad = false;
  LC_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    float bias[kChunk];
    unpack(bias_row[s], bias);
    LC_UNROLL
    for (uint32_t j = 0; j < kChunk; ++j) {
      const float biased = ptx::add_rn(probability(score[s][j]), bias[j]);
      bad |= biased != biased;
      keys[s][j] = j < size[s] ? ordered_bits(biased) : 0;
      best[s] = keys[s][j] > best[s] ? keys[s][j] : best[s];
    }
  }
  if (ptx::any(bad)) {
    wait_for_mark(p);
    if (lane == 0) ptx::red_add_relaxed_gpu(p.errors, 1);
    store_token(p, token, {-1, 0.0f}, bits_float(kNan), 0);
    return;
  }

  // Select: lane k keeps the k-th choice.
  uint32_t expert = kNone;
  for (uint32_t k = 0; k < p.top_k; ++k) {
    uint32_t key = 0;
    LC_UNROLL
    for (int s = 0; s < kSlots; ++s) key = best[s] > key ? best[s] : key;
    key = ptx::redux_max(key);
    uint32_t taken = kNone;
    LC_UNROLL
    for (int s = kSlots - 1; s >= 0; --s) {
      if (best[s] != key) continue;
      LC_UNROLL
      for (uint32_t j = kChunk; j-- > 0;)
        if (keys[s][j] == key) taken = first + kSlotWidth * s + j;
    }
    taken = ptx::redux_min(taken);
    LC_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const uint32_t place = taken - (first + kSlotWidth * s);
      if (place >= kChunk) continue;
      best[s] = 0;
      LC_UNROLL
      for (uint32_t j = 0; j < kChunk; ++j) {
        if (j == place) keys[s][j] = 0;
        best[s] = keys[s][j] > best[s] ? keys[s][j] : best[s];
      }
    }
    if (lane == k) expert = taken;
  }

  // Compute the weights; those of zero experts are summed in the order of k.
  Choice choice{-1, 0.0f};
  float zero = 0.0f, zero_weight = 0.0f;
  wait_for_mark(p);
  if (lane < p.top_k) {
    float logit[kChunk];
    unpack(load_elements<Format>(logits + expert, 1), logit);
    const float weight = ptx::multiply_rn(probability(ptx::exp(ptx::add_rn(logit[0], -top))), p.scale);
    choice.id = public_id(p, expert);
    (choice.id < 0 ? zero : choice.weight) = weight;
    ptx::red_add_relaxed_gpu(p.counts + expert, 1);
  }
  for (uint32_t k = 0; k < p.top_k; ++k)
    zero_weight = ptx::add_rn(zero_weight, ptx::shuffle(zero, static_cast<int>(k)));
  store_token(p, token, choice, zero_weight, ptx::popcount(ptx::ballot(choice.id >= 0)));
}

}  // namespace longcat_ops::moe_route
