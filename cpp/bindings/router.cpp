#include <cstring>
#include <vector>

#include "bindings/device_launch.h"
#include "bindings/parallel.h"
#include "cpu/bf16_gemm.h"
#include "cpu/float_formats.h"

namespace longcat_ops::bindings {
namespace {

// Rows [rows, columns] of float32 without gaps.
struct Rows {
  std::vector<float> memory;
  cpu::Matrix matrix;

  Rows(int64_t rows, int64_t columns) : memory(rows * columns), matrix{memory.data(), columns, 1} {}
};

// x as float32, so that bf16 and float32 rows of the same values have the same bits.
cpu::Matrix widened(const Call& a, Rows& wide) {
  const TensorDesc& x = a.tensor("x");
  const cpu::Matrix from = a.matrix("x");
  if (x.dtype == DType::kFloat32) return from;
  parallel_over(x.sizes[0], x.sizes[1], [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < x.sizes[1]; ++j)
        wide.memory[i * x.sizes[1] + j] =
            cpu::BFloat16::load(static_cast<const uint16_t*>(from.data)[i * from.row_stride + j]);
  });
  return wide.matrix;
}

void router_gemm_cpu(const Call& a) {
  const TensorDesc &x = a.tensor("x"), &w = a.tensor("w");
  const int64_t tokens = x.sizes[0], columns = x.sizes[1], tiles = w.sizes[0] / cpu::kBf16GemmTile;
  Rows wide(x.dtype == DType::kFloat32 ? 0 : tokens, columns);
  const cpu::Bf16GemmParams product{
      .a = widened(a, wide),
      .b = a.matrix("w"),
      .out = a.matrix("out"),
      .dtype = DType::kFloat32,
      .out_dtype = DType::kFloat32,
      .row_begin = 0,
      .row_end = tokens,
      .n = tiles * cpu::kBf16GemmTile,
      .k = columns,
  };
  parallel_over(tiles, cpu::kBf16GemmTile * columns * tokens / cpu::kProductsPerElement,
                [&](int64_t begin, int64_t end) { cpu::bf16_gemm_nt(product, begin, end); });
  const int64_t left = w.sizes[0] - product.n;  // experts of a part of a tile
  if (left == 0 || tokens == 0) return;
  Rows weights(cpu::kBf16GemmTile, columns), sums(tokens, cpu::kBf16GemmTile);
  for (int64_t i = 0; i < left; ++i)
    std::memcpy(weights.memory.data() + i * columns,
                static_cast<const float*>(product.b.data) + (product.n + i) * product.b.row_stride,
                columns * sizeof(float));
  cpu::Bf16GemmParams rest = product;
  rest.b = weights.matrix;
  rest.out = sums.matrix;
  rest.n = cpu::kBf16GemmTile;
  cpu::bf16_gemm_nt(rest, 0, 1);
  for (int64_t i = 0; i < tokens; ++i)
    std::memcpy(static_cast<float*>(product.out.data) + i * product.out.row_stride + product.n,
                sums.memory.data() + i * cpu::kBf16GemmTile, left * sizeof(float));
}

// The terms on 16 bytes, as TMA reads them: a copy in the emulator, if need be; on CUDA the check refuses others.
lc_stack aligned_terms(const Call& a, std::vector<uint16_t>& copy) {
  lc_stack split = device_stack(a, "split");
  const auto address = reinterpret_cast<uintptr_t>(split.matrix.data);
  if (address % 16 == 0 || a.tensor("split").device != DeviceKind::kCpu) return split;
  const int64_t elements = num_elements(a.tensor("split"));
  copy.resize(elements + 8);
  uint16_t* to = copy.data() + (-(reinterpret_cast<uintptr_t>(copy.data()) / sizeof(uint16_t))) % 8;
  std::memcpy(to, split.matrix.data, elements * sizeof(uint16_t));
  split.matrix.data = to;
  return split;
}

void router_gemm_device(const Call& a) {
  if (!a.optional_tensor("split")) return router_gemm_cpu(a);  // in the emulator; on CUDA the check refuses it
  std::vector<uint16_t> copy;
  const lc_router_gemm_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .split = aligned_terms(a, copy),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_router_gemm, args);
}

void register_router(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"router_gemm", router_gemm_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  longcat_ops::bindings::add_cpu_kernel<"router_gemm", longcat_ops::bindings::router_gemm_cpu>(m);
}
LC_REGISTER_DEVICE_KERNELS(register_router)
