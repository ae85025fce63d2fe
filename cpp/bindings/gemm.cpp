#include "cpu/gemm.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "bindings/parallel.h"
#include "bindings/tensor_args.h"
#include "check/gemm_check.h"
#include "check/tensor_checks.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {

// The matrix at `index` of a stack [G, rows, columns].
cpu::Matrix slice(const void* data, const TensorDesc& desc, int64_t index) {
  auto* start = static_cast<char*>(const_cast<void*>(data)) + index * desc.strides[0] * element_size(desc.dtype);
  return {start, desc.strides[1], desc.strides[2]};
}

cpu::Fp8Weight slice_weight(const Tensor& b, const TensorDesc& b_desc, const Tensor& sb, const TensorDesc& sb_desc,
                            int64_t group) {
  const cpu::Matrix values = slice(b.const_data_ptr(), b_desc, group);
  return {static_cast<const uint8_t*>(values.data), values.row_stride, slice(sb.const_data_ptr(), sb_desc, group)};
}

// Runs function(g, begin, end) over tiles [begin, end) of each group g that has rows, spread over the threads.
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

// Bounds of each group's rows, cut to 0 .. rows.
struct Bounds {
  std::vector<int64_t> start, count;

  Bounds(const Tensor& offsets, int64_t groups, int64_t rows) : start(groups), count(groups) {
    const auto* at = static_cast<const int32_t*>(offsets.const_data_ptr());
    const auto cut = [&](int32_t value) { return std::clamp<int64_t>(value, 0, rows); };
    for (int64_t g = 0; g < groups; ++g)
      start[g] = cut(at[g]), count[g] = std::max<int64_t>(cut(at[g + 1]) - start[g], 0);
  }
};

void fp8_gemm_nt_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb, int64_t split_k,
                     const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  check_fp8_gemm_nt({a_desc, sa_desc}, {b_desc, sb_desc}, split_k, &out_desc);
  const cpu::Fp8GemmParams params{
      .a = matrix_view(a.const_data_ptr(), a_desc),
      .sa = matrix_view(sa.const_data_ptr(), sa_desc),
      .b = {static_cast<const uint8_t*>(b.const_data_ptr()), b_desc.strides[0],
            matrix_view(sb.const_data_ptr(), sb_desc)},
      .out = matrix_view(out.mutable_data_ptr(), out_desc),
      .out_dtype = out_desc.dtype,
      .row_begin = 0,
      .row_end = a_desc.sizes[0],
      .n = b_desc.sizes[0],
      .k = b_desc.sizes[1],
  };
  parallel_over(ceil_div(params.n, cpu::kGemmTile), cpu::kGemmTile * params.k * params.row_end,
                [&](int64_t begin, int64_t end) { cpu::fp8_gemm_nt(params, begin, end); });
}

void m_grouped_fp8_gemm_nt_offset_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                      const Tensor& offsets, std::optional<int64_t> max_m_hint, bool, int64_t split_k,
                                      const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  check_m_grouped_fp8_gemm_nt_offset({a_desc, sa_desc}, {b_desc, sb_desc}, describe_tensor(offsets), max_m_hint,
                                     split_k, &out_desc);
  const Bounds bounds(offsets, b_desc.sizes[0], a_desc.sizes[0]);
  const int64_t n = b_desc.sizes[1], k = b_desc.sizes[2];
  over_group_tiles(bounds.count, ceil_div(n, cpu::kGemmTile), cpu::kGemmTile * k,
                   [&](int64_t g, int64_t begin, int64_t end) {
                     cpu::fp8_gemm_nt(
                         {
                             .a = matrix_view(a.const_data_ptr(), a_desc),
                             .sa = matrix_view(sa.const_data_ptr(), sa_desc),
                             .b = slice_weight(b, b_desc, sb, sb_desc, g),
                             .out = matrix_view(out.mutable_data_ptr(), out_desc),
                             .out_dtype = out_desc.dtype,
                             .row_begin = bounds.start[g],
                             .row_end = bounds.start[g] + bounds.count[g],
                             .n = n,
                             .k = k,
                         },
                         begin, end);
                   });
}

void m_grouped_fp8_gemm_nt_masked_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                      const Tensor& masked_m, int64_t expected_m, const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  check_m_grouped_fp8_gemm_nt_masked({a_desc, sa_desc}, {b_desc, sb_desc}, describe_tensor(masked_m), expected_m,
                                     &out_desc);
  const auto* valid = static_cast<const int32_t*>(masked_m.const_data_ptr());
  std::vector<int64_t> rows(a_desc.sizes[0]);
  for (size_t g = 0; g < rows.size(); ++g) rows[g] = std::clamp<int64_t>(valid[g], 0, a_desc.sizes[1]);
  const int64_t n = b_desc.sizes[1], k = b_desc.sizes[2];
  over_group_tiles(rows, ceil_div(n, cpu::kGemmTile), cpu::kGemmTile * k, [&](int64_t g, int64_t begin, int64_t end) {
    cpu::fp8_gemm_nt(
        {
            .a = slice(a.const_data_ptr(), a_desc, g),
            .sa = slice(sa.const_data_ptr(), sa_desc, g),
            .b = slice_weight(b, b_desc, sb, sb_desc, g),
            .out = slice(out.mutable_data_ptr(), out_desc, g),
            .out_dtype = out_desc.dtype,
            .row_begin = 0,
            .row_end = rows[g],
            .n = n,
            .k = k,
        },
        begin, end);
  });
}

