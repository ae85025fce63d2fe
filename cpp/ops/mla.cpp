#include <cmath>

#include "check/error.h"
#include "check/tensor_checks.h"
#include "common/constants.h"
#include "common/latent_pages.h"
#include "common/numeric.h"
#include "mla/config.h"
#include "mla/query_config.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

// bf16, or on a CPU f32: what the products take.
void check_operand_dtype(const char* op, const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.dtype != DType::kFloat32 || tensor.device != DeviceKind::kCuda, op, name, dtype_name(tensor.dtype),
           "torch.bfloat16: on CUDA the tensor cores take bf16; float32 runs on a CPU", describe(name, tensor),
           text(name, ".bfloat16()"));
  LC_CHECK(tensor.dtype == DType::kBFloat16 || tensor.dtype == DType::kFloat32, op, name, dtype_name(tensor.dtype),
           "torch.bfloat16 or torch.float32", describe(name, tensor), text(name, ".bfloat16()"));
}

// sequence and position, i32 [T].
void check_places(const char* op, const Arguments& a, std::initializer_list<const char*> names, Named lead) {
  for (const char* name : names) {
    const TensorDesc& at = a.tensor(name);
    check_operand(op, {name, &at}, DType::kInt32, {lead.tensor->sizes[0]}, lead);
    check_contiguous(op, name, at);
  }
}

// rows [pages, 64, W] of the dtype of the lead, page_table i32 [B, P].
void check_pages(const char* op, const Arguments& a, Named lead) {
  const TensorDesc &rows = a.tensor("rows"), &table = a.tensor("page_table");
  check_rank(op, "rows", rows, 3, "[pages, 64, W]");
  LC_CHECK(rows.sizes[1] == kPageRows && rows.sizes[2] > 0, op, "rows", "of shape " + shape_text(rows),
           text("[pages, ", kPageRows, ", W] with W at least 1"), describe("rows", rows), "");
  check_operand(op, {"rows", &rows}, lead.tensor->dtype, {rows.sizes[0], kPageRows, rows.sizes[2]}, lead);
  check_unit_inner_stride(op, "rows", rows);
  check_rank(op, "page_table", table, 2, "[B, P]");
  check_operand(op, {"page_table", &table}, DType::kInt32, {table.sizes[0], table.sizes[1]}, lead);
  check_contiguous(op, "page_table", table);
}

// rope f32 [L, R]: R even, as wide as what it turns.
int64_t check_rope(const char* op, const TensorDesc& rope, Named lead, int64_t width, const char* whose) {
  check_rank(op, "rope", rope, 2, "[L, R]");
  check_operand(op, {"rope", &rope}, DType::kFloat32, {rope.sizes[0], rope.sizes[1]}, lead);
  check_unit_inner_stride(op, "rope", rope);
  LC_CHECK(rope.sizes[1] % 2 == 0, op, "rope", "of shape " + shape_text(rope), "[L, R] with R even",
           describe("rope", rope), "");
  LC_CHECK(rope.sizes[1] < width, op, "rope", "of shape " + shape_text(rope),
           text("[L, R] with R below ", width, ", the width of `", whose, "`"), describe("rope", rope), "");
  return rope.sizes[1];
}

void check_mla_write(const Arguments& a) {
  static constexpr const char* kOp = "mla_write";
  const TensorDesc &kv = a.tensor("kv"), &weight = a.tensor("weight"), &rows = a.tensor("rows");
  const double eps = a.number("eps");
  const Named lead{"kv", &kv};
  check_lead(kOp, lead, 2, "[T, latent + R]");
  check_floating(kOp, "kv", kv);
  check_unit_inner_stride(kOp, "kv", kv);
  const int64_t rope = check_rope(kOp, a.tensor("rope"), lead, kv.sizes[1], "kv");
  check_operand(kOp, {"weight", &weight}, DType::kFloat32, {kv.sizes[1] - rope}, lead);
  check_contiguous(kOp, "weight", weight);
  LC_CHECK(eps >= 0 && std::isfinite(eps), kOp, "eps", text(eps), "0 or a small positive number", "", "");
  check_pages(kOp, a, lead);
  LC_CHECK(rows.sizes[2] == kv.sizes[1], kOp, "rows", "of shape " + shape_text(rows),
           text("[pages, ", kPageRows, ", ", kv.sizes[1], "], as wide as `kv`"), describe("kv", kv), "");
  check_places(kOp, a, {"sequence", "position"}, lead);
  check_elements_apart(kOp, "rows", rows);
  check_no_alias(kOp, a);
}

