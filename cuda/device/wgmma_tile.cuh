// Tiles of operands in shared memory and their products, for every kernel that multiplies.
#pragma once

#include "ptx/ptx.cuh"

namespace longcat_ops::device {

// Descriptor of a tile of 1024-byte atoms. To move it along the tile or to another stage, add 16-byte units.
// NOTE: making a descriptor for each product would put a chain of dependent instructions between two of them.
LC_DEVICE uint64_t descriptor_of(uint32_t tile) { return ptx::make_descriptor(tile, 16, 1024, ptx::Swizzle::k128B); }

// The same descriptor `units` of 16 bytes further. The address is in the low word and does not leave it.
LC_DEVICE uint64_t moved(uint64_t descriptor, uint32_t units) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + units;
  return (descriptor & 0xffffffff00000000u) | low;
}

// Waits for a group of bf16 products, with up to kPending newer ones in flight, and adds it to the sums.
template <int kPending, uint32_t kCount>
LC_DEVICE void add_products(float (&acc)[kCount], float (&sum)[kCount]) {
  ptx::wgmma_wait_for<kPending>(acc);
  LC_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) sum[i] = ptx::add_rn(sum[i], acc[i]);
}

}  // namespace longcat_ops::device
