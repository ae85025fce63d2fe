#include "cpu/bf16_gemm.h"

#include "bindings/groups.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {

int64_t tiles_of(int64_t n) { return n / cpu::kBf16GemmTile; }
int64_t work_of_tile(int64_t k) { return cpu::kBf16GemmTile * k / cpu::kProductsPerElement; }

// A product without its weight and its rows; n and k are the last two sizes of the weight.
cpu::Bf16GemmParams product_of(const Call& a) {
  const TensorDesc& w = a.tensor("b");
  return {
      .a = a.matrix("a"),
      .b = {},
      .out = a.matrix("out"),
      .dtype = w.dtype,
      .out_dtype = a.tensor("out").dtype,
      .row_begin = 0,
      .row_end = 0,
      .n = w.sizes[w.dim - 2],
      .k = w.sizes[w.dim - 1],
  };
}

void bf16_gemm_nt_cpu(const Call& a) {
  cpu::Bf16GemmParams product = product_of(a);
  product.b = a.matrix("b");
  product.row_end = a.tensor("a").sizes[0];
  parallel_over(tiles_of(product.n), work_of_tile(product.k) * product.row_end,
                [&](int64_t begin, int64_t end) { cpu::bf16_gemm_nt(product, begin, end); });
}

void m_grouped_bf16_gemm_nt_offset_cpu(const Call& a) {
  const Bounds bounds(a, "b");
  const Stack b(a, "b");
  const cpu::Bf16GemmParams product = product_of(a);
  over_group_tiles(bounds.count, tiles_of(product.n), work_of_tile(product.k),
                   [&](int64_t g, int64_t begin, int64_t end) {
                     cpu::Bf16GemmParams one = product;
                     one.b = b[g];
                     one.row_begin = bounds.start[g];
                     one.row_end = bounds.start[g] + bounds.count[g];
                     cpu::bf16_gemm_nt(one, begin, end);
                   });
}

void m_grouped_bf16_gemm_nt_masked_cpu(const Call& a) {
  const std::vector<int64_t> rows = masked_rows(a);
  const Stack activations(a, "a"), b(a, "b"), out(a, "out");
  const cpu::Bf16GemmParams product = product_of(a);
  over_group_tiles(rows, tiles_of(product.n), work_of_tile(product.k), [&](int64_t g, int64_t begin, int64_t end) {
    cpu::Bf16GemmParams one = product;
    one.a = activations[g];
    one.b = b[g];
    one.out = out[g];
    one.row_end = rows[g];
    cpu::bf16_gemm_nt(one, begin, end);
  });
}

void m_grouped_bf16_gemm_nt_contiguous_cpu(const Call& a) {
  const Runs runs(a);
  const Stack b(a, "b");
  const cpu::Bf16GemmParams product = product_of(a);
  over_group_tiles(runs.count, tiles_of(product.n), work_of_tile(product.k),
                   [&](int64_t r, int64_t begin, int64_t end) {
                     cpu::Bf16GemmParams one = product;
                     one.b = b[runs.group[r]];
                     one.row_begin = runs.start[r];
                     one.row_end = runs.start[r] + runs.count[r];
                     cpu::bf16_gemm_nt(one, begin, end);
                   });
}

void m_grouped_bf16_swiglu_gemm_nt_offset_cpu(const Call& a) {
  const TensorDesc& w = a.tensor("gate_up");
  const Bounds bounds(a, "gate_up");
  const Stack gate_up(a, "gate_up");
  const cpu::Bf16SwigluParams product{
      .a = a.matrix("a"),
      .gate_up = {},
      .dtype = w.dtype,
      .out = hidden_of(a),
      .row_begin = 0,
      .row_end = 0,
      .k = w.sizes[2],
  };
  over_group_tiles(bounds.count, ceil_div(product.out.width, kQuantBlock),
                   2 * kQuantBlock * product.k / cpu::kProductsPerElement, [&](int64_t g, int64_t begin, int64_t end) {
                     cpu::Bf16SwigluParams one = product;
                     one.gate_up = gate_up[g];
                     one.row_begin = bounds.start[g];
                     one.row_end = bounds.start[g] + bounds.count[g];
                     cpu::bf16_swiglu_gemm_nt(one, begin, end);
                   });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"bf16_gemm_nt", bf16_gemm_nt_cpu>(m);
  add_cpu_kernel<"m_grouped_bf16_gemm_nt_offset", m_grouped_bf16_gemm_nt_offset_cpu>(m);
  add_cpu_kernel<"m_grouped_bf16_gemm_nt_masked", m_grouped_bf16_gemm_nt_masked_cpu>(m);
  add_cpu_kernel<"m_grouped_bf16_gemm_nt_contiguous", m_grouped_bf16_gemm_nt_contiguous_cpu>(m);
  add_cpu_kernel<"m_grouped_bf16_swiglu_gemm_nt_offset", m_grouped_bf16_swiglu_gemm_nt_offset_cpu>(m);
}
