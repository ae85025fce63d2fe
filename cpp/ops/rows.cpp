#include "check/error.h"
#include "check/tensor_checks.h"
#include "ops/table.h"
#include "rows/config.h"

namespace longcat_ops {
namespace {

void check_embed_rows(const Arguments& a) {
  static constexpr const char* kOp = "embed_rows";
  const TensorDesc &table = a.tensor("table"), &ids = a.tensor("ids"), *out = a.optional_tensor("out");
  const Named lead{"table", &table};
  check_lead(kOp, lead, 2, "[V, H]");
  check_floating(kOp, "table", table);
  check_unit_inner_stride(kOp, "table", table);
  check_rank(kOp, "ids", ids, 1, "[T]");
  check_operand(kOp, {"ids", &ids}, DType::kInt64, {ids.sizes[0]}, lead);
  check_contiguous(kOp, "ids", ids);
  if (out) check_output_rows(kOp, {"out", out}, table.dtype, {ids.sizes[0], table.sizes[1]}, lead);
  check_no_alias(kOp, a);
}

void check_add_rows(const Arguments& a) {
  static constexpr const char* kOp = "add_rows";
  const TensorDesc &x = a.tensor("x"), &y = a.tensor("y"), *out = a.optional_tensor("out");
  const Named lead{"x", &x};
  check_lead(kOp, lead, 2, "[T, H]");
  check_floating(kOp, "x", x);
  check_unit_inner_stride(kOp, "x", x);
  check_operand(kOp, {"y", &y}, x.dtype, {x.sizes[0], x.sizes[1]}, lead);
  check_unit_inner_stride(kOp, "y", y);
  if (out) check_output_rows(kOp, {"out", out}, x.dtype, {x.sizes[0], x.sizes[1]}, lead);
  check_no_alias(kOp, a);
}

void check_silu_and_mul(const Arguments& a) {
  static constexpr const char* kOp = "silu_and_mul";
  const TensorDesc &gate_up = a.tensor("gate_up"), *out = a.optional_tensor("out");
  const Named lead{"gate_up", &gate_up};
  check_lead(kOp, lead, 2, "[T, 2I]");
  check_floating(kOp, "gate_up", gate_up);
  LC_CHECK(gate_up.sizes[1] % 2 == 0, kOp, "gate_up", "of shape " + shape_text(gate_up), "[T, 2I], of an even width",
           describe("gate_up", gate_up), "");
  check_unit_inner_stride(kOp, "gate_up", gate_up);
  if (out) check_output_rows(kOp, {"out", out}, gate_up.dtype, {gate_up.sizes[0], gate_up.sizes[1] / 2}, lead);
  check_no_alias(kOp, a);
}

int64_t embedded_bytes(const Arguments& a) {
  const TensorDesc &table = a.tensor("table"), &ids = a.tensor("ids");
  return bytes_of(ids) + ids.sizes[0] * table.sizes[1] * element_size(table.dtype);
}

std::vector<KernelShape> launches_over(const char* op, const TensorDesc& out, int64_t element_halves = 1) {
  const RowsConfig config = choose_rows_config(out.sizes[0], out.sizes[1] * element_halves);
  if (config.blocks == 0) return {};
  return {{op, config.blocks, kRowsThreads, 0}};
}

std::vector<KernelShape> embed_launches(const Arguments& a) {  // the kernel moves 16 bytes of any dtype
  return launches_over("embed_rows", a.tensor("out"), element_size(a.tensor("out").dtype) / 2);
}

}  // namespace

std::vector<OpRow> rows_ops() {
  return {
      // table [V, H], ids i64 [T], out [T, H]
      {"embed_rows(Tensor table, Tensor ids, Tensor(a!) out) -> ()",
       check_embed_rows,
       {.assumes = "ids differ", .bytes_read = embedded_bytes, .launches = embed_launches}},
      // x, y and out [T, H]
      {"add_rows(Tensor x, Tensor y, Tensor(a!) out) -> ()",
       check_add_rows,
       {.launches = [](const Arguments& a) { return launches_over("add_rows", a.tensor("out")); }}},
      // gate_up [T, 2I], out [T, I]
      {"silu_and_mul(Tensor gate_up, Tensor(a!) out) -> ()",
       check_silu_and_mul,
       {.launches = [](const Arguments& a) { return launches_over("silu_and_mul", a.tensor("out")); }}},
  };
}

}  // namespace longcat_ops
