#include "check/arguments.h"

#include <stdexcept>

#include "common/text.h"

namespace longcat_ops {
namespace {

template <class T>
constexpr const char* kWanted = nullptr;
template <>
constexpr const char* kWanted<TensorDesc> = "a tensor";
template <>
constexpr const char* kWanted<int64_t> = "an integer";
template <>
constexpr const char* kWanted<double> = "a float";

}  // namespace

size_t Arguments::index(std::string_view name) const {
  for (size_t i = 0; i < schema_.size; ++i)
    if (schema_.parameters[i].name == name) return i;
  throw std::invalid_argument(text(schema_.op, " has no argument ", name));
}

template <class T>
const T* Arguments::find(std::string_view name) const {
  const size_t i = index(name);
  if (i >= values_.size() || std::holds_alternative<std::monostate>(values_[i])) return nullptr;
  const T* value = std::get_if<T>(&values_[i]);
  if (!value) refuse<T>(name);
  return value;
}

template <class T>
const T& Arguments::get(std::string_view name) const {
  const T* value = find<T>(name);
  if (!value) refuse<T>(name);
  return *value;
}

template <class T>
void Arguments::refuse(std::string_view name) const {
  throw std::invalid_argument(text("check ", schema_.op, ": ", name, " must be ", kWanted<T>));
}

const TensorDesc& Arguments::tensor(std::string_view name) const {
  static const TensorDesc none{.device = DeviceKind::kNone};
  const TensorDesc* desc = optional_tensor(name);
  return desc ? *desc : none;
}

const TensorDesc* Arguments::optional_tensor(std::string_view name) const { return find<TensorDesc>(name); }

int64_t Arguments::integer(std::string_view name) const { return get<int64_t>(name); }

std::optional<int64_t> Arguments::optional_integer(std::string_view name) const {
  const int64_t* value = find<int64_t>(name);
  return value ? std::optional(*value) : std::nullopt;
}

double Arguments::number(std::string_view name) const { return get<double>(name); }

}  // namespace longcat_ops