void check_mla_query(const Arguments& a) {
  static constexpr const char* kOp = "mla_query";
  const TensorDesc &q = a.tensor("q"), &w_k = a.tensor("w_k"), *out = a.optional_tensor("out");
  const Named lead{"q", &q};
  check_lead(kOp, lead, 3, "[T, h, nope + R]");
  check_operand_dtype(kOp, "q", q);
  check_unit_inner_stride(kOp, "q", q);
  const int64_t rope = check_rope(kOp, a.tensor("rope"), lead, q.sizes[2], "q");
  check_rank(kOp, "w_k", w_k, 3, "[h, latent, nope]");
  check_multiple(kOp, "w_k", w_k, 1, "[h, latent, nope]", "latent");
  check_operand(kOp, {"w_k", &w_k}, q.dtype, {q.sizes[1], w_k.sizes[1], q.sizes[2] - rope}, lead);
  check_multiple(kOp, "w_k", w_k, 2, "[h, latent, nope]", "nope");
  check_unit_inner_stride(kOp, "w_k", w_k);
  check_places(kOp, a, {"position"}, lead);
  if (out) check_output_rows(kOp, {"out", out}, q.dtype, {q.sizes[0], q.sizes[1], w_k.sizes[1] + rope}, lead);
  check_no_alias(kOp, a);
}

MlaDecodeProblem decode_problem(const Arguments& a) {
  const TensorDesc& q = a.tensor("q");
  return {.tokens = q.sizes[0],
          .heads = q.sizes[1],
          .width = q.sizes[2],
          .latent = a.integer("latent"),
          .table_width = a.tensor("page_table").sizes[1],
          .split_rows = a.integer("split_rows"),
          .sms = kH100Sms};
}

// Whether each row begins on `bytes`.
bool rows_begin_on(const TensorDesc& tensor, int64_t bytes) {
  int64_t all = static_cast<int64_t>(tensor.address);
  for (int i = 0; i + 1 < tensor.dim; ++i)
    if (tensor.sizes[i] > 1) all |= tensor.strides[i] * element_size(tensor.dtype);
  return all % bytes == 0;
}

// What the kernel of a GPU asks for beyond what the op does.
void check_decode_on_cuda(const char* op, const Arguments& a) {
  const TensorDesc& q = a.tensor("q");
  const char* reason = refusal_of(decode_problem(a));
  LC_CHECK(!reason, op, "q", "of shape " + shape_text(q) + ", latent " + std::to_string(a.integer("latent")),
           text("on CUDA ", reason ? reason : ""), describe("q", q), "a CPU takes any width");
  for (const auto& [name, bytes] : {std::pair{"q", 16}, std::pair{"rows", 16}, std::pair{"out", 4}}) {
    const TensorDesc* tensor = a.optional_tensor(name);
    LC_CHECK(!tensor || rows_begin_on(*tensor, bytes), op, name, "with rows off " + std::to_string(bytes) + " bytes",
             text("rows that begin on ", bytes, " bytes on CUDA"), describe(name, *tensor),
             text(name, ".contiguous()"));
  }
}

void check_mla_decode(const Arguments& a) {
  static constexpr const char* kOp = "mla_decode";
  const TensorDesc &q = a.tensor("q"), &rows = a.tensor("rows"), *out = a.optional_tensor("out");
  const int64_t latent = a.integer("latent"), split_rows = a.integer("split_rows");
  const double scale = a.number("scale");
  const Named lead{"q", &q};
  check_lead(kOp, lead, 3, "[T, h, W]");
  check_operand_dtype(kOp, "q", q);
  check_unit_inner_stride(kOp, "q", q);
  check_pages(kOp, a, lead);
  LC_CHECK(rows.sizes[2] == q.sizes[2], kOp, "rows", "of shape " + shape_text(rows),
           text("[pages, ", kPageRows, ", ", q.sizes[2], "], as wide as `q`"), describe("q", q), "");
  check_places(kOp, a, {"sequence", "position"}, lead);
  LC_CHECK(latent >= 1 && latent <= q.sizes[2], kOp, "latent", std::to_string(latent),
           text("1 .. ", q.sizes[2], ", the width of `rows`"), describe("rows", rows), "");
  LC_CHECK(std::isfinite(scale), kOp, "scale", text(scale), "a finite number", "", "");
  LC_CHECK(split_rows >= kPageRows && split_rows % kPageRows == 0, kOp, "split_rows", std::to_string(split_rows),
           text("a positive multiple of ", kPageRows), "", "");
  if (out) check_output_rows(kOp, {"out", out}, q.dtype, {q.sizes[0], q.sizes[1], latent}, lead);
  check_no_alias(kOp, a);
  if (q.device == DeviceKind::kCuda) check_decode_on_cuda(kOp, a);
}

