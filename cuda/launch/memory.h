// The memory that a kernel may touch. A launcher lists its arguments; only the emulator uses the list, and reports an
// access to anything else.
//
// reads: the kernel only reads it.
// settled: the same, from the kernel's start on, before the kernel ahead ends: no kernel that still runs then writes
// it.
// writes: the kernel writes all of it; its old contents are lost.
// updates: the kernel reads and writes it, or writes part of it; its old contents stay.
// NOTE: the emulator treats `reads` and `updates` alike: it does not report a store to an input.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef LC_EMULATE
#include <vector>
#endif

#include "longcat_ops.h"

namespace longcat_ops {

// Fills memory whose contents are lost: 0xff bytes are NaN in every float format. If a kernel stores -1 on purpose,
// kNoIndex reveals a missing store.
enum class Filler : uint8_t { kNan = 0xff, kNoIndex = 0x7f };

class Memory {
 public:
#ifdef LC_EMULATE
  struct Region {
    void* data;
    size_t bytes;
    const char* name;
    bool written, settled;
    Filler filler;
  };

  Memory& reads(const char* name, const lc_matrix* matrix) { return add(name, matrix, {}); }
  Memory& writes(const char* name, const lc_matrix* matrix) { return add(name, matrix, {true}); }
  Memory& updates(const char* name, const lc_matrix* matrix) { return add(name, matrix, {}); }

  Memory& reads(const char* name, const lc_stack* stack) { return add(name, stack, {}); }
  Memory& settled(const char* name, const lc_stack* stack) { return add(name, stack, {false, true}); }
  Memory& updates(const char* name, const lc_stack* stack) { return add(name, stack, {}); }

  // Contiguous arrays; null is no argument.
  template <class T>
  Memory& reads(const char* name, const T* data, int64_t count) {
    return add(name, const_cast<T*>(data), bytes_of<T>(count), {});
  }
  template <class T>
  Memory& settled(const char* name, const T* data, int64_t count) {
    return add(name, const_cast<T*>(data), bytes_of<T>(count), {false, true});
  }
  template <class T>
  Memory& writes(const char* name, T* data, int64_t count, Filler filler = Filler::kNan) {
    return add(name, data, bytes_of<T>(count), {true, false, filler});
  }
  template <class T>
  Memory& updates(const char* name, T* data, int64_t count) {
    return add(name, data, bytes_of<T>(count), {});
  }
  const std::vector<Region>& regions() const { return regions_; }

 private:
  struct Access {
    bool written = false, settled = false;
    Filler filler = Filler::kNan;
  };

  template <class T>
  static size_t bytes_of(int64_t count) {
    return static_cast<size_t>(count) * sizeof(T);
  }

  Memory& add(const char* name, const lc_matrix* matrix, Access access);
  Memory& add(const char* name, const lc_stack* stack, Access access);
  Memory& add(const char* name, void* data, size_t bytes, Access access);

  std::vector<Region> regions_;
#else
  template <class... Argument>
  Memory& reads(const char*, const Argument&...) {
    return *this;
  }
  template <class... Argument>
  Memory& settled(const char*, const Argument&...) {
    return *this;
  }
  template <class... Argument>
  Memory& writes(const char*, const Argument&...) {
    return *this;
  }
  template <class... Argument>
  Memory& updates(const char*, const Argument&...) {
    return *this;
  }
#endif
};

}  // namespace longcat_ops
