// Device memory: which addresses exist, and their shadows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emu/error.h"
#include "emu/shadow.h"

namespace longcat_ops::emu {

struct Allocation {
  uint8_t* begin;
  size_t bytes;
  int device;
  std::string name;
  bool owned, initialised;  // initialised: when it was made
  bool peer_accessible = false;
  ShadowMemory shadow;

  Allocation(uint8_t* begin_, size_t bytes_, int device_, const char* name_, bool owned_, bool initialised_)
      : begin(begin_),
        bytes(bytes_),
        device(device_),
        name(name_),
        owned(owned_),
        initialised(initialised_),
        shadow(bytes_, initialised_) {}
  ~Allocation();
  bool contains(const uint8_t* address, size_t count) const {
    return address >= begin && address + count <= begin + bytes;
  }
};

// An address range that stands for one allocation of each member device. Nothing is mapped there.
struct MulticastRange {
  MulticastRange(size_t bytes_, const char* name_, std::vector<Allocation*> members_);
  ~MulticastRange();

  uint8_t* begin;
  size_t bytes;
  std::string name;
  std::vector<Allocation*> members;

 private:
  void* mapping_;
  size_t mapped_bytes_;
};

class MemoryMap {
 public:
  static constexpr size_t kRedZone = 256;

  void* allocate(size_t bytes, int device, const char* name, bool initialised);
  void add(void* memory, size_t bytes, int device, const char* name, bool initialised, uint8_t filler);
  void remove(void* memory);
  void* add_multicast(const std::vector<void*>& members, const char* name);
  bool has_multicast() const { return !multicast_.empty(); }
  MulticastRange& find_multicast(const void* address, size_t bytes, const char* operation, const Location& where);
  // Throws when the range is not within one allocation.
  Allocation& find(const void* address, size_t bytes, const char* operation, const Location& where);

 private:
  using Allocations = std::map<const uint8_t*, std::unique_ptr<Allocation>>;

  Allocations::iterator erase(Allocations::iterator entry);
  MulticastRange* multicast_at(const uint8_t* address);  // red zones included; or null

  Allocations allocations_;
  std::map<const uint8_t*, std::unique_ptr<MulticastRange>> multicast_;
  Allocation* last_ = nullptr;  // most accesses hit the same one again
};

}  // namespace longcat_ops::emu