std::vector<KernelShape> decode_launches(const Arguments& a) {
  const MlaDecodeProblem problem = decode_problem(a);
  const MlaDecodeConfig config = choose_mla_decode_config(problem);
  if (refusal_of(problem) || config.rows == 0) return {};
  std::vector<KernelShape> launches{
      {"mla_decode", config.blocks, mla::kDecodeThreads, static_cast<int>(config.smem.bytes)}};
  if (config.merge_parts > 0)
    launches.push_back({"mla_merge", config.rows * config.merge_parts, mla::kMergeThreads, 0});
  return launches;
}

double query_flops(const Arguments& a) {
  const TensorDesc &q = a.tensor("q"), &w_k = a.tensor("w_k");
  return product_flops(q.sizes[0] * q.sizes[1], w_k);
}

std::vector<KernelShape> query_launches(const Arguments& a) {
  const TensorDesc &q = a.tensor("q"), &w_k = a.tensor("w_k");
  if (q.dtype == DType::kFloat32) return {};
  // NOTE: a few views on 16 bytes, whose strides no tensor map takes, are copied, too.
  const auto whole = [](const TensorDesc& t) { return t.address % 16 == 0 && t.strides[0] % 8 == 0; };
  const bool wide =
      whole(q) && whole(w_k) && q.strides[1] % 8 == 0 && w_k.strides[1] % 8 == 0 && a.tensor("rope").sizes[1] % 8 == 0;
  const MlaQueryConfig config = choose_mla_query_config(q.sizes[0], q.sizes[1], w_k.sizes[1], w_k.sizes[2], wide);
  if (config.blocks == 0) return {};
  return {{"mla_query", config.blocks, config.threads, static_cast<int>(config.smem.bytes)}};
}

constexpr const char* kFull = "each token has a sequence of its own, with as many rows as its pages hold";

// Rows that the tokens attend to, all together.
int64_t attended(const Arguments& a) { return a.tensor("q").sizes[0] * a.tensor("page_table").sizes[1] * kPageRows; }

double decode_flops(const Arguments& a) {
  const TensorDesc& q = a.tensor("q");
  return 2.0 * attended(a) * q.sizes[1] * (q.sizes[2] + a.integer("latent"));
}

int64_t decode_bytes_read(const Arguments& a) {
  const TensorDesc& q = a.tensor("q");
  const int64_t places =
      bytes_of(a.tensor("page_table")) + bytes_of(a.tensor("sequence")) + bytes_of(a.tensor("position"));
  return bytes_of(q) + places + attended(a) * q.sizes[2] * element_size(q.dtype);
}

int64_t written_bytes(const Arguments& a) { return bytes_of(a.tensor("kv")); }

}  // namespace

std::vector<OpRow> mla_ops() {
  return {
      // kv [T, latent + R], weight f32 [latent], rope f32 [L, R], rows [pages, 64, latent + R], page_table i32 [B, P],
      // sequence and position i32 [T]
      {"mla_write(Tensor kv, Tensor weight, float eps, Tensor rope, Tensor page_table, Tensor sequence, "
       "Tensor position, Tensor(a!) rows) -> ()",
       check_mla_write,
       {.assumes = "every token has a place", .bytes_written = written_bytes}},
      // q [T, h, nope + R], w_k [h, latent, nope], out [T, h, latent + R]
      {"mla_query(Tensor q, Tensor w_k, Tensor rope, Tensor position, Tensor(a!) out) -> ()",
       check_mla_query,
       {.flops = query_flops, .launches = query_launches}},
      // q [T, h, W], rows [pages, 64, W], out [T, h, latent]
      {"mla_decode(Tensor q, Tensor rows, Tensor page_table, Tensor sequence, Tensor position, int latent, "
       "float scale, int split_rows, Tensor(a!) out) -> ()",
       check_mla_decode,
       {.flops = decode_flops, .assumes = kFull, .bytes_read = decode_bytes_read, .launches = decode_launches}},
  };
}

}  // namespace longcat_ops
