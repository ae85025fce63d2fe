// Operations on multicast addresses: loads that reduce over the members, stores and additions to all of them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "emu/delivery.h"
#include "emu/engine.h"
#include "emu/ptx/convert.h"

namespace longcat_ops::emu {
namespace {

struct Target {
  const MulticastRange& range;
  size_t offset;
};

Target resolve(const void* address, uint32_t bytes, const char* operation, const Location& where) {
  const MulticastRange& range = engine().memory.find_multicast(address, bytes, operation, where);
  const int device = this_thread().cta->grid->launch.device;
  if (std::ranges::none_of(range.members, [&](const Allocation* member) { return member->device == device; }))
    fail("multicast", std::string(operation) + " of " + range.name + ", to which this device does not belong", where);
  check_alignment(reinterpret_cast<uint64_t>(address), bytes, operation, where);
  return {range, size_t(static_cast<const uint8_t*>(address) - range.begin)};
}

void check_member(Allocation& member, size_t offset, uint32_t bytes, bool write, uint8_t strength,
                  const char* operation, const Location& where) {
  Thread& self = this_thread();
  Access access = engine().thread_access(self, where, operation);
  access.write = write;
  access.strength = strength;
  access.check_initialised = !write;
  access.multicast = true;
  engine().check_global(member, member.begin + offset, bytes, access);
}

std::vector<Allocation*> in_any_order(std::vector<Allocation*> members) {
  for (size_t i = members.size(); i > 1; --i) std::swap(members[i - 1], members[engine().random.below(i)]);
  return members;
}

template <float (*FROM)(uint32_t), uint32_t (*TO)(float)>
struct Half {
  using Bits = uint16_t;
  static float load(Bits bits) { return FROM(bits); }
  static Bits store(float v) { return Bits(TO(v)); }
};
struct Single {
  using Bits = float;
  static float load(Bits v) { return v; }
  static Bits store(float v) { return v; }
};

float reduce(Reduction reduction, float a, float b) {
  if (reduction == Reduction::kAdd) return ptx::add_rn(a, b);
  // A NaN gives way to a number, and -0 is less than +0.
  if (a != a || b != b) return ptx::detail::device_nan(a != a ? b : a);
  const bool a_less = a < b || (a == b && std::signbit(a));
  return a_less == (reduction == Reduction::kMin) ? a : b;
}

// Accumulates in fp32 over the members in the order given, rounds once.
template <class Element>
void reduce_members(const std::vector<Allocation*>& members, size_t offset, uint32_t bytes, Reduction reduction,
                    uint8_t* out) {
  using Bits = typename Element::Bits;
  for (uint32_t at = 0; at < bytes; at += sizeof(Bits)) {
    const auto value = [&](const Allocation* member) {
      Bits bits;
      std::memcpy(&bits, member->begin + offset + at, sizeof bits);
      return Element::load(bits);
    };
    float sum = value(members[0]);
    for (size_t i = 1; i < members.size(); ++i) sum = reduce(reduction, sum, value(members[i]));
    const Bits result = Element::store(sum);
    std::memcpy(out + at, &result, sizeof result);
  }
}

void write_members(void* address, const void* value, uint32_t bytes, DeliveryOptions options, Order order, Scope scope,
                   const Location& where) {
  const bool add = options.combine != Combine::kStore;
  const char* operation = add ? "multimem.red" : "multimem.st";
  Thread& self = this_thread();
  maybe_yield(where);
  const Target target = resolve(address, bytes, operation, where);
  options.strong = order != Order::kWeak;
  options.multicast = true;
  options.time = self.time();
  const std::vector<Allocation*> members = in_any_order(target.range.members);
  for (Allocation* member : members) {
    const uint8_t reach = options.strong ? strength(scope) : kWeak;
    if (add) check_member(*member, target.offset, bytes, false, reach, operation, where);
    check_member(*member, target.offset, bytes, true, reach, operation, where);
  }
  // NOTE: 16 bytes are data: they publish nothing unless they release.
  std::shared_ptr<const Release> release;
  if (options.strong && (bytes <= 8 || is_release(order))) release = make_release(self, order, scope);
  for (Allocation* member : members) deliver(member->begin + target.offset, value, bytes, options, release);
}

}  // namespace

void multimem_load(const void* address, void* value, uint32_t bytes, ptx::MultimemType type, Reduction reduction,
                   Order order, const Location& where) {
  using namespace ptx::detail;
  const char* operation = "multimem.ld_reduce";
  maybe_yield(where);
  const Target target = resolve(address, bytes, operation, where);
  const std::vector<Allocation*> members = in_any_order(target.range.members);
  const uint8_t reach = order == Order::kWeak ? kWeak : strength(Scope::kSys);
  if (order != Order::kWeak)
    for (const Allocation* member : members) look(this_thread(), member->begin + target.offset);
  for (Allocation* member : members) check_member(*member, target.offset, bytes, false, reach, operation, where);
  auto* const out = static_cast<uint8_t*>(value);
  if (type == ptx::MultimemType::kF32)
    reduce_members<Single>(members, target.offset, bytes, reduction, out);
  else if (type == ptx::MultimemType::kBF16)
    reduce_members<Half<from_bf16, to_bf16>>(members, target.offset, bytes, reduction, out);
  else
    reduce_members<Half<from_f16, to_f16>>(members, target.offset, bytes, reduction, out);
  if (order == Order::kWeak) return;
  for (const Allocation* member : members) observe(member->begin + target.offset, order, Scope::kSys, where);
}

// 16 bytes are written as four words, none of which waits for another.
void multimem_store(void* address, const void* value, uint32_t bytes, Order order, const Location& where) {
  write_members(address, value, bytes, {.unit = bytes == 16 ? 4 : bytes}, order, Scope::kSys, where);
}

void multimem_add(void* address, const void* value, uint32_t bytes, Order order, Scope scope, const Location& where) {
  const Combine combine = bytes == 4 ? Combine::kAddU32 : Combine::kAddU64;
  write_members(address, value, bytes, {.unit = bytes, .combine = combine}, order, scope, where);
}

void multimem_add(void* address, const void* value, uint32_t bytes, ptx::MultimemType type, Order order,
                  const Location& where) {
  const Combine combine = type == ptx::MultimemType::kF32    ? Combine::kAddF32
                          : type == ptx::MultimemType::kBF16 ? Combine::kAddBF16
                                                             : Combine::kAddF16;
  write_members(address, value, bytes, {.unit = 4, .combine = combine}, order, Scope::kSys, where);
}

}  // namespace longcat_ops::emu
