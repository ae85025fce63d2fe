#include "config/checks.h"

#include <map>
#include <stdexcept>

#include "base/check.h"
#include "config/norm_check.h"
#include "config/quant_check.h"

namespace longcat_ops {
namespace {

// Typed access to one call's arguments; a wrong type is a bug of the caller, not of the user.
class Arguments {
 public:
  Arguments(const std::string& op, const std::vector<Argument>& values) : op_(op), values_(values) {}

  const TensorDesc& tensor(size_t index) const { return get<TensorDesc>(index, "a tensor"); }
  int64_t integer(size_t index) const { return get<int64_t>(index, "an integer"); }
  double number(size_t index) const { return get<double>(index, "a float"); }
  const TensorDesc* optional_tensor(size_t index) const {
    if (index >= values_.size() || std::holds_alternative<std::monostate>(values_[index])) return nullptr;
    return &tensor(index);
  }

 private:
  template <class T>
  const T& get(size_t index, const char* wanted) const {
    const T* value = index < values_.size() ? std::get_if<T>(&values_[index]) : nullptr;
    if (!value) throw std::invalid_argument(text("check ", op_, ": argument ", index, " must be ", wanted));
    return *value;
  }

  const std::string& op_;
  const std::vector<Argument>& values_;
};

using CheckFunction = void (*)(const Arguments&);

const std::map<std::string, CheckFunction>& check_table() {
  static const std::map<std::string, CheckFunction> table = {
      {"per_token_group_quant_fp8",
       [](const Arguments& a) {
         check_per_token_group_quant_fp8(a.tensor(0), a.integer(1), a.optional_tensor(2), a.optional_tensor(3));
       }},
      {"per_block_quant_fp8",
       [](const Arguments& a) { check_per_block_quant_fp8(a.tensor(0), a.optional_tensor(1), a.optional_tensor(2)); }},
      {"dequant_fp8",
       [](const Arguments& a) { check_dequant_fp8(a.tensor(0), a.tensor(1), a.integer(2), a.optional_tensor(3)); }},
      {"rms_norm",
       [](const Arguments& a) { check_rms_norm(a.tensor(0), a.tensor(1), a.number(2), a.optional_tensor(3)); }},
  };
  return table;
}

}  // namespace

std::vector<std::string> checked_ops() {
  std::vector<std::string> names;
  for (const auto& [name, function] : check_table()) names.push_back(name);
  return names;
}

void check(const std::string& op, const std::vector<Argument>& arguments) {
  const auto found = check_table().find(op);
  if (found == check_table().end()) throw std::invalid_argument("no check is registered for op " + op);
  found->second(Arguments(op, arguments));
}

}  // namespace longcat_ops
