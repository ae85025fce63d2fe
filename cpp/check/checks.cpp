#include "check/checks.h"

#include <map>
#include <optional>
#include <stdexcept>

#include "check/error.h"
#include "check/gemm_check.h"
#include "check/moe_check.h"
#include "check/norm_check.h"
#include "check/quant_check.h"

namespace longcat_ops {
namespace {

// Typed access to one call's arguments; a wrong type is a bug of the caller, not of the user.
class Arguments {
 public:
  Arguments(const std::string& op, const std::vector<Argument>& values) : op_(op), values_(values) {}

  const TensorDesc& tensor(size_t index) const {
    static const TensorDesc none{.device = DeviceKind::kNone};
    return index < values_.size() && absent(index) ? none : get<TensorDesc>(index, "a tensor");
  }
  int64_t integer(size_t index) const { return get<int64_t>(index, "an integer"); }
  double number(size_t index) const { return get<double>(index, "a float"); }
  const TensorDesc* optional_tensor(size_t index) const { return absent(index) ? nullptr : &tensor(index); }
  std::optional<int64_t> optional_integer(size_t index) const {
    return absent(index) ? std::nullopt : std::optional(integer(index));
  }
  Fp8Pair pair(size_t index) const { return {tensor(index), tensor(index + 1)}; }

 private:
  bool absent(size_t index) const {
    return index >= values_.size() || std::holds_alternative<std::monostate>(values_[index]);
  }

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

// Arguments in the order of each op's schema (bindings/torch_ops.cpp); outputs, which come last, may be missing.
const std::map<std::string, CheckFunction>& check_table() {
  using A = const Arguments&;
  static const std::map<std::string, CheckFunction> table = {
      {"per_token_group_quant_fp8",
       [](A a) {
         check_per_token_group_quant_fp8(a.tensor(0), a.integer(1), a.optional_tensor(2), a.optional_tensor(3));
       }},
      {"per_block_quant_fp8",
       [](A a) { check_per_block_quant_fp8(a.tensor(0), a.optional_tensor(1), a.optional_tensor(2)); }},
      {"silu_and_mul_quant_fp8",
       [](A a) { check_silu_and_mul_quant_fp8(a.tensor(0), a.optional_tensor(1), a.optional_tensor(2)); }},
      {"dequant_fp8", [](A a) { check_dequant_fp8(a.tensor(0), a.tensor(1), a.integer(2), a.optional_tensor(3)); }},
      {"rms_norm", [](A a) { check_rms_norm(a.tensor(0), a.tensor(1), a.number(2), a.optional_tensor(3)); }},
      {"rms_norm_quant_fp8",
       [](A a) {
         check_rms_norm_quant_fp8(a.tensor(0), a.tensor(1), a.number(2), a.optional_tensor(3), a.optional_tensor(4),
                                  a.optional_tensor(5), a.optional_tensor(6), a.optional_tensor(7));
       }},
      {"fp8_gemm_nt", [](A a) { check_fp8_gemm_nt(a.pair(0), a.pair(2), a.integer(4), a.optional_tensor(5)); }},
      {"m_grouped_fp8_gemm_nt_offset",
       [](A a) {
         check_m_grouped_fp8_gemm_nt_offset(a.pair(0), a.pair(2), a.tensor(4), a.optional_integer(5), a.integer(7),
                                            a.optional_tensor(8));
       }},
      {"m_grouped_fp8_gemm_nt_masked",
       [](A a) {
         check_m_grouped_fp8_gemm_nt_masked(a.pair(0), a.pair(2), a.tensor(4), a.integer(5), a.optional_tensor(6));
       }},
      {"m_grouped_fp8_gemm_nt_contiguous",
       [](A a) { check_m_grouped_fp8_gemm_nt_contiguous(a.pair(0), a.pair(2), a.tensor(4), a.optional_tensor(5)); }},
      {"interleave_gate_up",
       [](A a) { check_interleave_gate_up(a.pair(0), a.optional_tensor(2), a.optional_tensor(3)); }},
      {"m_grouped_fp8_swiglu_gemm_nt_offset",
       [](A a) {
         check_m_grouped_fp8_swiglu_gemm_nt_offset(a.pair(0), a.pair(2), a.tensor(4), a.optional_integer(5),
                                                   a.optional_tensor(7), a.optional_tensor(8));
       }},
      {"moe_route",
       [](A a) {
         check_moe_route(a.tensor(0), a.tensor(1), a.optional_tensor(2),
                         {a.integer(3), a.integer(4), a.integer(5), a.number(6)},
                         {a.optional_tensor(7), a.optional_tensor(8), a.optional_tensor(9), a.optional_tensor(10),
                          a.optional_tensor(11), a.optional_tensor(12)});
       }},
      {"moe_plan",
       [](A a) {
         check_moe_plan(a.tensor(0), a.integer(1), a.optional_tensor(2), a.optional_tensor(3), a.optional_tensor(4),
                        a.optional_tensor(5));
       }},
      {"moe_permute_quant",
       [](A a) {
         check_moe_permute_quant(a.tensor(0), a.tensor(1), a.tensor(2), a.optional_tensor(3), a.optional_tensor(4));
       }},
      {"moe_combine",
       [](A a) {
         check_moe_combine(a.tensor(0), a.tensor(1), a.tensor(2), a.tensor(3), a.tensor(4), a.optional_tensor(5),
                           a.optional_tensor(6));
       }},
      {"fused_moe",
       [](A a) {
         check_fused_moe(a.tensor(0), a.tensor(1), a.tensor(2), a.tensor(3),
                         {a.tensor(4), a.optional_tensor(5), a.tensor(6), a.optional_tensor(7)},
                         {a.optional_tensor(8), a.optional_tensor(9), a.optional_tensor(10)}, a.optional_tensor(11));
       }},
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
