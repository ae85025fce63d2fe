#include "mla/mla_query.cuh"

#include "launch/instances.h"
#include "launch/launch.h"
#include "launch/tensor_map.h"

namespace longcat_ops::mla_query {
namespace {

// The first `columns` elements of each row.
ByteTensor bytes_of(const lc_stack& s, int64_t columns) {
  return {s.matrix.data, s.count, s.matrix.rows, 2 * columns, 2 * s.stride, 2 * s.matrix.row_stride};
}

bool aligned(const lc_stack& s) {
  return chunks_aligned(&s.matrix) && (s.count <= 1 || s.stride % device::kChunk == 0);
}

auto kernel_of(uint32_t width, bool wide) {
  if (!wide) return mla_query_kernel<kCopiedTokens, false>;
  switch (width) {
    case 8: return mla_query_kernel<8, true>;
    case 16: return mla_query_kernel<16, true>;
    case 32: return mla_query_kernel<32, true>;
    default: return mla_query_kernel<kMostTokens, true>;
  }
}

int launch_mla_query(const lc_mla_query_args& args, lc_stream_t stream) {
  const lc_stack &q = args.q, &w_k = args.w_k, &out = args.out;
  if (q.matrix.dtype != LC_BF16)
    return set_status(LC_ERR_INVALID, "mla_query: dtype " + std::to_string(q.matrix.dtype) +
                                          ", expected LC_BF16: the tensor cores take bf16");
  const int64_t tokens = q.count, heads = q.matrix.rows, latent = w_k.matrix.rows, nope = w_k.matrix.columns;
  const ByteTensor token_bytes = bytes_of(q, nope), weight_bytes = bytes_of(w_k, nope);
  const bool wide = can_map(token_bytes) && can_map(weight_bytes) && aligned(q) && aligned(out) &&
                    chunks_aligned(&args.rope) && args.rope.columns % device::kChunk == 0;
  const MlaQueryConfig config = choose_mla_query_config(tokens, heads, latent, nope, wide);
  MlaQueryParams params{};
  if (config.blocks > 0 && wide) {
    const uint32_t rows = config.warpgroups * kWarpgroupRows;
    if (const int status = encode_map(weight_bytes, rows, &params.weight_map)) return status;
    if (const int status = encode_map(token_bytes, 1, &params.token_map, config.width)) return status;
  }
  params.q = static_cast<const uint16_t*>(q.matrix.data);
  params.w_k = static_cast<const uint16_t*>(w_k.matrix.data);
  params.rope = static_cast<const float*>(args.rope.data);
  params.position = args.position;
  params.out = static_cast<uint16_t*>(out.matrix.data);
  params.stride_q = q.stride;
  params.stride_q_head = q.matrix.row_stride;
  params.stride_w_head = w_k.stride;
  params.stride_w_row = w_k.matrix.row_stride;
  params.stride_rope = args.rope.row_stride;
  params.stride_out = out.stride;
  params.stride_out_head = out.matrix.row_stride;
  params.positions = args.rope.rows;
  params.tokens = static_cast<uint32_t>(tokens);
  params.latent = static_cast<uint32_t>(latent);
  params.nope = static_cast<uint32_t>(nope);
  params.turned = static_cast<uint32_t>(args.rope.columns);
  params.warpgroups = config.warpgroups;
  params.tiles = static_cast<uint32_t>(config.tiles);
  params.weight_stages = config.weight_stages;
  params.token_stages = config.token_stages;
  params.resident = config.resident;
  params.smem = config.smem;
  return launch(kernel_of(config.width, wide),
                {"mla_query", config.blocks, config.threads, static_cast<int>(config.smem.bytes)}, params, stream,
                Memory()
                    .reads("q", &q)
                    .reads("w_k", &w_k)
                    .reads("rope", &args.rope)
                    .reads("position", args.position, tokens)
                    .updates("out", &out));
}

}  // namespace
}  // namespace longcat_ops::mla_query

extern "C" int lc_mla_query(const lc_mla_query_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_mla_query", args)) return status;
  return longcat_ops::mla_query::launch_mla_query(*args, stream);
}
