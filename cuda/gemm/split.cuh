// Split-K: the blocks of a cluster have the same tiles and a piece of K each. If there are fewer tiles than SMs, more
// SMs load a weight that way. The first block adds the pieces in their order, so for a given number of pieces a result
// depends only on its row and its weight.
#pragma once

#include "device/vector_io.cuh"
#include "gemm/scheduler.cuh"

namespace longcat_ops::moe_gemm {

// Each thread sends its sums through distributed shared memory to the thread of the same index in the first block. So
// warps wait for warps, not for blocks; each has a full and a free barrier for its buffer. The first block waits at the
// full barriers, the others at their own free ones: no thread can wait at another block's.
struct PieceExchange {
  uint32_t buffer;  // this thread's, for the second block's sums: 16-byte vectors 512 bytes apart
  uint32_t stride;  // to the next block's buffer
  uint32_t full, free;
  uint32_t phase = 0;

  LC_DEVICE PieceExchange(const SmemLayout& smem, uint32_t base)
      : buffer(base + smem.pieces + ptx::warp_index() * kPieceBytes + ptx::lane_index() * 16),
        stride(smem.consumer_warps * kPieceBytes),
        full(device::barrier_pair(base + smem.barriers + ring_offset(smem, Ring::kPieces), ptx::warp_index())),
        free(full + device::kEmptyOffset) {}

  // Called by one thread, before fence_mbarrier_init and a barrier of the cluster.
  LC_DEVICE static void init(const MoeGemmParams& p, uint32_t base) {
    device::init_pipeline(base + p.smem.barriers + ring_offset(p.smem, Ring::kPieces), p.smem.consumer_warps, 1, 1);
  }

  // Called by a whole warp. True in the first block, which then has the tile's sums.
  template <uint32_t kCount>
  LC_DEVICE bool add_up(const MoeGemmParams& p, float (&sum)[kCount]) {
    const uint32_t rank = ptx::cluster_rank();
    if (rank > 0) {
      send(rank, sum);
    } else if (p.split > 1) {
      receive(p.split, sum);
    }
    phase ^= 1;
    return rank == 0;
  }

  // Called before the block ends: waits for the first block's arrival at this block's barrier. The first block has
  // waited for arrivals at its own in add_up.
  LC_DEVICE void finish() const {
    if (ptx::cluster_rank() > 0) ptx::mbarrier_wait_relaxed_cluster(free, phase ^ 1);
  }

 private:
  template <uint32_t kCount>
  LC_DEVICE void send(uint32_t rank, const float (&sum)[kCount]) const {
    const uint32_t to = ptx::cluster_address(buffer, 0) + (rank - 1) * stride, bar = ptx::cluster_address(full, 0);
    ptx::mbarrier_wait_cluster(free, phase ^ 1);
    LC_UNROLL
    for (uint32_t i = 0; i < kCount; i += 4)
      ptx::store_async(to + 128 * i,
                       ptx::Vec16{device::float_bits(sum[i]), device::float_bits(sum[i + 1]),
                                  device::float_bits(sum[i + 2]), device::float_bits(sum[i + 3])},
                       bar);
  }

  template <uint32_t kCount>
  LC_DEVICE void receive(uint32_t split, float (&sum)[kCount]) const {
    // NOTE: bytes may arrive before they are expected; the phase still waits for this arrival.
    if (ptx::lane_index() == 0) ptx::mbarrier_arrive_expect_tx(full, (split - 1) * kCount * 4 * 32);
    ptx::mbarrier_wait_cluster(full, phase);
    for (uint32_t piece = 0; piece < split - 1; ++piece) {
      LC_UNROLL
      for (uint32_t i = 0; i < kCount; i += 4) {
        const ptx::Vec16 v = ptx::load_shared<ptx::Vec16>(buffer + piece * stride + 128 * i);
        sum[i] = ptx::add_rn(sum[i], device::bits_float(v.x));
        sum[i + 1] = ptx::add_rn(sum[i + 1], device::bits_float(v.y));
        sum[i + 2] = ptx::add_rn(sum[i + 2], device::bits_float(v.z));
        sum[i + 3] = ptx::add_rn(sum[i + 3], device::bits_float(v.w));
      }
    }
    ptx::warp_sync();  // all lanes have read
    if (const uint32_t rank = ptx::lane_index(); rank > 0 && rank < split) {
      ptx::fence_release_shared_cluster();  // shared memory only: a full release would also wait for global memory
      ptx::mbarrier_arrive_relaxed_cluster(ptx::cluster_address(free, rank));
    }
  }
};

}  // namespace longcat_ops::moe_gemm
