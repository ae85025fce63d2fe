// Every schema of torch.ops.longcat_ops, through LibTorch's stable ABI: one binary for every torch >= 2.11.
// Ops are out-variants that return nothing; (a!) marks exactly what is written.
#include <torch/csrc/stable/library.h>

#include "bindings/ops.h"

STABLE_TORCH_LIBRARY(longcat_ops, m) {
  // x [T, H], q e4m3 [T, H], s f32 [T, ceil(H / group_size)]
  m.def("per_token_group_quant_fp8(Tensor x, int group_size, Tensor(a!) q, Tensor(b!) s) -> ()");
  // w [N, K], q e4m3 [N, K], s f32 [ceil(N / 128), ceil(K / 128)]
  m.def("per_block_quant_fp8(Tensor w, Tensor(a!) q, Tensor(b!) s) -> ()");
  // q e4m3 [N, K], s f32 [N, ceil(K / group_size)] or [ceil(N / 128), ceil(K / 128)], out [N, K]
  m.def("dequant_fp8(Tensor q, Tensor s, int group_size, Tensor(a!) out) -> ()");
  // x [T, H], weight f32 [H], y [T, H] of x's dtype
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  m.impl("per_token_group_quant_fp8", TORCH_BOX(&per_token_group_quant_fp8_cpu));
  m.impl("per_block_quant_fp8", TORCH_BOX(&per_block_quant_fp8_cpu));
  m.impl("dequant_fp8", TORCH_BOX(&dequant_fp8_cpu));
  m.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
}
