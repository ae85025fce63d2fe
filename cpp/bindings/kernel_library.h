// A kernel library as a table of its C functions, found at run time: liblongcat_kernels.so for CUDA tensors, the
// emulator for CPU tensors. Both have the functions of longcat_ops.h, so the code that calls them is the same.
#pragma once

#include "check/tensor_desc.h"
#include "longcat_ops.h"

namespace longcat_ops::bindings {

#define LC_KERNEL_FUNCTIONS(X)               \
  X(lc_device_supported)                     \
  X(lc_last_error)                           \
  X(lc_per_token_group_quant_fp8)            \
  X(lc_per_block_quant_fp8)                  \
  X(lc_silu_and_mul_quant_fp8)               \
  X(lc_dequant_fp8)                          \
  X(lc_rms_norm_quant_fp8)                   \
  X(lc_fp8_gemm_nt)                          \
  X(lc_m_grouped_fp8_gemm_nt_offset)         \
  X(lc_m_grouped_fp8_gemm_nt_masked)         \
  X(lc_m_grouped_fp8_gemm_nt_contiguous)     \
  X(lc_m_grouped_fp8_swiglu_gemm_nt_offset)  \
  X(lc_bf16_gemm_nt)                         \
  X(lc_m_grouped_bf16_gemm_nt_offset)        \
  X(lc_m_grouped_bf16_gemm_nt_masked)        \
  X(lc_m_grouped_bf16_gemm_nt_contiguous)    \
  X(lc_m_grouped_bf16_swiglu_gemm_nt_offset) \
  X(lc_router_gemm)                          \
  X(lc_moe_route)                            \
  X(lc_moe_place)                            \
  X(lc_moe_plan)                             \
  X(lc_moe_permute)                          \
  X(lc_moe_permute_quant)                    \
  X(lc_moe_combine)                          \
  X(lc_mla_write)                            \
  X(lc_mla_decode)                           \
  X(lc_mla_decode_workspace)                 \
  X(lc_mla_query)                            \
  X(lc_rms_norm)                             \
  X(lc_embed_rows)                           \
  X(lc_add_rows)                             \
  X(lc_silu_and_mul)                         \
  X(lc_pack_rows)                            \
  X(lc_advance_lengths)                      \
  X(lc_verify_greedy)                        \
  X(lc_verify_sampled)                       \
  X(lc_sample_tokens)                        \
  X(lc_filter_drafts)

struct KernelLibrary {
#define LC_MEMBER(name) decltype(&::name) name = nullptr;
  LC_KERNEL_FUNCTIONS(LC_MEMBER)
#undef LC_MEMBER
};

// The library for tensors on this device. Throws if there is none.
const KernelLibrary& kernel_library(DeviceKind device);

// Whether this thread's calls check their arguments: yes, unless lc_check_arguments turned that off.
bool arguments_are_checked();

}  // namespace longcat_ops::bindings
