// Calls every wrapper of cuda/ptx that no other file here calls. Compiled, never run.
#include "device/math.cuh"
#include "ptx/ptx.cuh"

namespace longcat_ops {

LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) thread_kernel(uint32_t* out, uint64_t* times) {
  uint32_t x = ptx::thread_index() + ptx::block_index() * ptx::grid_size();
  x += ptx::lane_index() + ptx::warp_index() + ptx::dynamic_smem_base() + ptx::sm_index();
  ptx::grid_dependency_wait();
  const uint64_t start = ptx::globaltimer_ns();
  x = ptx::shuffle(x, 3) + ptx::shuffle_xor(x, 16) + ptx::shuffle_up(x, 1);
  const float f = ptx::shuffle_xor(static_cast<float>(x), 1);
  x += ptx::ballot(x > 7) + ptx::any(x == 9) + 2 * ptx::all(x < 100) + static_cast<uint32_t>(f);
  x += ptx::redux_max(x) + ptx::redux_min(x * 3) + ptx::popcount(ptx::match_any(x));
  if (ptx::elect_one()) x += 5;
  ptx::warp_sync();
  ptx::sync_threads();
  if (ptx::warp_index() < 2) {
    ptx::named_barrier_arrive(1, 128);
  } else {
    ptx::named_barrier_sync(1, 128);
  }
  ptx::grid_dependency_launch();
  ptx::store_global(out + ptx::thread_index(), x);
  ptx::store_global(times + ptx::thread_index(), ptx::globaltimer_ns() - start);
}

LC_KERNEL LC_LAUNCH_BOUNDS(256, 1) registers_kernel(uint32_t* out) {
  if (ptx::warp_index() < 4) {
    ptx::setmaxnreg_dec<40>();
  } else {
    ptx::setmaxnreg_inc<232>();
    ptx::store_global(out, ptx::lane_index());
  }
}

template <class T>
LC_DEVICE void copy(uint32_t smem, const T* in, T* out) {
  ptx::store_shared(smem, ptx::load_global(in));
  ptx::sync_threads();
  ptx::store_global(out, ptx::load_shared<T>(smem + 16));
  ptx::store_global(out + 1, ptx::load_global_nc(in + 1));
}

template <class T>
LC_DEVICE void strong(T* p) {
  const T x = ptx::load_relaxed_gpu(p) + ptx::load_relaxed_sys(p + 1) + ptx::load_acquire_gpu(p + 2);
  ptx::store_relaxed_gpu(p + 3, ptx::load_acquire_sys(p + 4));
  ptx::store_relaxed_sys(p + 5, x);
  ptx::store_release_gpu(p + 6, x);
  ptx::store_release_sys(p + 7, x);
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) memory_kernel(void* in, void* out, uint32_t* flags) {
  const uint32_t smem = ptx::dynamic_smem_base() + 32 * ptx::lane_index();
  copy(smem, static_cast<const uint8_t*>(in), static_cast<uint8_t*>(out));
  copy(smem, static_cast<const uint16_t*>(in), static_cast<uint16_t*>(out));
  copy(smem, static_cast<const float*>(in), static_cast<float*>(out));
  copy(smem, static_cast<const ptx::Vec8*>(in), static_cast<ptx::Vec8*>(out));
  copy(smem, static_cast<const ptx::Vec16*>(in), static_cast<ptx::Vec16*>(out));
  ptx::prefetch_global_l2(in);
  strong(static_cast<uint32_t*>(out));
  strong(static_cast<int32_t*>(out));
  strong(static_cast<uint64_t*>(out));
  ptx::red_add_relaxed_gpu(flags, 1);
  ptx::red_add_release_gpu(flags + 1, 1);
  ptx::red_add_relaxed_sys(flags + 2, 1);
  ptx::red_add_release_sys(flags + 3, 1);
  ptx::store_global(flags + 4, ptx::atomic_add_acq_rel_gpu(flags + 5, 1));
  ptx::fence_acq_rel_cta();
  ptx::fence_acq_rel_cluster();
  ptx::fence_acq_rel_gpu();
  ptx::fence_acq_rel_sys();
  ptx::fence_proxy_async_shared();
  ptx::fence_proxy_async_global();
  ptx::fence_proxy_async();
  while (ptx::load_acquire_gpu(flags + 6) < 5) ptx::spin_pause();
}

LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) mbarrier_kernel(uint32_t* out) {
  const uint32_t bar = ptx::dynamic_smem_base();
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_init(bar, 131);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_expect_tx(bar, 16);
    ptx::mbarrier_arrive_expect_tx(bar, 32);
    ptx::mbarrier_arrive_n(bar, 2);
  }
  ptx::mbarrier_arrive(bar);
  ptx::store_global(out, static_cast<uint32_t>(ptx::mbarrier_try_wait(bar, 1)));
  ptx::store_global(out + 1, static_cast<uint32_t>(ptx::mbarrier_test_wait(bar, 1)));
  ptx::mbarrier_wait(bar, 0);
}

template <int R>
LC_DEVICE void tma_rank(const ptx::TensorMap* map, uint32_t smem, uint32_t bar, int32_t c) {
  int32_t coord[R];
  LC_UNROLL
  for (int i = 0; i < R; ++i) coord[i] = c + i;
  ptx::tma_load(smem, map, bar, coord);
  ptx::tma_load(smem, map, bar, coord, ptx::create_policy_evict_first());
  ptx::tma_load(smem, map, bar, coord, ptx::create_policy_evict_last());
  ptx::tma_store(map, smem, coord);
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1)
    tma_kernel(LC_GRID_CONSTANT ptx::TensorMap map, const void* in, float* out, int32_t c) {
  const uint32_t bar = ptx::dynamic_smem_base();
  const uint32_t smem = bar + 1024;
  if (!ptx::elect_one()) return;
  ptx::prefetch_tensormap(&map);
  tma_rank<1>(&map, smem, bar, c);
  tma_rank<2>(&map, smem, bar, c);
  tma_rank<3>(&map, smem, bar, c);
  tma_rank<4>(&map, smem, bar, c);
  tma_rank<5>(&map, smem, bar, c);
  ptx::bulk_load(smem, in, 256, bar);
  ptx::bulk_store(out, smem, 256);
  ptx::bulk_commit();
  ptx::bulk_wait_read<1>();
  ptx::bulk_wait<0>();
}

template <int X, bool TRANS>
LC_DEVICE void matrix(uint32_t smem) {
  uint32_t r[X];
  ptx::load_matrix<X, TRANS>(r, smem);
  ptx::store_matrix<X, TRANS>(smem + 1024, r);
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) matrix_kernel() {
  const uint32_t smem = ptx::dynamic_smem_base() + 16 * ptx::lane_index();
  matrix<1, false>(smem);
  matrix<1, true>(smem);
  matrix<2, false>(smem);
  matrix<2, true>(smem);
  matrix<4, false>(smem);
  matrix<4, true>(smem);
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) convert_kernel(const float* in, uint32_t* bits, float* out) {
  float x[4];
  LC_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = ptx::load_global(in + i);
  ptx::store_global(bits, ptx::pack_e4m3x4(x[0], x[1], x[2], x[3]));
  ptx::store_global(bits + 2, ptx::pack_bf16x2(x[0], x[1]));
  ptx::store_global(bits + 3, ptx::pack_f16x2(x[2], x[3]));
  float y[8];
  float (&fp8)[4] = *reinterpret_cast<float (*)[4]>(y);
  ptx::unpack_e4m3x4(ptx::load_global(bits + 4), fp8);
  ptx::unpack_bf16x2(ptx::load_global(bits + 5), y[4], y[5]);
  ptx::unpack_f16x2(ptx::load_global(bits + 6), y[6], y[7]);
  LC_UNROLL
  for (int i = 0; i < 8; ++i) ptx::store_global(out + i, y[i]);
  ptx::store_global(out + 8, ptx::divide_rn(x[0], x[1]));
  ptx::store_global(out + 9, ptx::multiply_rn(x[0], x[1]));
  ptx::store_global(out + 10, ptx::add_rn(x[0], x[1]));
  ptx::store_global(out + 11, ptx::fma_rn(x[0], x[1], x[2]));
  ptx::store_global(out + 12, ptx::reciprocal_sqrt_rn(x[0]));
  ptx::store_global(out + 13, ptx::exp(x[0]));
}

}  // namespace longcat_ops
