#include "cpu/gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {

// Matrices [G, rows, columns].
class Stack {
 public:
  Stack(const Call& a, const char* name) : desc_(a.tensor(name)), start_(static_cast<char*>(a.address(name))) {}
  cpu::Matrix operator[](int64_t g) const {
    return {start_ + g * desc_.strides[0] * element_size(desc_.dtype), desc_.strides[1], desc_.strides[2]};
  }

 private:
  const TensorDesc& desc_;
  char* start_;
};

cpu::Fp8Weight fp8_weight(const cpu::Matrix& values, const cpu::Matrix& scales) {
  return {static_cast<const uint8_t*>(values.data), values.row_stride, scales};
}

// Runs function(g, begin, end) on tiles [begin, end) of each group g that has rows, spread over the threads.
template <class Function>
void over_group_tiles(const std::vector<int64_t>& rows, int64_t tiles, int64_t work_per_tile_row,
                      const Function& function) {
  std::vector<int64_t> active;
  int64_t most = 0;
  for (size_t g = 0; g < rows.size(); ++g)
    if (rows[g] > 0) active.push_back(static_cast<int64_t>(g)), most = std::max(most, rows[g]);
  parallel_over(static_cast<int64_t>(active.size()) * tiles, work_per_tile_row * std::max<int64_t>(most, 1),
                [&](int64_t begin, int64_t end) {
                  while (begin < end) {
                    const int64_t group = begin / tiles, stop = std::min(end, (group + 1) * tiles);
                    function(active[group], begin - group * tiles, stop - group * tiles);
                    begin = stop;
                  }
                });
}

// Each group's rows of `a`, from offsets[G + 1], cut to the rows that exist.
struct Bounds {
  std::vector<int64_t> start, count;

  Bounds(const Call& a, const char* weight) : start(a.tensor(weight).sizes[0]), count(start.size()) {
    const auto* offsets = a.data<int32_t>("offsets");
    const auto cut = [rows = a.tensor("a").sizes[0]](int32_t value) { return std::clamp<int64_t>(value, 0, rows); };
    for (size_t g = 0; g < count.size(); ++g)
      start[g] = cut(offsets[g]), count[g] = std::max<int64_t>(cut(offsets[g + 1]) - start[g], 0);
  }
};

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
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  const auto* valid = a.data<int32_t>("masked_m");
  std::vector<int64_t> rows(x.sizes[0]);
  for (size_t g = 0; g < rows.size(); ++g) rows[g] = std::clamp<int64_t>(valid[g], 0, x.sizes[1]);
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
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  const auto* group = a.data<int32_t>("m_indices");
  struct Run {
    int64_t group, begin, end;
  };
  std::vector<Run> runs;  // of adjacent rows of one group
  for (int64_t i = 0; i < x.sizes[0]; ++i) {
    if (group[i] < 0 || group[i] >= w.sizes[0]) continue;
    if (runs.empty() || runs.back().group != group[i] || runs.back().end != i) runs.push_back({group[i], i, i});
    runs.back().end = i + 1;
  }
  std::vector<int64_t> rows;
  for (const Run& run : runs) rows.push_back(run.end - run.begin);
  const Stack b(a, "b"), sb(a, "sb");
  const cpu::Fp8GemmParams product = runs_product(a);
  over_group_tiles(rows, ceil_div(product.n, cpu::kGemmTile), cpu::kGemmTile * product.k,
                   [&](int64_t r, int64_t begin, int64_t end) {
                     cpu::Fp8GemmParams one = product;
                     one.b = fp8_weight(b[runs[r].group], sb[runs[r].group]);
                     one.row_begin = runs[r].begin;
                     one.row_end = runs[r].end;
                     cpu::fp8_gemm_nt(one, begin, end);
                   });
}

void interleave_gate_up_cpu(const Call& a) {
  const TensorDesc &w = a.tensor("w"), &s = a.tensor("s");
  const int64_t groups = w.sizes[0], rows = w.sizes[1] / 2, k = w.sizes[2];
  const int64_t blocks = s.sizes[1] / 2, scale_columns = s.sizes[2];
  const auto* from = a.data<uint8_t>("w");
  auto* to = a.output<uint8_t>("w_out");
  constexpr int64_t kRows = 8;  // of gate, then of up
  parallel_over(groups * rows / kRows, 2 * kRows * k, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t g = chunk / (rows / kRows), row = chunk % (rows / kRows) * kRows;
      for (int64_t half = 0; half < 2; ++half)
        std::memcpy(to + ((g * rows + row) * 2 + half * kRows) * k, from + (g * 2 * rows + half * rows + row) * k,
                    kRows * k);
    }
  });
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
      .h = a.matrix("h"),
      .sh = a.matrix("sh"),
      .row_begin = 0,
      .row_end = 0,
      .width = w.sizes[1] / 2,
      .k = w.sizes[2],
  };
  over_group_tiles(bounds.count, ceil_div(product.width, kQuantBlock), 2 * kQuantBlock * product.k,
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
  add_kernel<"fp8_gemm_nt", fp8_gemm_nt_cpu>(m);
  add_kernel<"m_grouped_fp8_gemm_nt_offset", m_grouped_fp8_gemm_nt_offset_cpu>(m);
  add_kernel<"m_grouped_fp8_gemm_nt_masked", m_grouped_fp8_gemm_nt_masked_cpu>(m);
  add_kernel<"m_grouped_fp8_gemm_nt_contiguous", m_grouped_fp8_gemm_nt_contiguous_cpu>(m);
  add_kernel<"interleave_gate_up", interleave_gate_up_cpu>(m);
  add_kernel<"m_grouped_fp8_swiglu_gemm_nt_offset", m_grouped_fp8_swiglu_gemm_nt_offset_cpu>(m);
}
