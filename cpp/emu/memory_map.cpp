#include "emu/memory_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace longcat_ops::emu {
namespace {

constexpr int kPoison = 0xff;  // a NaN in e4m3, bf16, fp16 and fp32

}  // namespace

Allocation::~Allocation() {
  if (owned) std::free(begin - MemoryMap::kRedZone);
}

MulticastRange::MulticastRange(size_t bytes_, const char* name_, std::vector<Allocation*> members_)
    : bytes(bytes_), name(name_), members(std::move(members_)) {
  constexpr size_t kPage = 65536;  // at least the host's page
  mapped_bytes_ = (bytes + 2 * kPage + kPage - 1) / kPage * kPage;
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  begin = static_cast<uint8_t*>(mapping_) + kPage;
}

MulticastRange::~MulticastRange() { munmap(mapping_, mapped_bytes_); }

void* MemoryMap::allocate(size_t bytes, int device, const char* name, bool initialised) {
  const size_t padded = (bytes + 2 * kRedZone + 255) / 256 * 256;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(256, padded));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, kPoison, padded);
  uint8_t* begin = memory + kRedZone;
  allocations_[begin] = std::make_unique<Allocation>(begin, bytes, device, name, true, initialised);
  return begin;
}

void MemoryMap::add(void* memory, size_t bytes, int device, const char* name, bool initialised, uint8_t filler) {
  auto* begin = static_cast<uint8_t*>(memory);
  if (bytes == 0) return;
  auto next = allocations_.upper_bound(begin);
  if (next != allocations_.begin()) {
    auto previous = std::prev(next);
    if (previous->second->contains(begin, bytes)) return;
    if (previous->second->begin + previous->second->bytes > begin) next = previous;
  }
  last_ = nullptr;
  // What overlaps becomes one allocation, in which earlier contents stay.
  struct Earlier {
    uint8_t* begin;
    std::vector<uint8_t> contents;
    bool initialised;
  };
  std::vector<Earlier> earlier;
  uint8_t *first = begin, *end = begin + bytes;
  while (next != allocations_.end() && next->first < begin + bytes) {
    const Allocation& old = *next->second;
    earlier.push_back({old.begin, {old.begin, old.begin + old.bytes}, old.initialised});
    first = std::min(first, old.begin);
    end = std::max(end, old.begin + old.bytes);
    next = erase(next);
  }
  if (!initialised) std::memset(begin, filler, bytes);
  auto& made = allocations_[first] =
      std::make_unique<Allocation>(first, static_cast<size_t>(end - first), device, name, false, initialised);
  for (const Earlier& old : earlier) {
    std::copy(old.contents.begin(), old.contents.end(), old.begin);
    if (old.initialised) made->shadow.set_initialised(static_cast<size_t>(old.begin - first), old.contents.size());
  }
}

void MemoryMap::remove(void* memory) {
  last_ = nullptr;
  const auto entry = allocations_.find(static_cast<uint8_t*>(memory));
  if (entry != allocations_.end()) erase(entry);
}

MemoryMap::Allocations::iterator MemoryMap::erase(Allocations::iterator entry) {
  std::erase_if(multicast_, [&](const auto& range) {
    return std::ranges::find(range.second->members, entry->second.get()) != range.second->members.end();
  });
  return allocations_.erase(entry);
}

void* MemoryMap::add_multicast(const std::vector<void*>& members, const char* name) {
  auto require = [&](bool condition, const char* text) {
    if (!condition) throw Error("multicast", std::string(name) + ": " + text);
  };
  require(members.size() >= 2, "a multicast range needs at least two devices");
  std::vector<Allocation*> bound;
  for (const void* member : members) {
    const auto entry = allocations_.find(static_cast<const uint8_t*>(member));
    require(entry != allocations_.end(), "a member is not the start of an allocation");
    Allocation* const allocation = entry->second.get();
    for (const Allocation* other : bound) require(other->device != allocation->device, "two members on one device");
    bound.push_back(allocation);
    require(allocation->bytes == bound[0]->bytes, "the members have different sizes");
  }
  auto range = std::make_unique<MulticastRange>(bound[0]->bytes, name, std::move(bound));
  uint8_t* const begin = range->begin;
  multicast_[begin] = std::move(range);
  return begin;
}

MulticastRange* MemoryMap::multicast_at(const uint8_t* address) {
  const auto next = multicast_.upper_bound(address + kRedZone);
  if (next == multicast_.begin()) return nullptr;
  MulticastRange& range = *std::prev(next)->second;
  return address < range.begin + range.bytes + kRedZone ? &range : nullptr;
}

MulticastRange& MemoryMap::find_multicast(const void* address, size_t bytes, const char* operation,
                                          const Location& where) {
  auto* begin = static_cast<const uint8_t*>(address);
  MulticastRange* const range = multicast_at(begin);
  if (range == nullptr) fail("multicast", std::string(operation) + " of an address that is not a multicast one", where);
  if (begin < range->begin || begin + bytes > range->begin + range->bytes)
    fail("out-of-bounds",
         std::string(operation) + " of " + std::to_string(bytes) + " B at " + range->name + "+" +
             std::to_string(begin - range->begin) + ", a multicast range of " + std::to_string(range->bytes) + " B",
         where);
  return *range;
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
  if (const MulticastRange* range = multicast_at(begin))
    fail("multicast", access + " at " + range->name + ", a multicast address: only multimem operations may use it",
         where);
  fail("out-of-bounds", access + ": the address belongs to no device memory", where);
}

}  // namespace longcat_ops::emu
