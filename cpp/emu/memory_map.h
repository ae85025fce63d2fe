// Device memory: which addresses exist, and their shadows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "emu/error.h"
#include "emu/shadow.h"

namespace longcat_ops::emu {

struct Allocation {
  uint8_t* begin;
  size_t bytes;
  int device;
  std::string name;
  bool owned;
  ShadowMemory shadow;

  Allocation(uint8_t* begin_, size_t bytes_, int device_, const char* name_, bool owned_, bool initialised)
      : begin(begin_), bytes(bytes_), device(device_), name(name_), owned(owned_), shadow(bytes_, initialised) {}
  ~Allocation();
  bool contains(const uint8_t* address, size_t count) const {
    return address >= begin && address + count <= begin + bytes;
  }
};

class MemoryMap {
 public:
  static constexpr size_t kRedZone = 256;

  void* allocate(size_t bytes, int device, const char* name, bool initialised);
  void add(void* memory, size_t bytes, int device, const char* name, bool initialised);
  void remove(void* memory);
  // Throws when the range is not within one allocation.
  Allocation& find(const void* address, size_t bytes, const char* operation, const Location& where);

 private:
  std::map<const uint8_t*, std::unique_ptr<Allocation>> allocations_;
  Allocation* last_ = nullptr;  // most accesses hit the same one again
};

}  // namespace longcat_ops::emu
