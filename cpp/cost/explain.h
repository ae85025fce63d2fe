// Bytes, flops and launches of a call. Pure functions of the arguments, so that every answer is available without a
// GPU. They only count: longcat_ops.perf turns counts into times.
#pragma once

#include <string>
#include <vector>

#include "check/arguments.h"
#include "cost/moe_gemm_explain.h"

namespace longcat_ops {

// One kernel that the CUDA backend starts for the call.
struct KernelShape {
  std::string kernel;
  int64_t blocks;
  int threads;     // of a block
  int smem_bytes;  // dynamic shared memory of a block
};

struct Explanation {
  int64_t bytes_read = 0;             // every input once
  int64_t bytes_written = 0;          // every output once
  double flops = 0;                   // of matrix products, counting a multiply-add as two
  std::string assumes;                // what depends on the data; "" if nothing
  std::vector<Candidate> candidates;  // of a matrix product: the tiles its kernel has, one of them chosen
  std::vector<KernelShape> launches;  // in order; empty for an op whose launcher is not described here
};

// What an op costs, from its arguments; null stands for a part that it does not have.
struct OpCost {
  double (*flops)(const Arguments&) = nullptr;
  const char* assumes = "";
  int64_t (*bytes_read)(const Arguments&) = nullptr;  // where a kernel reads less than every input
  int64_t (*bytes_written)(const Arguments&) = nullptr;
  std::vector<KernelShape> (*launches)(const Arguments&) = nullptr;
  MoeGemmProblem (*product)(const Arguments&) = nullptr;  // of a matrix product, whose tiles are explained
};

int64_t bytes_of(const TensorDesc& tensor);  // of its elements

// 2 * rows * N * K for rows times a weight whose last two sizes are [N, K].
double product_flops(int64_t rows, const TensorDesc& weight);
// The same for `a` [M, K], or [G, M, K], and `b`, if what kEveryExpert says holds.
double row_flops(const Arguments& a);
double stacked_flops(const Arguments& a);
double gate_up_flops(const Arguments& a);  // of `gate_up` in place of `b`
constexpr const char* kEveryExpert = "every row is used and every expert has one";

// arguments: outputs included.
Explanation explain(const OpCost& cost, const Arguments& arguments);

}  // namespace longcat_ops
