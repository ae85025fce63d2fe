#include "check/arguments.h"

#include <stdexcept>

#include "check/error.h"

namespace longcat_ops {

Schema::Schema(const char* schema) {
  const std::string_view text = schema;
  const size_t open = text.find('(');
  op = text.substr(0, open);
  for (size_t at = open + 1; at < text.size() && text[at - 1] != ')';) {
    const size_t end = text.find_first_of(",)", text.find(' ', at));
    const std::string_view one = text.substr(at, end - at);
    const bool written = one.find('!') != std::string_view::npos;
    if (!written) first_output = names.size() + 1;
    names.emplace_back(one.substr(one.rfind(' ') + 1));
    at = end + (text[end] == ',' ? 2 : 1);
  }
}

const Argument* Arguments::find(std::string_view name) const {
  for (size_t i = 0; i < schema_.names.size(); ++i) {
    if (schema_.names[i] != name) continue;
    const bool given = i < values_.size() && !std::holds_alternative<std::monostate>(values_[i]);
    return given ? &values_[i] : nullptr;
  }
  throw std::invalid_argument(text(schema_.op, " has no argument ", std::string(name)));
}

template <class T>
const T& Arguments::get(std::string_view name, const char* wanted) const {
  const Argument* value = find(name);
  const T* typed = value ? std::get_if<T>(value) : nullptr;
  if (!typed) throw std::invalid_argument(text("check ", schema_.op, ": ", std::string(name), " must be ", wanted));
  return *typed;
}

const TensorDesc& Arguments::tensor(std::string_view name) const {
  static const TensorDesc none{.device = DeviceKind::kNone};
  return find(name) ? get<TensorDesc>(name, "a tensor") : none;
}

const TensorDesc* Arguments::optional_tensor(std::string_view name) const {
  return find(name) ? &get<TensorDesc>(name, "a tensor") : nullptr;
}

int64_t Arguments::integer(std::string_view name) const { return get<int64_t>(name, "an integer"); }

std::optional<int64_t> Arguments::optional_integer(std::string_view name) const {
  return find(name) ? std::optional(integer(name)) : std::nullopt;
}

double Arguments::number(std::string_view name) const { return get<double>(name, "a float"); }

}  // namespace longcat_ops
