#include <cstdint>

#include "check/error.h"
#include "check/tensor_checks.h"
#include "ops/table.h"
#include "step/config.h"

namespace longcat_ops {
namespace {

void check_list(const char* op, Named list, DType dtype, int64_t size, Named like) {
  check_operand(op, list, dtype, {size}, like);
  check_contiguous(op, list.name, *list.tensor);
}

// tokens i64 [B, q]: rows any distance apart, q at least 1; an index of a row fits into 32 bits.
void check_tokens(const char* op, const TensorDesc& tokens) {
  check_lead(op, {"tokens", &tokens}, 2, "[B, q]");
  check_dtype(op, "tokens", tokens, DType::kInt64);
  LC_CHECK(tokens.sizes[1] >= 1, op, "tokens", "of shape " + shape_text(tokens), "[B, q] with q at least 1",
           describe("tokens", tokens), "");
  LC_CHECK(num_elements(tokens) <= INT32_MAX, op, "tokens", "of shape " + shape_text(tokens),
           "at most 2^31 - 1 elements", "", "");
  check_unit_inner_stride(op, "tokens", tokens);
}

void check_pack_rows(const Arguments& a) {
  static constexpr const char* kOp = "pack_rows";
  const TensorDesc& tokens = a.tensor("tokens");
  const Named lead{"tokens", &tokens};
  check_tokens(kOp, tokens);
  const int64_t sequences = tokens.sizes[0], rows = num_elements(tokens);
  for (const char* name : {"num_drafts", "lengths"})
    check_list(kOp, {name, &a.tensor(name)}, DType::kInt32, sequences, lead);
  if (const TensorDesc* ids = a.optional_tensor("ids")) check_list(kOp, {"ids", ids}, DType::kInt64, rows, lead);
  for (const char* name : {"sequence", "position"})
    if (const TensorDesc* out = a.optional_tensor(name)) check_list(kOp, {name, out}, DType::kInt32, rows, lead);
  if (const TensorDesc* first_row = a.optional_tensor("first_row"))
    check_list(kOp, {"first_row", first_row}, DType::kInt32, sequences, lead);
  if (const TensorDesc* num_rows = a.optional_tensor("num_rows")) {
    check_rank(kOp, "num_rows", *num_rows, 1, "[copies]");
    LC_CHECK(num_rows->sizes[0] >= 1, kOp, "num_rows", "of shape " + shape_text(*num_rows),
             "[copies] with copies at least 1", describe("num_rows", *num_rows), "");
    check_list(kOp, {"num_rows", num_rows}, DType::kInt32, num_rows->sizes[0], lead);
  }
  check_no_alias(kOp, a);
}

void check_advance_lengths(const Arguments& a) {
  static constexpr const char* kOp = "advance_lengths";
  const TensorDesc &tokens = a.tensor("tokens"), &stop_ids = a.tensor("stop_ids"), &newest = a.tensor("newest");
  const TensorDesc *kept = a.optional_tensor("kept"), *last_row = a.optional_tensor("last_row");
  const Named lead{"tokens", &tokens};
  check_tokens(kOp, tokens);
  const int64_t sequences = tokens.sizes[0];
  for (const char* name : {"num_tokens", "first_row", "limits", "lengths", "num_drafts"})
    check_list(kOp, {name, &a.tensor(name)}, DType::kInt32, sequences, lead);
  check_rank(kOp, "stop_ids", stop_ids, 1, "[S]");
  check_list(kOp, {"stop_ids", &stop_ids}, DType::kInt64, stop_ids.sizes[0], lead);
  check_operand(kOp, {"newest", &newest}, DType::kInt64, {sequences}, lead);
  check_elements_apart(kOp, "newest", newest);
  if (kept) check_list(kOp, {"kept", kept}, DType::kInt32, sequences, lead);
  if (last_row) check_list(kOp, {"last_row", last_row}, DType::kInt64, sequences, lead);
  check_no_alias(kOp, a);
}

// lengths and num_drafts are read before they are written.
int64_t advance_bytes_read(const Arguments& a) {
  int64_t bytes = 0;
  for (const char* name : {"tokens", "num_tokens", "first_row", "limits", "stop_ids", "lengths", "num_drafts"})
    bytes += bytes_of(a.tensor(name));
  return bytes;
}

KernelShape shape_of(const char* kernel, const StepConfig& config) {
  return {kernel, config.blocks, config.threads, config.smem};
}

std::vector<KernelShape> pack_launches(const Arguments& a) {
  return {shape_of("pack_rows", choose_pack_rows_config(a.tensor("tokens").sizes[0]))};
}

std::vector<KernelShape> advance_launches(const Arguments& a) {
  const StepConfig config = choose_advance_lengths_config(a.tensor("tokens").sizes[0]);
  if (config.blocks == 0) return {};
  return {shape_of("advance_lengths", config)};
}

}  // namespace

std::vector<OpRow> step_ops() {
  return {
      // tokens i64 [B, q], num_drafts and lengths i32 [B], ids i64, sequence and position i32 [B * q], first_row i32
      // [B], num_rows i32 [copies]
      {"pack_rows(Tensor tokens, Tensor num_drafts, Tensor lengths, Tensor(a!) ids, Tensor(b!) sequence, "
       "Tensor(c!) position, Tensor(d!) first_row, Tensor(e!) num_rows) -> ()",
       check_pack_rows,
       {.assumes = "every sequence has q rows", .launches = pack_launches}},
      // tokens i64 [B, q], num_tokens, first_row and limits i32 [B], stop_ids i64 [S], lengths and num_drafts i32 [B],
      // newest i64 [B], kept i32 [B], last_row i64 [B]
      {"advance_lengths(Tensor tokens, Tensor num_tokens, Tensor first_row, Tensor limits, Tensor stop_ids, "
       "Tensor(a!) lengths, Tensor(b!) num_drafts, Tensor(c!) newest, Tensor(d!) kept, Tensor(e!) last_row) -> ()",
       check_advance_lengths,
       {.assumes = "every sequence has q new tokens and keeps one",
        .bytes_read = advance_bytes_read,
        .launches = advance_launches}},
  };
}

}  // namespace longcat_ops
