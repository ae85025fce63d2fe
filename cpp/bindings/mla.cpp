#include "cpu/mla.h"

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "common/numeric.h"
#include "cpu/bf16_gemm.h"

namespace longcat_ops::bindings {
namespace {

cpu::Matrices matrices(const Call& a, const char* name) {
  const TensorDesc& desc = a.tensor(name);
  return {a.address(name), desc.strides[0], desc.strides[1]};
}

cpu::LatentPages pages_of(const Call& a) {
  const TensorDesc &rows = a.tensor("rows"), &table = a.tensor("page_table");
  return {
      .rows = matrices(a, "rows"),
      .pages = rows.sizes[0],
      .width = rows.sizes[2],
      .table = a.data<int32_t>("page_table"),
      .sequences = table.sizes[0],
      .table_width = table.sizes[1],
  };
}

cpu::RotaryTable rope_of(const Call& a) {
  const TensorDesc& rope = a.tensor("rope");
  return {a.data<float>("rope"), rope.strides[0], rope.sizes[0], rope.sizes[1]};
}

void mla_write_cpu(const Call& a) {
  const TensorDesc& kv = a.tensor("kv");
  const cpu::MlaWriteParams params{
      .dtype = kv.dtype,
      .kv = a.matrix("kv"),
      .weight = a.data<float>("weight"),
      .latent = a.tensor("weight").sizes[0],
      .eps = static_cast<float>(a.number("eps")),
      .rope = rope_of(a),
      .pages = pages_of(a),
      .sequence = a.data<int32_t>("sequence"),
      .position = a.data<int32_t>("position"),
  };
  parallel_over(kv.sizes[0], kv.sizes[1], [&](int64_t begin, int64_t end) { cpu::mla_write(params, begin, end); });
}

void mla_query_cpu(const Call& a) {
  const TensorDesc &q = a.tensor("q"), &w_k = a.tensor("w_k");
  const cpu::MlaQueryParams params{
      .dtype = q.dtype,
      .q = matrices(a, "q"),
      .w_k = matrices(a, "w_k"),
      .out = matrices(a, "out"),
      .rope = rope_of(a),
      .position = a.data<int32_t>("position"),
      .tokens = q.sizes[0],
      .heads = q.sizes[1],
      .nope = w_k.sizes[2],
      .latent = w_k.sizes[1],
  };
  const int64_t tiles = params.heads * params.latent / cpu::kBf16GemmTile;
  const int64_t work = params.tokens * cpu::kBf16GemmTile * params.nope / cpu::kProductsPerElement;
  parallel_over(tiles, work, [&](int64_t begin, int64_t end) { cpu::mla_query(params, begin, end); });
}

void mla_decode_cpu(const Call& a) {
  const TensorDesc& q = a.tensor("q");
  const int64_t tokens = q.sizes[0], heads = q.sizes[1];
  const cpu::MlaDecodeParams params{
      .dtype = q.dtype,
      .q = matrices(a, "q"),
      .pages = pages_of(a),
      .sequence = a.data<int32_t>("sequence"),
      .position = a.data<int32_t>("position"),
      .out = matrices(a, "out"),
      .heads = heads,
      .latent = a.integer("latent"),
      .split_rows = a.integer("split_rows"),
      .scale = static_cast<float>(a.number("scale")),
  };
  int64_t longest = 0;  // position; what is shared among threads is counted in pages of it
  for (int64_t t = 0; t < tokens; ++t) longest = std::max<int64_t>(longest, params.position[t]);
  const int64_t block = std::min(heads, cpu::kHeadBlock);
  const int64_t work = (longest + 1) * block * (params.pages.width + params.latent) / cpu::kProductsPerElement;
  parallel_over(tokens * ceil_div(heads, cpu::kHeadBlock), work,
                [&](int64_t begin, int64_t end) { cpu::mla_decode(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"mla_write", mla_write_cpu>(m);
  add_cpu_kernel<"mla_query", mla_query_cpu>(m);
  add_cpu_kernel<"mla_decode", mla_decode_cpu>(m);
}
