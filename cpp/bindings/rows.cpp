#include "cpu/rows.h"

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "cpu/norm.h"

namespace longcat_ops::bindings {
namespace {

void embed_rows_cpu(const Call& a) {
  const TensorDesc &table = a.tensor("table"), &ids = a.tensor("ids");
  const cpu::EmbedParams params{
      .dtype = table.dtype,
      .table = a.matrix("table"),
      .out = a.matrix("out"),
      .ids = a.data<int64_t>("ids"),
      .vocabulary = table.sizes[0],
      .width = table.sizes[1],
  };
  parallel_over(ids.sizes[0], params.width, [&](int64_t begin, int64_t end) { cpu::embed_rows(params, begin, end); });
}

void add_rows_cpu(const Call& a) {
  const TensorDesc& x = a.tensor("x");
  const cpu::AddParams params{
      .dtype = x.dtype,
      .a = a.matrix("x"),
      .b = a.matrix("y"),
      .out = a.matrix("out"),
      .columns = x.sizes[1],
  };
  parallel_over(x.sizes[0], params.columns, [&](int64_t begin, int64_t end) { cpu::add(params, begin, end); });
}

void silu_and_mul_cpu(const Call& a) {
  const TensorDesc& gate_up = a.tensor("gate_up");
  const cpu::SiluAndMulParams params{
      .dtype = gate_up.dtype,
      .gate_up = a.matrix("gate_up"),
      .out = a.matrix("out"),
      .width = gate_up.sizes[1] / 2,
  };
  parallel_over(gate_up.sizes[0], 4 * params.width,
                [&](int64_t begin, int64_t end) { cpu::silu_and_mul(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"embed_rows", embed_rows_cpu>(m);
  add_cpu_kernel<"add_rows", add_rows_cpu>(m);
  add_cpu_kernel<"silu_and_mul", silu_and_mul_cpu>(m);
}
