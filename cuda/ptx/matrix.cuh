// 8x8 matrices of 16-bit elements between shared memory and the fragments of a warp.
// "memory" clobber: on the store. volatile: on both; like every load, load_matrix must not move over a barrier.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {

// Lane l passes the address of a row of 16 bytes: row l % 8 of matrix l / 8 (lanes from 8 X up are ignored). Then r[i]
// of lane l has element (l / 4, 2 (l % 4)) of matrix i and its right neighbour; with TRANS, of the transpose.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-ldmatrix
template <int X, bool TRANS>
LC_DEVICE void load_matrix(uint32_t (&r)[X], uint32_t row_addr) {
  static_assert(X == 1 || X == 2 || X == 4, "ldmatrix has x1, x2 and x4");
  if constexpr (X == 1 && !TRANS) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row_addr));
  } else if constexpr (X == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row_addr));
  } else if constexpr (X == 2 && !TRANS) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row_addr));
  } else if constexpr (X == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row_addr));
  } else if constexpr (!TRANS) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_addr));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_addr));
  }
}

// The inverse, with the same rows and fragments.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix
template <int X, bool TRANS>
LC_DEVICE void store_matrix(uint32_t row_addr, const uint32_t (&r)[X]) {
  static_assert(X == 1 || X == 2 || X == 4, "stmatrix has x1, x2 and x4");
  if constexpr (X == 1 && !TRANS) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(row_addr), "r"(r[0]) : "memory");
  } else if constexpr (X == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(row_addr), "r"(r[0]) : "memory");
  } else if constexpr (X == 2 && !TRANS) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(row_addr), "r"(r[0]), "r"(r[1])
                 : "memory");
  } else if constexpr (X == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row_addr), "r"(r[0]), "r"(r[1])
                 : "memory");
  } else if constexpr (!TRANS) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_addr), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_addr), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  }
}

}  // namespace longcat_ops::ptx
