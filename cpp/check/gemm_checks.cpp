#include "check/gemm_checks.h"

#include "check/error.h"
#include "common/numeric.h"

namespace longcat_ops {
namespace {

void check_out(const char* op, const Arguments& a, std::initializer_list<int64_t> sizes) {
  const TensorDesc* out = a.optional_tensor("out");
  if (!out) return;
  check_floating(op, "out", *out);
  check_output_rows(op, {"out", out}, out->dtype, sizes, {"a", &a.tensor("a")});
}

void check_split_k(const char* op, const Arguments& a) {
  const int64_t split_k = a.integer("split_k");
  LC_CHECK(split_k == 1 || split_k == 2 || split_k == 4, op, "split_k", std::to_string(split_k), "1, 2 or 4", "", "");
}

void check_index_vector(const char* op, const char* name, const TensorDesc& tensor, int64_t size, Named like) {
  check_operand(op, {name, &tensor}, DType::kInt32, {size}, like);
  check_contiguous(op, name, tensor);
}

void check_hint(const char* op, const char* name, std::optional<int64_t> hint) {
  LC_CHECK(hint.value_or(0) >= 0, op, name, std::to_string(*hint), "0 or more rows", "", "");
}

}  // namespace

void check_inner_size(const char* op, const char* name, const TensorDesc& b, const TensorDesc& a) {
  const int64_t k = a.sizes[a.dim - 1];
  LC_CHECK(b.sizes[b.dim - 1] == k, op, name, "of shape " + shape_text(b), text("a last size of ", k, ", the K of `a`"),
           describe("a", a), "");
}

void check_dense_rest(const char* op, const Arguments& a) {
  check_split_k(op, a);
  check_out(op, a, {a.tensor("a").sizes[0], a.tensor("b").sizes[0]});
  check_no_alias(op, a);
}

void check_offset_rest(const char* op, const Arguments& a) {
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  check_index_vector(op, "offsets", a.tensor("offsets"), w.sizes[0] + 1, {"a", &x});
  check_hint(op, "max_m_hint", a.optional_integer("max_m_hint"));
  check_split_k(op, a);
  check_out(op, a, {x.sizes[0], w.sizes[1]});
  check_no_alias(op, a);
}

void check_masked_rest(const char* op, const Arguments& a) {
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  LC_CHECK(w.sizes[0] == x.sizes[0], op, "b", "of shape " + shape_text(w),
           text("a first size of ", x.sizes[0], ", the G of `a`"), describe("a", x), "");
  check_index_vector(op, "masked_m", a.tensor("masked_m"), x.sizes[0], {"a", &x});
  check_hint(op, "expected_m", a.integer("expected_m"));
  check_out(op, a, {x.sizes[0], x.sizes[1], w.sizes[1]});
  check_no_alias(op, a);
}

void check_contiguous_rest(const char* op, const Arguments& a) {
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("b");
  check_index_vector(op, "m_indices", a.tensor("m_indices"), x.sizes[0], {"a", &x});
  check_out(op, a, {x.sizes[0], w.sizes[1]});
  check_no_alias(op, a);
}

void check_swiglu_rest(const char* op, const Arguments& a, DType plain) {
  const TensorDesc &x = a.tensor("a"), &w = a.tensor("gate_up");
  const TensorDesc *h = a.optional_tensor("h"), *sh = a.optional_tensor("sh");
  const Named like{"a", &x};
  check_index_vector(op, "offsets", a.tensor("offsets"), w.sizes[0] + 1, like);
  check_hint(op, "max_m_hint", a.optional_integer("max_m_hint"));
  const int64_t rows = x.sizes[0], width = w.sizes[1] / 2;
  if (h) {
    const DType expected = sh ? DType::kFloat8E4M3 : plain;
    check_device(op, "h", *h);
    LC_CHECK(h->dtype == expected, op, "h", dtype_name(h->dtype),
             text(dtype_name(expected), sh ? ", as there is sh" : ", as there is no sh"), describe("h", *h), "");
    check_output_rows(op, {"h", h}, expected, {rows, width}, like);
  }
  if (sh) {
    check_operand(op, {"sh", sh}, DType::kFloat32, {rows, ceil_div(width, kQuantBlock)}, like);
    check_elements_apart(op, "sh", *sh);
  }
  check_no_alias(op, a);
}

}  // namespace longcat_ops
