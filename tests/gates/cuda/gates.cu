// Kernels with mistakes that the gates of tools/check_kernels.py must find, and a GEMM without. Compiled, never run.
#include "../../emu/gemm_kernel.h"

namespace longcat_ops {

// Holds 64 floats in 32 registers.
LC_KERNEL LC_LAUNCH_BOUNDS(1024, 2) spilling_kernel(const float* in, float* out) {
  float held[64];
  LC_UNROLL
  for (int i = 0; i < 64; ++i) held[i] = ptx::load_global(in + 1024 * i + ptx::thread_index());
  ptx::sync_threads();
  LC_UNROLL
  for (int i = 0; i < 64; ++i) ptx::store_global(out + 1024 * (63 - i) + ptx::thread_index(), held[i] * held[i ^ 21]);
}

// Without launch bounds ptxas does not know how many registers can be redistributed, and ignores the instruction.
LC_KERNEL unbounded_kernel(uint32_t* out) {
  ptx::setmaxnreg_dec<40>();
  ptx::store_global(out, ptx::lane_index());
}

}  // namespace longcat_ops

void keep_gemms(const void** out) {
  using test::Bug;
  *out++ = reinterpret_cast<const void*>(&test::gemm_kernel<16, Bug::kNone>);
  *out++ = reinterpret_cast<const void*>(&test::gemm_kernel<16, Bug::kNoWgmmaWait>);
  *out++ = reinterpret_cast<const void*>(&test::gemm_kernel<16, Bug::kNoWgmmaFence>);
}
