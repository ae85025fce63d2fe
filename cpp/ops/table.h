// One row for each op: its schema, its check, its cost. Everything else that goes through all ops starts here.
#pragma once

#include <string_view>
#include <vector>

#include "check/arguments.h"
#include "cost/explain.h"

namespace longcat_ops {

struct OpRow {
  Schema schema;  // an out-variant that returns nothing; (a!) marks exactly what is written
  void (*check)(const Arguments&);
  OpCost cost = {};
};

// By family.
std::vector<OpRow> quant_ops();
std::vector<OpRow> norm_ops();
std::vector<OpRow> gemm_ops();
std::vector<OpRow> bf16_gemm_ops();
std::vector<OpRow> router_ops();
std::vector<OpRow> moe_ops();
std::vector<OpRow> mla_ops();
std::vector<OpRow> rows_ops();
std::vector<OpRow> step_ops();
std::vector<OpRow> sampling_ops();

// All of them. find_op throws std::invalid_argument for an op that does not exist.
const std::vector<OpRow>& all_ops();
const OpRow& find_op(std::string_view op);

// Called by `longcat_ops.supports` and the kernels in Python; bindings/call.h runs the check before each kernel in C++.
// Throws CheckError for a bad argument, std::invalid_argument for an op or an argument list that does not exist.
void check(std::string_view op, const std::vector<Argument>& arguments);

// arguments: those of the op's schema, outputs included.
Explanation explain(std::string_view op, const std::vector<Argument>& arguments);

}  // namespace longcat_ops
