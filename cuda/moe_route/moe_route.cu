#include "moe_route/moe_route.cuh"

#include <random>

#include "launch/launch.h"
#include "longcat_ops.h"

namespace longcat_ops::moe_route {
namespace {

template <class Format>
int launch_format(const MoeRouteParams& params, int slots, bool wide, const LaunchConfig& config, const Memory& memory,
                  lc_stream_t stream) {
  if (!wide) return launch(moe_route_kernel<Format, 4, false>, config, params, stream, memory);
  switch (slots) {
    case 1: return launch(moe_route_kernel<Format, 1, true>, config, params, stream, memory);
    case 2: return launch(moe_route_kernel<Format, 2, true>, config, params, stream, memory);
    case 3: return launch(moe_route_kernel<Format, 3, true>, config, params, stream, memory);
    default: return launch(moe_route_kernel<Format, 4, true>, config, params, stream, memory);
  }
}

Mark new_mark() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  const uint64_t bits = random();
  return {static_cast<int32_t>(0x80000000u | bits >> 34), static_cast<uint32_t>(bits)};
}

int launch_moe_route(const lc_matrix* logits, const float* bias, const int32_t* num_valid, int32_t top_k,
                     int32_t num_zero_experts, double scale, int32_t* ids, float* weights, float* zero_weight,
                     uint8_t* num_real, int32_t* counts, int32_t* errors, lc_stream_t stream) {
  const int64_t tokens = logits->rows, experts = logits->columns;
  const MoeRouteConfig config = choose_moe_route_config(tokens, experts);
  MoeRouteParams params{};
  params.logits = logits->data;
  params.bias = bias;
  params.num_valid = num_valid;
  params.ids = ids;
  params.weights = weights;
  params.zero_weight = zero_weight;
  params.num_real = num_real;
  params.counts = reinterpret_cast<uint32_t*>(counts);
  params.errors = reinterpret_cast<uint32_t*>(errors);
  params.tokens = tokens;
  params.stride_logits = logits->row_stride;
  params.experts = static_cast<uint32_t>(experts);
  params.ffn_experts = static_cast<uint32_t>(experts - num_zero_experts);
  params.top_k = static_cast<uint32_t>(top_k);
  params.block_tokens = static_cast<uint32_t>(config.threads / 32);
  if (!config.clear) params.mark = new_mark();
  params.scale = static_cast<float>(scale);

  if (config.clear) {
    const LaunchConfig clear{"moe_route", 1, kRouteMaxThreads};
    const Memory memory = Memory().writes("counts", counts, experts);
    if (const int status = launch(moe_route_clear_kernel, clear, params, stream, memory)) return status;
  }
  Memory memory = Memory()
                      .reads("logits", logits)
                      .reads("bias", bias, experts)
                      .reads("num_valid", num_valid, 1)
                      .updates("errors", errors, 1)
                      .writes("zero_weight", zero_weight, tokens)
                      .writes("num_real", num_real, tokens);
  if (config.clear) {
    memory.updates("counts", counts, experts);
    memory.writes("ids", ids, tokens * top_k).writes("weights", weights, tokens * top_k);
  } else {
    memory.writes("counts", counts, experts);
    memory.updates("ids", ids, tokens * top_k).updates("weights", weights, tokens * top_k);  // read for a mark
  }

  const bool f32 = logits->dtype == LC_F32;
  const uint64_t row_bytes = tokens > 1 ? static_cast<uint64_t>(logits->row_stride) * (f32 ? 4 : 2) : 0;
  const bool wide =
      experts % device::kChunk == 0 &&
      (reinterpret_cast<uintptr_t>(logits->data) | row_bytes | reinterpret_cast<uintptr_t>(bias)) % 16 == 0;
  const LaunchConfig route{"moe_route", config.blocks, config.threads};
  return f32 ? launch_format<device::Float32>(params, config.slots, wide, route, memory, stream)
             : launch_format<device::BFloat16>(params, config.slots, wide, route, memory, stream);
}

}  // namespace
}  // namespace longcat_ops::moe_route

extern "C" int lc_moe_route(const lc_moe_route_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_moe_route", args)) return status;
  return longcat_ops::moe_route::launch_moe_route(
      &args->logits, args->bias, args->num_valid, args->top_k, args->num_zero_experts, args->scale, args->ids,
      args->weights, args->zero_weight, args->num_real, args->counts, args->errors, stream);
}
