#include "ops/table.h"

#include <stdexcept>

#include "check/error.h"

namespace longcat_ops {

const std::vector<OpRow>& all_ops() {
  static const std::vector<OpRow> rows = [] {
    std::vector<OpRow> all;
    for (const auto& family : {quant_ops(), norm_ops(), gemm_ops(), bf16_gemm_ops(), router_ops(), moe_ops(), mla_ops(),
                               rows_ops(), step_ops(), sampling_ops()})
      all.insert(all.end(), family.begin(), family.end());
    return all;
  }();
  return rows;
}

const OpRow& find_op(std::string_view op) {
  for (const OpRow& row : all_ops())
    if (row.schema.op == op) return row;
  throw std::invalid_argument(text("there is no op ", op));
}

void check(std::string_view op, const std::vector<Argument>& arguments) {
  const OpRow& row = find_op(op);
  row.check(Arguments(row.schema, arguments));
}

Explanation explain(std::string_view op, const std::vector<Argument>& arguments) {
  const OpRow& row = find_op(op);
  return explain(row.cost, Arguments(row.schema, arguments));
}

}  // namespace longcat_ops
