#include "emu/delivery.h"

#include <algorithm>
#include <cstring>

#include "emu/ptx/convert.h"

namespace longcat_ops::emu {
namespace {

constexpr uint32_t kLargest = 16;  // bytes of a write

template <class T, class Add>
void add_to(uint8_t* target, const uint8_t* data, uint32_t bytes, Add add) {
  for (uint32_t at = 0; at < bytes; at += sizeof(T)) {
    T old, value;
    std::memcpy(&old, target + at, sizeof(T));
    std::memcpy(&value, data + at, sizeof(T));
    old = add(old, value);
    std::memcpy(target + at, &old, sizeof(T));
  }
}

// red.f32 flushes subnormal numbers, as its machine instruction does (FTZ).
float flushed(float v) { return std::abs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }

void put(Combine combine, uint8_t* target, const uint8_t* data, uint32_t bytes) {
  using namespace ptx::detail;
  switch (combine) {
    case Combine::kStore: std::memcpy(target, data, bytes); return;
    case Combine::kAddU32: return add_to<uint32_t>(target, data, bytes, [](uint32_t a, uint32_t b) { return a + b; });
    case Combine::kAddU64: return add_to<uint64_t>(target, data, bytes, [](uint64_t a, uint64_t b) { return a + b; });
    case Combine::kAddF32:
      return add_to<float>(target, data, bytes,
                           [](float a, float b) { return flushed(ptx::add_rn(flushed(a), flushed(b))); });
    case Combine::kAddBF16:
      return add_to<uint16_t>(target, data, bytes,
                              [](uint16_t a, uint16_t b) { return uint16_t(to_bf16(from_bf16(a) + from_bf16(b))); });
    case Combine::kAddF16:
      return add_to<uint16_t>(target, data, bytes,
                              [](uint16_t a, uint16_t b) { return uint16_t(to_f16(from_f16(a) + from_f16(b))); });
  }
}

bool happened_before(const Delivery& write, const Access& access) {
  return access.ordered_after(write.component, write.time);
}

}  // namespace

Delivery::~Delivery() {
  if (on_the_way != 0) engine().deliveries.erase(place);
}

void Delivery::arrive(uint32_t unit_index) {
  uint8_t* const to = target + unit_index * unit;
  put(combine, to, data.data() + unit_index * unit, unit);
  if (strong) publish(to, release, combine != Combine::kStore);
  on_the_way &= ~(1u << unit_index);
  if (on_the_way == 0) {
    engine().deliveries.erase(place);
    --grid->writes_in_flight;
  }
  engine().note_event(to, unit);
}

void Delivery::arrive_whole() {
  for (uint32_t i = 0; i < bytes / unit; ++i)
    if (on_the_way >> i & 1) arrive(i);
}

bool Delivery::step() {
  if (on_the_way == 0) return true;  // something needed it earlier
  Engine& machine = engine();
  if (torn) {
    uint32_t i = machine.random.below(bytes / unit);
    while ((on_the_way >> i & 1) == 0) i = (i + 1) % (bytes / unit);
    arrive(i);
  } else {
    arrive_whole();
  }
  // Threads may see it before others arrive, even where asynchronous work goes first.
  if (machine.random.one_in(2)) machine.threads_first = machine.random.below(machine.runnable.size() + 1);
  return on_the_way == 0;
}

void deliver(void* target, const void* data, uint32_t bytes, const DeliveryOptions& options,
             const std::shared_ptr<const Release>& release) {
  Thread& self = this_thread();
  Engine& machine = engine();
  auto write = std::make_shared<Delivery>();
  write->target = static_cast<uint8_t*>(target);
  std::memcpy(write->data.data(), data, bytes);
  write->bytes = bytes;
  write->unit = options.unit;
  write->combine = options.combine;
  write->multicast = options.multicast;
  write->strong = options.strong;
  write->torn = machine.random.one_in(2);
  write->on_the_way = (1u << bytes / options.unit) - 1;
  write->component = self.component;
  write->time = options.time;
  write->grid = self.cta->grid;
  write->release = release;
  write->place = machine.deliveries.emplace(write->target, write.get());
  ++write->grid->writes_in_flight;
  machine.enqueue(std::move(write));
}

void perform_writes(const Thread& self) {
  Engine& machine = engine();
  if (machine.deliveries.empty()) return;
  const Access access = machine.thread_access(self, Location::current(), "fence");
  for (auto entry = machine.deliveries.begin(); entry != machine.deliveries.end();) {
    Delivery& write = *entry++->second;
    if (machine.settings.detectors ? happened_before(write, access) : write.grid == self.cta->grid)
      write.arrive_whole();
  }
}

void arrive_before(const uint8_t* address, size_t bytes, const Access& access) {
  Engine& machine = engine();
  const bool detectors = machine.settings.detectors;
  for (auto entry = machine.deliveries.lower_bound(address - (kLargest - 1));
       entry != machine.deliveries.end() && entry->first < address + bytes;) {
    Delivery& write = *entry++->second;
    if (write.target + write.bytes <= address) continue;
    const bool before = detectors ? happened_before(write, access) : write.grid == this_thread().cta->grid;
    const bool visible =
        write.multicast == access.multicast ||
        (detectors && access.alias_visible != nullptr && (*access.alias_visible)[write.component] >= write.time);
    if (before && visible) write.arrive_whole();
  }
}

}  // namespace longcat_ops::emu