void m_grouped_fp8_gemm_nt_contiguous_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                          const Tensor& m_indices, const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  check_m_grouped_fp8_gemm_nt_contiguous({a_desc, sa_desc}, {b_desc, sb_desc}, describe_tensor(m_indices), &out_desc);
  const auto* group = static_cast<const int32_t*>(m_indices.const_data_ptr());
  struct Run {
    int64_t group, begin, end;
  };
  std::vector<Run> runs;  // of adjacent rows of one group
  for (int64_t i = 0; i < a_desc.sizes[0]; ++i) {
    if (group[i] < 0 || group[i] >= b_desc.sizes[0]) continue;
    if (runs.empty() || runs.back().group != group[i] || runs.back().end != i) runs.push_back({group[i], i, i});
    runs.back().end = i + 1;
  }
  std::vector<int64_t> rows;
  for (const Run& run : runs) rows.push_back(run.end - run.begin);
  const int64_t n = b_desc.sizes[1], k = b_desc.sizes[2];
  over_group_tiles(rows, ceil_div(n, cpu::kGemmTile), cpu::kGemmTile * k, [&](int64_t r, int64_t begin, int64_t end) {
    cpu::fp8_gemm_nt(
        {
            .a = matrix_view(a.const_data_ptr(), a_desc),
            .sa = matrix_view(sa.const_data_ptr(), sa_desc),
            .b = slice_weight(b, b_desc, sb, sb_desc, runs[r].group),
            .out = matrix_view(out.mutable_data_ptr(), out_desc),
            .out_dtype = out_desc.dtype,
            .row_begin = runs[r].begin,
            .row_end = runs[r].end,
            .n = n,
            .k = k,
        },
        begin, end);
  });
}

void interleave_gate_up_cpu(const Tensor& w, const Tensor& s, const Tensor& w_out, const Tensor& s_out) {
  const TensorDesc w_desc = describe_tensor(w), s_desc = describe_tensor(s), w_out_desc = describe_tensor(w_out),
                   s_out_desc = describe_tensor(s_out);
  check_interleave_gate_up({w_desc, s_desc}, &w_out_desc, &s_out_desc);
  const int64_t groups = w_desc.sizes[0], rows = w_desc.sizes[1] / 2, k = w_desc.sizes[2];
  const int64_t blocks = s_desc.sizes[1] / 2, scale_columns = s_desc.sizes[2];
  const auto* from = static_cast<const uint8_t*>(w.const_data_ptr());
  auto* to = static_cast<uint8_t*>(w_out.mutable_data_ptr());
  constexpr int64_t kRows = 8;  // of gate, then of up
  parallel_over(groups * rows / kRows, 2 * kRows * k, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t g = chunk / (rows / kRows), row = chunk % (rows / kRows) * kRows;
      for (int64_t half = 0; half < 2; ++half)
        std::memcpy(to + ((g * rows + row) * 2 + half * kRows) * k, from + (g * 2 * rows + half * rows + row) * k,
                    kRows * k);
    }
  });
  auto* scale_out = static_cast<float*>(s_out.mutable_data_ptr());
  for (int64_t g = 0; g < groups; ++g) {
    const cpu::Matrix scales = slice(s.const_data_ptr(), s_desc, g);
    for (int64_t b = 0; b < 2 * blocks; ++b) {
      const float* row = static_cast<const float*>(scales.data) + (b % 2 * blocks + b / 2) * scales.row_stride;
      for (int64_t j = 0; j < scale_columns; ++j) *scale_out++ = row[j * scales.column_stride];
    }
  }
}

void m_grouped_fp8_swiglu_gemm_nt_offset_cpu(const Tensor& a, const Tensor& sa, const Tensor& gate_up,
                                             const Tensor& s_gate_up, const Tensor& offsets,
                                             std::optional<int64_t> max_m_hint, bool, const Tensor& h,
                                             const Tensor& sh) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), w_desc = describe_tensor(gate_up),
                   sw_desc = describe_tensor(s_gate_up), h_desc = describe_tensor(h), sh_desc = describe_tensor(sh);
  check_m_grouped_fp8_swiglu_gemm_nt_offset({a_desc, sa_desc}, {w_desc, sw_desc}, describe_tensor(offsets), max_m_hint,
                                            &h_desc, &sh_desc);
  const Bounds bounds(offsets, w_desc.sizes[0], a_desc.sizes[0]);
  const int64_t width = w_desc.sizes[1] / 2, k = w_desc.sizes[2];
  over_group_tiles(bounds.count, ceil_div(width, kQuantBlock), 2 * kQuantBlock * k,
                   [&](int64_t g, int64_t begin, int64_t end) {
                     cpu::fp8_swiglu_gemm_nt(
                         {
                             .a = matrix_view(a.const_data_ptr(), a_desc),
                             .sa = matrix_view(sa.const_data_ptr(), sa_desc),
                             .gate_up = slice_weight(gate_up, w_desc, s_gate_up, sw_desc, g),
                             .h = matrix_view(h.mutable_data_ptr(), h_desc),
                             .sh = matrix_view(sh.mutable_data_ptr(), sh_desc),
                             .row_begin = bounds.start[g],
                             .row_end = bounds.start[g] + bounds.count[g],
                             .width = width,
                             .k = k,
                         },
                         begin, end);
                   });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  m.impl("fp8_gemm_nt", TORCH_BOX(&fp8_gemm_nt_cpu));
  m.impl("m_grouped_fp8_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_gemm_nt_offset_cpu));
  m.impl("m_grouped_fp8_gemm_nt_masked", TORCH_BOX(&m_grouped_fp8_gemm_nt_masked_cpu));
  m.impl("m_grouped_fp8_gemm_nt_contiguous", TORCH_BOX(&m_grouped_fp8_gemm_nt_contiguous_cpu));
  m.impl("interleave_gate_up", TORCH_BOX(&interleave_gate_up_cpu));
  m.impl("m_grouped_fp8_swiglu_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_swiglu_gemm_nt_offset_cpu));
}
