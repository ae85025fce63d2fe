#include "cpu/gemm.h"

#include <cstring>
#include <vector>

#include "bindings/groups.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {

cpu::Fp8Weight fp8_weight(const cpu::Matrix& values, const cpu::Matrix& scales) {
  return {static_cast<const uint8_t*>(values.data), values.row_stride, scales};
}

void fp8_gemm_nt_cpu(const Call& a) {
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  const cpu::Fp8GemmParams params{
      .a = a.matrix("a"),
      .sa = a.matrix("sa"),
      .b = fp8_weight(a.matrix("b"), a.matrix("sb")),
      .out = a.matrix("out"),
      .out_dtype = a.tensor("out").dtype,
      .row_begin = 0,
      .row_end = x.sizes[0],
      .n = w.sizes[0],
      .k = w.sizes[1],
  };
  parallel_over(ceil_div(params.n, cpu::kGemmTile), cpu::kGemmTile * params.k * params.row_end,
                [&](int64_t begin, int64_t end) { cpu::fp8_gemm_nt(params, begin, end); });
}

// A product whose groups are runs of rows of one matrix, without the weight and the rows of a run.
cpu::Fp8GemmParams runs_product(const Call& a) {
  const TensorDesc& w = a.tensor("b");
  return {
      .a = a.matrix("a"),
      .sa = a.matrix("sa"),
      .b = {},
      .out = a.matrix("out"),
      .out_dtype = a.tensor("out").dtype,
      .row_begin = 0,
      .row_end = 0,
      .n = w.sizes[1],
      .k = w.sizes[2],
  };
}

void m_grouped_fp8_gemm_nt_offset_cpu(const Call& a) {
  const Bounds bounds(a, "b");
  const Stack b(a, "b"), sb(a, "sb");
  const cpu::Fp8GemmParams product = runs_product(a);
  over_group_tiles(bounds.count, ceil_div(product.n, cpu::kGemmTile), cpu::kGemmTile * product.k,
                   [&](int64_t g, int64_t begin, int64_t end) {
                     cpu::Fp8GemmParams one = product;
                     one.b = fp8_weight(b[g], sb[g]);
                     one.row_begin = bounds.start[g];
                     one.row_end = bounds.start[g] + bounds.count[g];
                     cpu::fp8_gemm_nt(one, begin, end);
                   });
}

void m_grouped_fp8_gemm_nt_masked_cpu(const Call& a) {
  const TensorDesc& w = a.tensor("b");
  const std::vector<int64_t> rows = masked_rows(a);
  const Stack activations(a, "a"), sa(a, "sa"), b(a, "b"), sb(a, "sb"), out(a, "out");
  const DType out_dtype = a.tensor("out").dtype;
  const int64_t n = w.sizes[1], k = w.sizes[2];
  over_group_tiles(rows, ceil_div(n, cpu::kGemmTile), cpu::kGemmTile * k, [&](int64_t g, int64_t begin, int64_t end) {
    cpu::fp8_gemm_nt(
        {
            .a = activations[g],
            .sa = sa[g],
            .b = fp8_weight(b[g], sb[g]),
            .out = out[g],
            .out_dtype = out_dtype,
            .row_begin = 0,
            .row_end = rows[g],
            .n = n,
            .k = k,
        },
        begin, end);
  });
}

void m_grouped_fp8_gemm_nt_contiguous_cpu(const Call& a) {
  const Runs runs(a);
  const Stack b(a, "b"), sb(a, "sb");
  const cpu::Fp8GemmParams product = runs_product(a);
  over_group_tiles(runs.count, ceil_div(product.n, cpu::kGemmTile), cpu::kGemmTile * product.k,
                   [&](int64_t r, int64_t begin, int64_t end) {
                     cpu::Fp8GemmParams one = product;
                     one.b = fp8_weight(b[runs.group[r]], sb[runs.group[r]]);
                     one.row_begin = runs.start[r];
                     one.row_end = runs.start[r] + runs.count[r];
                     cpu::fp8_gemm_nt(one, begin, end);
                   });
}

void interleave_gate_up_cpu(const Call& a) {
  const TensorDesc &w = a.tensor("w"), *s = a.optional_tensor("s");
  const int64_t groups = w.sizes[0], rows = w.sizes[1] / 2, row_bytes = w.sizes[2] * element_size(w.dtype);
  const auto* from = a.data<uint8_t>("w");
  auto* to = a.output<uint8_t>("w_out");
  constexpr int64_t kRows = 8;  // of gate, then of up
  parallel_over(groups * rows / kRows, 2 * kRows * row_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t g = chunk / (rows / kRows), row = chunk % (rows / kRows) * kRows;
      for (int64_t half = 0; half < 2; ++half)
        std::memcpy(to + ((g * rows + row) * 2 + half * kRows) * row_bytes,
                    from + (g * 2 * rows + half * rows + row) * row_bytes, kRows * row_bytes);
    }
  });
  if (!s) return;
  const int64_t blocks = s->sizes[1] / 2, scale_columns = s->sizes[2];
  auto* scale_out = a.output<float>("s_out");
  const Stack stacked_scales(a, "s");
  for (int64_t g = 0; g < groups; ++g) {
    const cpu::Matrix scales = stacked_scales[g];
    for (int64_t b = 0; b < 2 * blocks; ++b) {
      const float* row = static_cast<const float*>(scales.data) + (b % 2 * blocks + b / 2) * scales.row_stride;
      for (int64_t j = 0; j < scale_columns; ++j) *scale_out++ = row[j * scales.column_stride];
    }
  }
}

void m_grouped_fp8_swiglu_gemm_nt_offset_cpu(const Call& a) {
  const TensorDesc& w = a.tensor("gate_up");
  const Bounds bounds(a, "gate_up");
  const Stack gate_up(a, "gate_up"), s_gate_up(a, "s_gate_up");
  const cpu::Fp8SwigluParams product{
      .a = a.matrix("a"),
      .sa = a.matrix("sa"),
      .gate_up = {},
      .out = hidden_of(a),
      .row_begin = 0,
      .row_end = 0,
      .k = w.sizes[2],
  };
  over_group_tiles(bounds.count, ceil_div(product.out.width, kQuantBlock), 2 * kQuantBlock * product.k,
                   [&](int64_t g, int64_t begin, int64_t end) {
                     cpu::Fp8SwigluParams one = product;
                     one.gate_up = fp8_weight(gate_up[g], s_gate_up[g]);
                     one.row_begin = bounds.start[g];
                     one.row_end = bounds.start[g] + bounds.count[g];
                     cpu::fp8_swiglu_gemm_nt(one, begin, end);
                   });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"fp8_gemm_nt", fp8_gemm_nt_cpu>(m);
  add_cpu_kernel<"m_grouped_fp8_gemm_nt_offset", m_grouped_fp8_gemm_nt_offset_cpu>(m);
  add_cpu_kernel<"m_grouped_fp8_gemm_nt_masked", m_grouped_fp8_gemm_nt_masked_cpu>(m);
  add_cpu_kernel<"m_grouped_fp8_gemm_nt_contiguous", m_grouped_fp8_gemm_nt_contiguous_cpu>(m);
  add_cpu_kernel<"interleave_gate_up", interleave_gate_up_cpu>(m);
  add_cpu_kernel<"m_grouped_fp8_swiglu_gemm_nt_offset", m_grouped_fp8_swiglu_gemm_nt_offset_cpu>(m);
}
