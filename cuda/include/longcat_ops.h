/* C ABI of the kernel library: raw pointers and plain integers, no CUDA, torch or Python type.
 * A function returns LC_OK or an error; lc_last_error() then holds the text, per thread. Launchers are asynchronous on
 * their stream, allocate nothing and never synchronise. */
#ifndef LONGCAT_OPS_H_
#define LONGCAT_OPS_H_

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
  LC_ERR_DRIVER_SYMBOL = 6       /* the driver lacks an entry point */
} lc_status;

LC_API int lc_abi_version(void);
LC_API const char* lc_build_info(void);
/* Text of this thread's last lc_ call: the error, or for lc_device_supported also the name of a supported device. */
LC_API const char* lc_last_error(void);
/* LC_OK if the kernels run on this device; never fails to answer, with or without a driver. */
LC_API int lc_device_supported(int device);

#ifdef __cplusplus
}
#endif

#endif /* LONGCAT_OPS_H_ */
