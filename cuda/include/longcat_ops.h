/* C ABI of the kernel library: raw pointers and plain integers, no CUDA, torch or Python type.
 * A function returns LC_OK or an error; lc_last_error() then holds the text, per thread. Launchers are asynchronous on
 * their stream, allocate nothing and never synchronise. liblongcat_emu.so has the same functions over host memory;
 * there they return when the kernel has run, and ignore the stream. */
#ifndef LONGCAT_OPS_H_
#define LONGCAT_OPS_H_

#include <stdint.h>

#define LC_API __attribute__((visibility("default")))
#define LC_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

typedef void* lc_stream_t; /* a cudaStream_t */

typedef enum lc_status {
  LC_OK = 0,
  LC_ERR_NO_DRIVER = 1,          /* no driver, or one too old for the runtime inside */
  LC_ERR_NO_DEVICE = 2,          /* no GPU visible, or no such index */
  LC_ERR_UNSUPPORTED_DEVICE = 3, /* a GPU that is not sm_90 */
  LC_ERR_INVALID = 4,            /* an argument that no kernel accepts */
  LC_ERR_CUDA = 5,               /* a CUDA call failed; the text names it */
  LC_ERR_DRIVER_SYMBOL = 6,      /* the driver lacks an entry point */
  LC_ERR_EMULATION = 7           /* the emulator stopped the kernel; the text is its report */
} lc_status;

typedef enum lc_dtype { LC_F32 = 0, LC_F16 = 1, LC_BF16 = 2, LC_E4M3 = 3 } lc_dtype;

/* Element (r, c) is data[r * row_stride + c * column_stride]; strides in elements. */
typedef struct lc_matrix {
  void* data;
  int32_t dtype; /* an lc_dtype */
  int64_t rows, columns, row_stride, column_stride;
} lc_matrix;

LC_API int lc_abi_version(void);
LC_API const char* lc_build_info(void);
/* Text of this thread's last lc_ call: the error, or for lc_device_supported also the name of a supported device. */
LC_API const char* lc_last_error(void);
/* LC_OK if the kernels run on this device; never fails to answer, with or without a driver. */
LC_API int lc_device_supported(int device);

/* The ops; docs/ops.md has their contracts. NOTE: arguments are taken as they come. Check them first (check_<op> of
 * cpp/config): column stride 1 but for scales, widths multiples of 8, shapes that fit, nothing overlapping. */
LC_API int lc_per_token_group_quant_fp8(const lc_matrix* x, int64_t group_size, const lc_matrix* q, const lc_matrix* s,
                                        lc_stream_t stream);
LC_API int lc_per_block_quant_fp8(const lc_matrix* w, const lc_matrix* q, const lc_matrix* s, lc_stream_t stream);
LC_API int lc_silu_and_mul_quant_fp8(const lc_matrix* gate_up, const lc_matrix* q, const lc_matrix* s,
                                     lc_stream_t stream);
LC_API int lc_dequant_fp8(const lc_matrix* q, const lc_matrix* s, int64_t group_size, const lc_matrix* out,
                          lc_stream_t stream);
/* residual and residual_out are both null or both given. */
LC_API int lc_rms_norm_quant_fp8(const lc_matrix* x, const float* weight, double eps, const lc_matrix* residual,
                                 const lc_matrix* q, const lc_matrix* s, const lc_matrix* y,
                                 const lc_matrix* residual_out, lc_stream_t stream);

#ifdef __cplusplus
}
#endif

#endif /* LONGCAT_OPS_H_ */
