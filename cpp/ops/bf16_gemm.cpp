#include "check/error.h"
#include "check/gemm_checks.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

// bf16, or on a CPU f32.
void check_operand_dtype(const char* op, const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.dtype != DType::kFloat16, op, name, dtype_name(tensor.dtype),
           "torch.bfloat16 or torch.float32: no LongCat model holds float16", describe(name, tensor),
           text(name, ".bfloat16()"));
  LC_CHECK(tensor.dtype != DType::kFloat32 || tensor.device != DeviceKind::kCuda, op, name, dtype_name(tensor.dtype),
           "torch.bfloat16: on CUDA the tensor cores take bf16; float32 runs on a CPU", describe(name, tensor),
           text(name, ".bfloat16()"));
  LC_CHECK(tensor.dtype == DType::kBFloat16 || tensor.dtype == DType::kFloat32, op, name, dtype_name(tensor.dtype),
           "torch.bfloat16 or torch.float32", describe(name, tensor), text(name, ".bfloat16()"));
}

// Rows and groups of operands may be any distance apart.
void check_activation(const char* op, const TensorDesc& x, int rank) {
  const char* layout = rank == 3 ? "[G, M, K]" : "[M, K]";
  check_lead(op, {"a", &x}, rank, layout);
  check_operand_dtype(op, "a", x);
  check_multiple(op, "a", x, rank - 1, layout, "K");
  check_unit_inner_stride(op, "a", x);
}

// Rows of the weight are a multiple of `multiple`; `size` is that size's name in the layout.
void check_weight(const char* op, Named weight, const TensorDesc& x, int rank, const char* layout, const char* size,
                  int64_t multiple = kWidthMultiple, const char* fix = "") {
  const auto& [name, tensor] = weight;
  const TensorDesc& w = *tensor;
  check_lead(op, weight, rank, layout, fix);
  check_same_device(op, weight, {"a", &x});
  check_operand_dtype(op, name, w);
  LC_CHECK(w.dtype == x.dtype, op, name, dtype_name(w.dtype), text(dtype_name(x.dtype), ", the dtype of `a`"),
           describe("a", x), text(name, ".to(", dtype_name(x.dtype), ")"));
  check_multiple(op, name, w, rank - 2, layout, size, multiple);
  check_inner_size(op, name, w, x);
  check_unit_inner_stride(op, name, w);
}

// a [M, K] or [G, M, K] against b [N, K] or [G, N, K].
void check_operands(const char* op, const Arguments& a, int a_rank, int b_rank) {
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  check_activation(op, x, a_rank);
  const char* fix = b_rank == 2 && w.dim == 3 ? "m_grouped_bf16_gemm_nt_offset takes a stack of weights" : "";
  check_weight(op, {"b", &w}, x, b_rank, b_rank == 3 ? "[G, N, K]" : "[N, K]", "N", kWidthMultiple, fix);
}

void check_bf16_gemm_nt(const Arguments& a) {
  static constexpr const char* kOp = "bf16_gemm_nt";
  check_operands(kOp, a, 2, 2);
  check_dense_rest(kOp, a);
}

void check_m_grouped_bf16_gemm_nt_offset(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_bf16_gemm_nt_offset";
  check_operands(kOp, a, 2, 3);
  check_offset_rest(kOp, a);
}

void check_m_grouped_bf16_gemm_nt_masked(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_bf16_gemm_nt_masked";
  check_operands(kOp, a, 3, 3);
  check_masked_rest(kOp, a);
}

void check_m_grouped_bf16_gemm_nt_contiguous(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_bf16_gemm_nt_contiguous";
  check_operands(kOp, a, 2, 3);
  check_contiguous_rest(kOp, a);
}

void check_m_grouped_bf16_swiglu_gemm_nt_offset(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_bf16_swiglu_gemm_nt_offset";
  const TensorDesc& x = a.tensor("a");
  check_activation(kOp, x, 2);
  check_weight(kOp, {"gate_up", &a.tensor("gate_up")}, x, 3, "[G, 2I, K]", "I", 2 * kWidthMultiple);
  check_swiglu_rest(kOp, a, x.dtype);
}

}  // namespace

std::vector<OpRow> bf16_gemm_ops() {
  return {
      // a [M, K], b [N, K], both bf16 or both f32; out [M, N]
      {"bf16_gemm_nt(Tensor a, Tensor b, int split_k, Tensor(a!) out) -> ()",
       check_bf16_gemm_nt,
       {.flops = row_flops, .product = dense_problem}},
      // b [G, N, K]; rows offsets[g] .. offsets[g + 1] of a go to group g
      {"m_grouped_bf16_gemm_nt_offset(Tensor a, Tensor b, Tensor offsets, int? max_m_hint, bool counts_ready, "
       "int split_k, Tensor(a!) out) -> ()",
       check_m_grouped_bf16_gemm_nt_offset,
       {.flops = row_flops, .assumes = kEveryExpert, .product = offset_problem}},
      // a [G, M, K], out [G, M, N]; the first masked_m[g] rows of group g
      {"m_grouped_bf16_gemm_nt_masked(Tensor a, Tensor b, Tensor masked_m, int expected_m, Tensor(a!) out) -> ()",
       check_m_grouped_bf16_gemm_nt_masked,
       {.flops = stacked_flops, .assumes = kEveryExpert, .product = masked_problem}},
      // m_indices i32 [M]: group of each row, or -1
      {"m_grouped_bf16_gemm_nt_contiguous(Tensor a, Tensor b, Tensor m_indices, Tensor(a!) out) -> ()",
       check_m_grouped_bf16_gemm_nt_contiguous,
       {.flops = row_flops, .assumes = kEveryExpert, .product = contiguous_problem}},
      // gate_up [G, 2I, K] interleaved; h e4m3 [M, I], sh f32 [M, ceil(I / 128)]; without sh h is of a's dtype
      {"m_grouped_bf16_swiglu_gemm_nt_offset(Tensor a, Tensor gate_up, Tensor offsets, int? max_m_hint, "
       "bool counts_ready, Tensor(a!) h, Tensor(b!)? sh) -> ()",
       check_m_grouped_bf16_swiglu_gemm_nt_offset,
       {.flops = gate_up_flops, .assumes = kEveryExpert, .product = swiglu_problem}},
  };
}

}  // namespace longcat_ops
