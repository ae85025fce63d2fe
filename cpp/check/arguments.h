// The arguments of one call, by the names of its op's schema.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "check/gemm_check.h"
#include "check/tensor_desc.h"

namespace longcat_ops {

// "op(Tensor a, int? b, Tensor(c!) out) -> ()" taken apart.
struct Schema {
  explicit Schema(const char* text);

  std::string op;
  std::vector<std::string> names;
  size_t first_output = 0;  // outputs come last; each is marked as written
};

// Typed access; a wrong name or type is a bug of the caller, not of the user. Outputs may be missing.
class Arguments {
 public:
  Arguments(const Schema& schema, const std::vector<Argument>& values) : schema_(schema), values_(values) {}

  // A tensor that is not there is one on no device, which every check refuses.
  const TensorDesc& tensor(std::string_view name) const;
  const TensorDesc* optional_tensor(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  std::optional<int64_t> optional_integer(std::string_view name) const;
  double number(std::string_view name) const;
  Fp8Pair pair(std::string_view values, std::string_view scales) const { return {tensor(values), tensor(scales)}; }

  const Schema& schema() const { return schema_; }
  const std::vector<Argument>& values() const { return values_; }

 private:
  const Argument* find(std::string_view name) const;  // null: not given

  template <class T>
  const T& get(std::string_view name, const char* wanted) const;

  const Schema& schema_;
  const std::vector<Argument>& values_;
};

}  // namespace longcat_ops
