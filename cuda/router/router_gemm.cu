#include "router/router_gemm.cuh"

#include "launch/instances.h"
#include "launch/launch.h"
#include "launch/tensor_map.h"
#include "longcat_ops.h"

namespace longcat_ops::router {
namespace {

ByteTensor bytes_of(const lc_matrix& m, int64_t count, int64_t stride) {
  return {m.data, count, m.rows, 2 * m.columns, 2 * stride, 2 * m.row_stride};
}

auto kernel_of(const RouterGemmConfig& config, Tokens how) {
  if (how == Tokens::kSplit) return router_gemm_kernel<kSlowTokens, Tokens::kSplit>;
  if (how == Tokens::kCopied) return router_gemm_kernel<kSlowTokens, Tokens::kCopied>;
  switch (config.width) {
    case 8: return router_gemm_kernel<8, Tokens::kMapped>;
    case 16: return router_gemm_kernel<16, Tokens::kMapped>;
    case 32: return router_gemm_kernel<32, Tokens::kMapped>;
    case 64: return router_gemm_kernel<64, Tokens::kMapped>;
    default: return router_gemm_kernel<kMostTokens, Tokens::kMapped>;
  }
}

int launch_router_gemm(const lc_matrix& x, const lc_stack& terms, const lc_matrix& out, lc_stream_t stream) {
  const lc_matrix& w = terms.matrix;
  const ByteTensor tokens = bytes_of(x, 1, 0), weights = bytes_of(w, terms.count, terms.stride);
  const Tokens how = x.dtype == LC_F32 ? Tokens::kSplit : can_map(tokens) ? Tokens::kMapped : Tokens::kCopied;
  const RouterGemmConfig config = choose_router_gemm_config(x.rows, w.rows, x.columns, how);
  RouterGemmParams params{};
  if (x.rows > 0) {
    if (const int status = encode_map(weights, kTileExperts, &params.weight_map)) return status;
    if (how == Tokens::kMapped)
      if (const int status = encode_map(tokens, config.width, &params.token_map)) return status;
  }
  params.x = x.data;
  params.x_stride = x.row_stride;
  params.out = static_cast<float*>(out.data);
  params.out_stride = out.row_stride;
  params.tokens = static_cast<uint32_t>(x.rows);
  params.experts = static_cast<uint32_t>(w.rows);
  params.columns = static_cast<uint32_t>(x.columns);
  params.pieces = config.pieces;
  params.smem = config.smem;
  LaunchConfig launch_config{"router_gemm", config.blocks(), threads(how), static_cast<int>(config.smem.bytes)};
  launch_config.cluster = static_cast<int>(config.pieces);
  return launch(kernel_of(config, how), launch_config, params, stream,
                Memory().reads("x", &x).reads("split", &terms).updates("out", &out));
}

}  // namespace
}  // namespace longcat_ops::router

extern "C" int lc_router_gemm(const lc_router_gemm_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_router_gemm", args)) return status;
  return longcat_ops::router::launch_router_gemm(args->x, args->split, args->out, stream);
}
