#include "check/moe_checks.h"

#include "check/error.h"
#include "common/constants.h"

namespace longcat_ops {

void check_dense(const char* op, Named tensor, DType dtype, std::initializer_list<int64_t> sizes, Named like) {
  check_operand(op, tensor, dtype, sizes, like);
  check_contiguous(op, tensor.name, *tensor.tensor);
}

void check_top_k(const char* op, const char* name, const TensorDesc& ids) {
  LC_CHECK(ids.sizes[1] >= 1 && ids.sizes[1] <= kMaxTopK, op, name, "of shape " + shape_text(ids),
           text("[T, K] with K in 1 .. ", kMaxTopK), describe(name, ids), "");
}

void check_tokens(const char* op, const char* name, const TensorDesc& x, const char* layout) {
  check_lead(op, {name, &x}, 2, layout);
  check_floating(op, name, x);
  check_multiple(op, name, x, 1, layout, "H");
  check_unit_inner_stride(op, name, x);
}

void check_choices(const char* op, const TensorDesc& ids) {
  check_lead(op, {"ids", &ids}, 2, "[T, K]");
  check_dtype(op, "ids", ids, DType::kInt32);
  check_contiguous(op, "ids", ids);
  check_top_k(op, "ids", ids);
  LC_CHECK(ids.sizes[0] * ids.sizes[1] <= INT32_MAX, op, "ids", "of shape " + shape_text(ids),
           "at most 2^31 - 1 elements", "", "");
}

}  // namespace longcat_ops
