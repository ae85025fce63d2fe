#include "emu/memory_map.h"

#include <cstdlib>
#include <cstring>

namespace longcat_ops::emu {
namespace {

constexpr int kPoison = 0xff;  // a NaN in e4m3, bf16, fp16 and fp32

}  // namespace

Allocation::~Allocation() {
  if (owned) std::free(begin - MemoryMap::kRedZone);
}

void* MemoryMap::allocate(size_t bytes, int device, const char* name, bool initialised) {
  const size_t padded = (bytes + 2 * kRedZone + 255) / 256 * 256;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(256, padded));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, kPoison, padded);
  uint8_t* begin = memory + kRedZone;
  allocations_[begin] = std::make_unique<Allocation>(begin, bytes, device, name, true, initialised);
  return begin;
}

void MemoryMap::add(void* memory, size_t bytes, int device, const char* name, bool initialised) {
  auto* begin = static_cast<uint8_t*>(memory);
  if (bytes == 0) return;
  auto next = allocations_.upper_bound(begin);
  if (next != allocations_.begin()) {
    auto previous = std::prev(next);
    if (previous->second->contains(begin, bytes)) return;
    if (previous->second->begin + previous->second->bytes > begin) next = previous;
  }
  last_ = nullptr;
  while (next != allocations_.end() && next->first < begin + bytes) next = allocations_.erase(next);
  if (!initialised) std::memset(begin, kPoison, bytes);
  allocations_[begin] = std::make_unique<Allocation>(begin, bytes, device, name, false, initialised);
}

void MemoryMap::remove(void* memory) {
  last_ = nullptr;
  allocations_.erase(static_cast<uint8_t*>(memory));
}

Allocation& MemoryMap::find(const void* address, size_t bytes, const char* operation, const Location& where) {
  auto* begin = static_cast<const uint8_t*>(address);
  if (last_ != nullptr && last_->contains(begin, bytes)) return *last_;
  const std::string access = std::string(operation) + " of " + std::to_string(bytes) + " B";
  auto next = allocations_.upper_bound(begin);
  if (next != allocations_.begin()) {
    Allocation& allocation = *std::prev(next)->second;
    if (allocation.contains(begin, bytes)) return *(last_ = &allocation);
    const size_t offset = begin - allocation.begin;
    if (offset < allocation.bytes + kRedZone)
      fail("out-of-bounds",
           access + " at " + allocation.name + "+" + std::to_string(offset) + ", which has " +
               std::to_string(allocation.bytes) + " B",
           where);
  }
  if (next != allocations_.end() && begin + kRedZone >= next->first)
    fail("out-of-bounds",
         access + " at " + next->second->name + "-" + std::to_string(next->first - begin) + ", before its start",
         where);
  fail("out-of-bounds", access + ": the address belongs to no device memory", where);
}

}  // namespace longcat_ops::emu
