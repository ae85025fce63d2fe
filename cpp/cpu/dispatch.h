// Turns one kernel body into a copy per number format and instruction set.
#pragma once

#include "check/tensor_desc.h"
#include "cpu/float_formats.h"

// always_inline bodies take the target of the function they are inlined into.
#if defined(__x86_64__)
#define LC_TARGET_AVX2 __attribute__((target("avx2,f16c,fma")))
#define LC_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma,prefer-vector-width=512")))
#else
#define LC_TARGET_AVX2
#define LC_TARGET_AVX512
#endif

namespace longcat_ops::cpu {

// visit(BFloat16{}), visit(Float16{}) or visit(Float32{}).
template <class Visitor>
void visit_format(DType dtype, Visitor visit) {
  if (dtype == DType::kBFloat16) return visit(BFloat16{});
  if (dtype == DType::kFloat16) return visit(Float16{});
  return visit(Float32{});
}

}  // namespace longcat_ops::cpu
