// Calls every wrapper of cuda/ptx for multicast memory and for lines of data and flags. Compiled, never run.
#include "ptx/ptx.cuh"

namespace longcat_ops {

using ptx::MultimemType;
using ptx::Vec16;
using ptx::Vec8;

template <MultimemType TYPE, class T>
LC_DEVICE void add(const T* mc, T* out) {
  ptx::store_global(out, ptx::multimem_load_add_weak<TYPE>(mc));
  ptx::store_global(out + 1, ptx::multimem_load_add_relaxed_sys<TYPE>(mc + 1));
  ptx::store_global(out + 2, ptx::multimem_load_add_acquire_sys<TYPE>(mc + 2));
}

template <MultimemType TYPE, class T>
LC_DEVICE void pick(const T* mc, T* out) {
  ptx::store_global(out, ptx::multimem_load_min_relaxed_sys<TYPE>(mc));
  ptx::store_global(out + 1, ptx::multimem_load_max_relaxed_sys<TYPE>(mc));
}

template <class T>
LC_DEVICE void load(const T* mc, T* out) {
  add<MultimemType::kF32>(mc, out);
  add<MultimemType::kBF16>(mc, out + 3);
  add<MultimemType::kF16>(mc, out + 6);
  pick<MultimemType::kBF16>(mc, out + 9);
  pick<MultimemType::kF16>(mc, out + 11);
}

template <class T>
LC_DEVICE void store(T* mc, const T* in) {
  ptx::multimem_store_weak(mc, ptx::load_global(in));
  ptx::multimem_store_relaxed_sys(mc + 1, ptx::load_global(in + 1));
  ptx::multimem_store_release_sys(mc + 2, ptx::load_global(in + 2));
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) multimem_kernel(void* mc, void* own) {
  load(static_cast<const uint32_t*>(mc), static_cast<uint32_t*>(own));
  load(static_cast<const float*>(mc), static_cast<float*>(own));
  load(static_cast<const Vec8*>(mc), static_cast<Vec8*>(own));
  load(static_cast<const Vec16*>(mc), static_cast<Vec16*>(own));
  store(static_cast<uint32_t*>(mc), static_cast<const uint32_t*>(own));
  store(static_cast<Vec8*>(mc), static_cast<const Vec8*>(own));
  store(static_cast<Vec16*>(mc), static_cast<const Vec16*>(own));
}

template <class T>
LC_DEVICE void signal(T* mc) {
  ptx::multimem_red_add_relaxed_gpu(mc, T{1});
  ptx::multimem_red_add_release_gpu(mc + 1, T{2});
  ptx::multimem_red_add_relaxed_sys(mc + 2, T{3});
  ptx::multimem_red_add_release_sys(mc + 3, T{4});
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) multimem_red_kernel(void* mc, const Vec16* in) {
  signal(static_cast<uint32_t*>(mc));
  signal(static_cast<uint64_t*>(mc));
  const Vec16 v = ptx::load_global(in);
  ptx::multimem_red_add_vector_relaxed_sys<MultimemType::kF32>(static_cast<Vec16*>(mc) + 4, v);
  ptx::multimem_red_add_vector_relaxed_sys<MultimemType::kBF16>(static_cast<Vec16*>(mc) + 5, v);
  ptx::multimem_red_add_vector_relaxed_sys<MultimemType::kF16>(static_cast<Vec16*>(mc) + 6, v);
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) line_kernel(Vec8* words, Vec16* lines) {
  const Vec8 word = ptx::load_relaxed_sys(words);
  ptx::store_relaxed_sys(words + 1, word);
  ptx::store_relaxed_gpu(words + 2, ptx::load_relaxed_gpu(words + 3));
  ptx::fence_proxy_alias();
  ptx::store_relaxed_sys_two_words(lines + 1, ptx::load_relaxed_sys_two_words(lines));
}

}  // namespace longcat_ops
