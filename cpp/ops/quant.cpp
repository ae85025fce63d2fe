#include "check/quant_check.h"

#include "ops/table.h"

namespace longcat_ops {

std::vector<OpRow> quant_ops() {
  return {
      // x [T, H], q e4m3 [T, H], s f32 [T, ceil(H / group_size)]
      {"per_token_group_quant_fp8(Tensor x, int group_size, Tensor(a!) q, Tensor(b!) s) -> ()",
       check_per_token_group_quant_fp8},
      // w [N, K], q e4m3 [N, K], s f32 [ceil(N / 128), ceil(K / 128)]
      {"per_block_quant_fp8(Tensor w, Tensor(a!) q, Tensor(b!) s) -> ()", check_per_block_quant_fp8},
      // gate_up [T, 2I], q e4m3 [T, I], s f32 [T, ceil(I / 128)]
      {"silu_and_mul_quant_fp8(Tensor gate_up, Tensor(a!) q, Tensor(b!) s) -> ()", check_silu_and_mul_quant_fp8},
      // q e4m3 [N, K], s f32 [N, ceil(K / group_size)] or [ceil(N / 128), ceil(K / 128)], out [N, K]
      {"dequant_fp8(Tensor q, Tensor s, int group_size, Tensor(a!) out) -> ()", check_dequant_fp8},
  };
}

}  // namespace longcat_ops
