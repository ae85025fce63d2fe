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
    bool written;  // by the kernel: what it held before is lost
  };

  Memory& reads(const char* name, const lc_matrix* matrix) { return add(name, matrix, false); }
  Memory& writes(const char* name, const lc_matrix* matrix) { return add(name, matrix, true); }
  const std::vector<Region>& regions() const { return regions_; }

 private:
  Memory& add(const char* name, const lc_matrix* matrix, bool written);

  std::vector<Region> regions_;
#else
  Memory& reads(const char*, const lc_matrix*) { return *this; }
  Memory& writes(const char*, const lc_matrix*) { return *this; }
#endif
};

}  // namespace longcat_ops
