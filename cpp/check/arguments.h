// The arguments of one call, by the names of its op's schema.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string_view>

#include "check/tensor_desc.h"

namespace longcat_ops {

constexpr size_t kMaxArguments = 16;  // most that an op may have

enum class Kind : uint8_t { kTensor, kOptionalTensor, kInt, kOptionalInt, kFloat, kBool };

struct Parameter {
  std::string_view name;
  Kind kind;
};

// "op(Tensor a, int? b, Tensor(c!) out) -> ()", parsed by the compiler: a schema that it cannot parse does not compile.
struct Schema {
  consteval Schema(const char* schema_text);

  const char* text;
  std::string_view op;
  std::array<Parameter, kMaxArguments> parameters{};
  size_t size = 0;
  size_t first_output = 0;  // outputs come last; each is marked as written
};

// An FP8 operand: e4m3 values and their f32 scales.
struct Fp8Pair {
  const TensorDesc& values;
  const TensorDesc& scales;
};

// Typed access; a wrong name or type is a bug of the caller, not of the user. Outputs may be missing: `supports` asks
// before anything is allocated.
class Arguments {
 public:
  Arguments(const Schema& schema, std::span<const Argument> values) : schema_(schema), values_(values) {}

  // A missing tensor is returned as one on no device, which every check refuses.
  const TensorDesc& tensor(std::string_view name) const;
  const TensorDesc* optional_tensor(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  std::optional<int64_t> optional_integer(std::string_view name) const;
  bool flag(std::string_view name) const { return integer(name) != 0; }
  double number(std::string_view name) const;
  Fp8Pair pair(std::string_view values, std::string_view scales) const { return {tensor(values), tensor(scales)}; }

  const Schema& schema() const { return schema_; }
  std::span<const Argument> values() const { return values_; }

 protected:
  size_t index(std::string_view name) const;  // in the schema

 private:
  template <class T>
  const T* find(std::string_view name) const;  // null: not given
  template <class T>
  const T& get(std::string_view name) const;
  template <class T>
  [[noreturn]] void refuse(std::string_view name) const;

  const Schema& schema_;
  std::span<const Argument> values_;
};

consteval Kind kind_of(std::string_view type) {
  if (type.starts_with("Tensor")) return type.ends_with('?') ? Kind::kOptionalTensor : Kind::kTensor;
  if (type == "int") return Kind::kInt;
  if (type == "int?") return Kind::kOptionalInt;
  if (type == "float") return Kind::kFloat;
  if (type == "bool") return Kind::kBool;
  throw "a type that no kernel takes";
}

consteval Schema::Schema(const char* schema_text) : text(schema_text) {
  const std::string_view all = text;
  const size_t open = all.find('(');
  op = all.substr(0, open);
  for (size_t at = open + 1; all[at - 1] != ')';) {
    const size_t end = all.find_first_of(",)", all.find(' ', at));
    const std::string_view one = all.substr(at, end - at);
    const size_t space = one.rfind(' ');
    if (size == kMaxArguments) throw "more arguments than kMaxArguments";
    parameters[size++] = {one.substr(space + 1), kind_of(one.substr(0, space))};
    if (one.find('!') == std::string_view::npos) first_output = size;
    at = end + (all[end] == ',' ? 2 : 1);
  }
}

}  // namespace longcat_ops
