// One row for each op: its schema, its check, what it costs. Everything else that goes through all ops starts here.
#pragma once

#include <string>
#include <vector>

#include "check/arguments.h"
#include "cost/explain.h"

namespace longcat_ops {

struct OpRow {
  // Out-variants that return nothing; (a!) marks exactly what is written.
  OpRow(const char* schema_text, void (*check_function)(const Arguments&), OpCost op_cost = {})
      : text(schema_text), schema(schema_text), check(check_function), cost(op_cost) {}

  const char* text;
  Schema schema;
  void (*check)(const Arguments&);
  OpCost cost;
};

// By family.
std::vector<OpRow> quant_ops();
std::vector<OpRow> norm_ops();
std::vector<OpRow> gemm_ops();
std::vector<OpRow> moe_ops();

// All of them. find_op throws std::invalid_argument for an op that does not exist.
const std::vector<OpRow>& all_ops();
const OpRow& find_op(const std::string& op);

// `longcat_ops.supports` and the kernels in Python ask it; the kernels in C++ call check_<op> themselves. Throws
// CheckError for a bad argument, std::invalid_argument for an op or an argument list that does not exist.
void check(const std::string& op, const std::vector<Argument>& arguments);

// arguments: those of the op's schema, outputs included.
Explanation explain(const std::string& op, const std::vector<Argument>& arguments);

}  // namespace longcat_ops
