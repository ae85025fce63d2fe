// The memory a kernel may touch. A launcher lists its arguments; only the emulator listens, and reports any other
// access.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef LC_EMULATE
#include <vector>
#endif

#include "longcat_ops.h"

namespace longcat_ops {

class Memory {
 public:
#ifdef LC_EMULATE
  struct Region {
    void* data;
    size_t bytes;
    const char* name;
    bool written;  // by the kernel: what it held before is lost; a kernel that adds to an argument reads it
    bool settled;  // nothing that still runs when the kernel starts writes it
  };

  Memory& reads(const char* name, const lc_matrix* matrix) { return add(name, matrix, false); }
  Memory& writes(const char* name, const lc_matrix* matrix) { return add(name, matrix, true); }
  // What is contiguous; null is no argument.
  template <class T>
  Memory& reads(const char* name, const T* data, int64_t count) {
    return add(name, const_cast<T*>(data), static_cast<size_t>(count) * sizeof(T), false);
  }
  template <class T>
  Memory& writes(const char* name, T* data, int64_t count) {
    return add(name, data, static_cast<size_t>(count) * sizeof(T), true);
  }
  Memory& reads(const char* name, const lc_stack* stack) { return add(name, stack, false); }
  // Read as soon as the kernel starts, before the kernel ahead of it ends.
  Memory& settled(const char* name, const lc_stack* stack) { return add(name, stack, true); }
  template <class T>
  Memory& settled(const char* name, const T* data, int64_t count) {
    return add(name, const_cast<T*>(data), static_cast<size_t>(count) * sizeof(T), false, true);
  }
  // Written in part; the rest keeps what it holds.
  Memory& updates(const char* name, const lc_stack* stack) { return add(name, stack, false); }
  const std::vector<Region>& regions() const { return regions_; }

 private:
  Memory& add(const char* name, const lc_matrix* matrix, bool written, bool settled = false);
  Memory& add(const char* name, void* data, size_t bytes, bool written, bool settled = false);
  Memory& add(const char* name, const lc_stack* stack, bool settled);

  std::vector<Region> regions_;
#else
  Memory& reads(const char*, const lc_matrix*) { return *this; }
  Memory& writes(const char*, const lc_matrix*) { return *this; }
  template <class T>
  Memory& reads(const char*, const T*, int64_t) {
    return *this;
  }
  template <class T>
  Memory& writes(const char*, T*, int64_t) {
    return *this;
  }
  Memory& reads(const char*, const lc_stack*) { return *this; }
  Memory& settled(const char*, const lc_stack*) { return *this; }
  template <class T>
  Memory& settled(const char*, const T*, int64_t) {
    return *this;
  }
  Memory& updates(const char*, const lc_stack*) { return *this; }
#endif
};

}  // namespace longcat_ops
