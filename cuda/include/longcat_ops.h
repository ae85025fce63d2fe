/* C ABI of the kernel library: raw pointers and plain integers, no CUDA, torch or Python type.
 * A function returns LC_OK or an error; lc_last_error() then holds the text, per thread. Launchers are asynchronous on
 * their stream, allocate nothing and never synchronise. liblongcat_emu.so has the same functions over host memory;
 * there they return when the kernel has run, and ignore the stream.
 * Longer than other files: whoever calls the C ABI takes one header, which has each function beside its struct. */
#ifndef LONGCAT_OPS_H_
#define LONGCAT_OPS_H_

#include <stddef.h>
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

/* `count` matrices, `stride` elements apart; `matrix` is the first. */
typedef struct lc_stack {
  lc_matrix matrix;
  int64_t count, stride;
} lc_stack;

LC_API int lc_abi_version(void);
LC_API const char* lc_build_info(void);
/* Text of this thread's last lc_ call: the error, or for lc_device_supported also the name of a supported device. */
LC_API const char* lc_last_error(void);
/* LC_OK if the kernels run on this device; never fails to answer, with or without a driver. */
LC_API int lc_device_supported(int device);

/* The ops; docs/ops.md has their contracts. An op takes one struct, whose struct_size is its sizeof: a call is a value
 * that can be stored and repeated. An optional matrix is absent if it has no data. NOTE: launchers check no argument.
 * Check them first (check_<op> of cpp/ops): column stride 1 except for scales, widths multiples of 8, matching shapes,
 * no overlap. */
typedef struct lc_per_token_group_quant_fp8_args {
  size_t struct_size;
  lc_matrix x;
  int64_t group_size;
  lc_matrix q, s;
} lc_per_token_group_quant_fp8_args;
LC_API int lc_per_token_group_quant_fp8(const lc_per_token_group_quant_fp8_args* args, lc_stream_t stream);
typedef struct lc_per_block_quant_fp8_args {
  size_t struct_size;
  lc_matrix w, q, s;
} lc_per_block_quant_fp8_args;
LC_API int lc_per_block_quant_fp8(const lc_per_block_quant_fp8_args* args, lc_stream_t stream);
typedef struct lc_silu_and_mul_quant_fp8_args {
  size_t struct_size;
  lc_matrix gate_up, q, s;
} lc_silu_and_mul_quant_fp8_args;
LC_API int lc_silu_and_mul_quant_fp8(const lc_silu_and_mul_quant_fp8_args* args, lc_stream_t stream);
typedef struct lc_dequant_fp8_args {
  size_t struct_size;
  lc_matrix q, s;
  int64_t group_size;
  lc_matrix out;
} lc_dequant_fp8_args;
LC_API int lc_dequant_fp8(const lc_dequant_fp8_args* args, lc_stream_t stream);
/* residual and residual_out are both absent or both given. */
typedef struct lc_rms_norm_quant_fp8_args {
  size_t struct_size;
  lc_matrix x;
  const float* weight;
  double eps;
  lc_matrix residual, q, s, y, residual_out;
} lc_rms_norm_quant_fp8_args;
LC_API int lc_rms_norm_quant_fp8(const lc_rms_norm_quant_fp8_args* args, lc_stream_t stream);

/* Scales sa and sb may have any strides; out bf16, f16 or f32. split_k: 1, 2 or 4. */
typedef struct lc_fp8_gemm_nt_args {
  size_t struct_size;
  lc_matrix a, sa, b, sb;
  int32_t split_k;
  lc_matrix out;
} lc_fp8_gemm_nt_args;
LC_API int lc_fp8_gemm_nt(const lc_fp8_gemm_nt_args* args, lc_stream_t stream);
/* max_m_hint: -1 for none. */
typedef struct lc_m_grouped_fp8_gemm_nt_offset_args {
  size_t struct_size;
  lc_matrix a, sa;
  lc_stack b, sb;
  const int32_t* offsets;
  int64_t max_m_hint;
  int32_t counts_ready, split_k;
  lc_matrix out;
} lc_m_grouped_fp8_gemm_nt_offset_args;
LC_API int lc_m_grouped_fp8_gemm_nt_offset(const lc_m_grouped_fp8_gemm_nt_offset_args* args, lc_stream_t stream);
typedef struct lc_m_grouped_fp8_gemm_nt_masked_args {
  size_t struct_size;
  lc_stack a, sa, b, sb;
  const int32_t* masked_m;
  int64_t expected_m;
  lc_stack out;
} lc_m_grouped_fp8_gemm_nt_masked_args;
LC_API int lc_m_grouped_fp8_gemm_nt_masked(const lc_m_grouped_fp8_gemm_nt_masked_args* args, lc_stream_t stream);
typedef struct lc_m_grouped_fp8_gemm_nt_contiguous_args {
  size_t struct_size;
  lc_matrix a, sa;
  lc_stack b, sb;
  const int32_t* m_indices;
  lc_matrix out;
} lc_m_grouped_fp8_gemm_nt_contiguous_args;
LC_API int lc_m_grouped_fp8_gemm_nt_contiguous(const lc_m_grouped_fp8_gemm_nt_contiguous_args* args,
                                               lc_stream_t stream);
/* gate_up and its scales are as interleave_gate_up returns them; sh may have any strides, absent if h is bf16. */
typedef struct lc_m_grouped_fp8_swiglu_gemm_nt_offset_args {
  size_t struct_size;
  lc_matrix a, sa;
  lc_stack gate_up, s_gate_up;
  const int32_t* offsets;
  int64_t max_m_hint;
  int32_t counts_ready;
  lc_matrix h, sh;
} lc_m_grouped_fp8_swiglu_gemm_nt_offset_args;
LC_API int lc_m_grouped_fp8_swiglu_gemm_nt_offset(const lc_m_grouped_fp8_swiglu_gemm_nt_offset_args* args,
                                                  lc_stream_t stream);

/* The five products for bf16, without scales of operands. */
typedef struct lc_bf16_gemm_nt_args {
  size_t struct_size;
  lc_matrix a, b;
  int32_t split_k;
  lc_matrix out;
} lc_bf16_gemm_nt_args;
LC_API int lc_bf16_gemm_nt(const lc_bf16_gemm_nt_args* args, lc_stream_t stream);
typedef struct lc_m_grouped_bf16_gemm_nt_offset_args {
  size_t struct_size;
  lc_matrix a;
  lc_stack b;
  const int32_t* offsets;
  int64_t max_m_hint;
  int32_t counts_ready, split_k;
  lc_matrix out;
} lc_m_grouped_bf16_gemm_nt_offset_args;
LC_API int lc_m_grouped_bf16_gemm_nt_offset(const lc_m_grouped_bf16_gemm_nt_offset_args* args, lc_stream_t stream);
typedef struct lc_m_grouped_bf16_gemm_nt_masked_args {
  size_t struct_size;
  lc_stack a, b;
  const int32_t* masked_m;
  int64_t expected_m;
  lc_stack out;
} lc_m_grouped_bf16_gemm_nt_masked_args;
LC_API int lc_m_grouped_bf16_gemm_nt_masked(const lc_m_grouped_bf16_gemm_nt_masked_args* args, lc_stream_t stream);
typedef struct lc_m_grouped_bf16_gemm_nt_contiguous_args {
  size_t struct_size;
  lc_matrix a;
  lc_stack b;
  const int32_t* m_indices;
  lc_matrix out;
} lc_m_grouped_bf16_gemm_nt_contiguous_args;
LC_API int lc_m_grouped_bf16_gemm_nt_contiguous(const lc_m_grouped_bf16_gemm_nt_contiguous_args* args,
                                                lc_stream_t stream);
typedef struct lc_m_grouped_bf16_swiglu_gemm_nt_offset_args {
  size_t struct_size;
  lc_matrix a;
  lc_stack gate_up;
  const int32_t* offsets;
  int64_t max_m_hint;
  int32_t counts_ready;
  lc_matrix h, sh;
} lc_m_grouped_bf16_swiglu_gemm_nt_offset_args;
LC_API int lc_m_grouped_bf16_swiglu_gemm_nt_offset(const lc_m_grouped_bf16_swiglu_gemm_nt_offset_args* args,
                                                   lc_stream_t stream);

/* x bf16 or f32 [T, H]; split: three terms bf16 [E, H], contiguous, as split_bf16x3 returns them; out f32 [T, E]. */
typedef struct lc_router_gemm_args {
  size_t struct_size;
  lc_matrix x;
  lc_stack split;
  lc_matrix out;
} lc_router_gemm_args;
LC_API int lc_router_gemm(const lc_router_gemm_args* args, lc_stream_t stream);

/* Routing, dispatch and combine. Everything but an lc_matrix is contiguous: ids, row_of i32 [T, K], weights f32 [T, K],
 * zero_weight f32 and num_real u8 [T], bias f32 and counts i32 [E], errors i32 [1], offsets i32 [num_local + 1], src_of
 * i32 [T * min(K, num_local)]. num_valid i32 [1] and the weights of lc_moe_plan may be null, add may be absent. If
 * lc_moe_plan has weights, a choice of weight 0 has no row. */
typedef struct lc_moe_route_args {
  size_t struct_size;
  lc_matrix logits;
  const float* bias;
  const int32_t* num_valid;
  int32_t top_k, num_zero_experts;
  double scale;
  int32_t* ids;
  float* weights;
  float* zero_weight;
  uint8_t* num_real;
  int32_t* counts;
  int32_t* errors;
} lc_moe_route_args;
LC_API int lc_moe_route(const lc_moe_route_args* args, lc_stream_t stream);
/* ids and out i32 [tokens, top_k]; slots i32 [experts, max_replicas], replicas i32 [experts]; 0 <= layer < 2^31. */
typedef struct lc_moe_place_args {
  size_t struct_size;
  const int32_t* ids;
  int64_t tokens;
  int32_t top_k, experts, max_replicas, layer;
  const int32_t* slots;
  const int32_t* replicas;
  int32_t* out;
} lc_moe_place_args;
LC_API int lc_moe_place(const lc_moe_place_args* args, lc_stream_t stream);
typedef struct lc_moe_plan_args {
  size_t struct_size;
  const int32_t* ids;
  int64_t tokens;
  int32_t top_k, num_local;
  const float* weights;
  int32_t* offsets;
  int32_t* row_of;
  int32_t* src_of;
} lc_moe_plan_args;
LC_API int lc_moe_plan(const lc_moe_plan_args* args, lc_stream_t stream);
typedef struct lc_moe_permute_quant_args {
  size_t struct_size;
  lc_matrix x;
  const int32_t* row_of;
  int32_t top_k;
  const int32_t* src_of;
  int64_t rows;
  lc_matrix q, s;
} lc_moe_permute_quant_args;
LC_API int lc_moe_permute_quant(const lc_moe_permute_quant_args* args, lc_stream_t stream);
/* The same rows unquantised, for experts that are not FP8: out [rows, H] of x's dtype. */
typedef struct lc_moe_permute_args {
  size_t struct_size;
  lc_matrix x;
  const int32_t* row_of;
  int32_t top_k;
  const int32_t* src_of;
  int64_t rows;
  lc_matrix out;
} lc_moe_permute_args;
LC_API int lc_moe_permute(const lc_moe_permute_args* args, lc_stream_t stream);
typedef struct lc_moe_combine_args {
  size_t struct_size;
  lc_matrix y;
  const int32_t* row_of;
  int32_t top_k;
  const float* weights;
  const float* zero_weight;
  lc_matrix x, add, out;
} lc_moe_combine_args;
LC_API int lc_moe_combine(const lc_moe_combine_args* args, lc_stream_t stream);
/* The pages of a latent cache: page `table[s * table_width + i]` has rows 64 i .. 64 i + 63 of sequence s. */
typedef struct lc_pages {
  lc_stack rows; /* [pages, 64, W] */
  const int32_t* table;
  int64_t sequences, table_width;
} lc_pages;
typedef struct lc_mla_write_args {
  size_t struct_size;
  lc_matrix kv;
  const float* weight;
  double eps;
  lc_matrix rope;
  const int32_t *sequence, *position;
  lc_pages pages;
} lc_mla_write_args;
LC_API int lc_mla_write(const lc_mla_write_args* args, lc_stream_t stream);
/* q [T, h, W] and rows bf16, on 16 bytes; out [T, h, latent]. W and latent are multiples of 16, up to 576 and 512. The
 * call overwrites lc_mla_decode_workspace(args) bytes at `workspace`, on 16 bytes; those depend on the sizes alone. */
typedef struct lc_mla_decode_args {
  size_t struct_size;
  lc_stack q;
  lc_pages pages;
  const int32_t *sequence, *position;
  double scale;
  int64_t split_rows;
  lc_stack out;
  void* workspace;
  int64_t workspace_bytes;
} lc_mla_decode_args;
LC_API int lc_mla_decode(const lc_mla_decode_args* args, lc_stream_t stream);
LC_API int64_t lc_mla_decode_workspace(const lc_mla_decode_args* args);
/* q and out have a matrix [h, ...] for each token, w_k one for each head. bf16 alone: float32 is LC_ERR_INVALID. */
typedef struct lc_mla_query_args {
  size_t struct_size;
  lc_stack q, w_k;
  lc_matrix rope;
  const int32_t* position;
  lc_stack out;
} lc_mla_query_args;
LC_API int lc_mla_query(const lc_mla_query_args* args, lc_stream_t stream);

/* Rows: weight f32 [H] and ids i64 [T] are contiguous; residual and residual_out are both absent or both given. */
typedef struct lc_rms_norm_args {
  size_t struct_size;
  lc_matrix x;
  const float* weight;
  double eps;
  lc_matrix residual, y, residual_out;
} lc_rms_norm_args;
LC_API int lc_rms_norm(const lc_rms_norm_args* args, lc_stream_t stream);
typedef struct lc_embed_rows_args {
  size_t struct_size;
  lc_matrix table;
  const int64_t* ids;
  lc_matrix out;
} lc_embed_rows_args;
LC_API int lc_embed_rows(const lc_embed_rows_args* args, lc_stream_t stream);
typedef struct lc_add_rows_args {
  size_t struct_size;
  lc_matrix x, y, out;
} lc_add_rows_args;
LC_API int lc_add_rows(const lc_add_rows_args* args, lc_stream_t stream);
typedef struct lc_silu_and_mul_args {
  size_t struct_size;
  lc_matrix gate_up, out;
} lc_silu_and_mul_args;
LC_API int lc_silu_and_mul(const lc_silu_and_mul_args* args, lc_stream_t stream);

/* The bookkeeping of a decode step. tokens i64 [sequences, width], rows token_stride apart; the rest is contiguous but
 * newest, whose elements lie newest_stride apart. Outputs are written whole; lengths, num_drafts and newest are updated
 * by lc_advance_lengths. */
typedef struct lc_pack_rows_args {
  size_t struct_size;
  const int64_t* tokens;
  int64_t sequences, width, token_stride;
  const int32_t *num_drafts, *lengths;
  int64_t* ids;
  int32_t *sequence, *position, *first_row, *num_rows;
  int64_t copies; /* of num_rows */
} lc_pack_rows_args;
LC_API int lc_pack_rows(const lc_pack_rows_args* args, lc_stream_t stream);
typedef struct lc_advance_lengths_args {
  size_t struct_size;
  const int64_t* tokens;
  int64_t sequences, width, token_stride;
  const int32_t *num_tokens, *first_row, *limits;
  const int64_t* stop_ids;
  int64_t num_stop_ids;
  int32_t *lengths, *num_drafts;
  int64_t* newest;
  int64_t newest_stride;
  int32_t* kept;
  int64_t* last_row;
} lc_advance_lengths_args;
LC_API int lc_advance_lengths(const lc_advance_lengths_args* args, lc_stream_t stream);

/* Tokens from logits. logits [sequences, rows, width], contiguous; drafts [sequences, rows - 1] and tokens [sequences,
 * rows], their rows any distance apart; the rest [sequences]. first_row may be null. */
typedef struct lc_verified {
  const float* logits;
  int64_t sequences, rows, width;
  const int64_t* drafts;
  int64_t draft_stride;
  const int32_t *num_drafts, *first_row;
  int64_t* tokens;
  int64_t token_stride;
  int32_t* num_tokens;
} lc_verified;
typedef struct lc_verify_greedy_args {
  size_t struct_size;
  lc_verified verified;
} lc_verify_greedy_args;
LC_API int lc_verify_greedy(const lc_verify_greedy_args* args, lc_stream_t stream);
/* How sequences draw; each [sequences]. */
typedef struct lc_draws {
  const int64_t* seeds;
  const int32_t* lengths;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
} lc_draws;
/* draft_probs f32 [sequences, rows - 1, width] may be absent. */
typedef struct lc_verify_sampled_args {
  size_t struct_size;
  lc_verified verified;
  lc_draws draws;
  lc_stack draft_probs;
} lc_verify_sampled_args;
LC_API int lc_verify_sampled(const lc_verify_sampled_args* args, lc_stream_t stream);
/* logits and probs f32 [sequences, width], tokens token_stride apart. */
typedef struct lc_sample_tokens_args {
  size_t struct_size;
  lc_matrix logits;
  lc_draws draws;
  int64_t* tokens;
  int64_t token_stride;
  lc_matrix probs;
} lc_sample_tokens_args;
LC_API int lc_sample_tokens(const lc_sample_tokens_args* args, lc_stream_t stream);
/* logits f32 [sequences, width], hidden [units, 4], output [units + 1]; joint_before may be absent; the others
 * [sequences]. */
typedef struct lc_filter_drafts_args {
  size_t struct_size;
  lc_matrix logits;
  const float *hidden, *output;
  int64_t units;
  const float* joint_before;
  int64_t depth, top;
  float beta;
  int32_t* num_drafts;
  float *joint, *entropy, *score;
} lc_filter_drafts_args;
LC_API int lc_filter_drafts(const lc_filter_drafts_args* args, lc_stream_t stream);

/* Collectives between the GPUs of one NVLink domain, over symmetric memory: a region of the same size on every rank,
 * mapped at all of them. Its first LC_COMM_CONTROL_BYTES belong to the kernels; all ranks zero them before the first
 * collective, and nothing else writes them. Offsets are bytes from the start of the region, the same on every rank.
 * Ranks call the same collectives in the same order with the same sizes and launch parameters. A wait that ends in vain
 * fills the record and makes all ranks give up; the symmetric memory is of no further use then. */
#define LC_COMM_MAX_RANKS 8
#define LC_COMM_MAX_CHANNELS 4
#define LC_COMM_MAX_BLOCKS 32
#define LC_COMM_CONTROL_BYTES 65536
typedef enum lc_comm_status {
  LC_COMM_TIMEOUT = 1,      /* ranks in `missing` did not arrive */
  LC_COMM_PEER_ABORTED = 2, /* the rank in `missing` gave up first */
  LC_COMM_HOST_ABORTED = 3,
  LC_COMM_BAD_ROWS = 4 /* a count below 0, or more rows than a limit says */
} lc_comm_status;
typedef enum lc_comm_stage {
  LC_COMM_ENTRY = 1, /* the barrier before any data moves */
  LC_COMM_EXIT = 2,  /* the barrier behind the data */
  LC_COMM_LINES = 3, /* lines of data and flag */
  LC_COMM_ROWS = 4,  /* row counts on the device */
  /* of expert parallelism */
  LC_COMM_COUNTS = 5,   /* where each rank's rows of each expert begin */
  LC_COMM_DISPATCH = 6, /* rows on their way to the experts */
  LC_COMM_COMBINE = 7   /* rows on their way back */
} lc_comm_stage;
/* In pinned host memory that the GPU can reach, one per rank. The host zeroes it, then writes host_abort alone: not 0
 * ends every wait. status is written last; 0: nothing has failed. */
typedef struct lc_comm_record {
  uint32_t status, op, channel, block, stage;
  uint32_t expected, seen; /* epochs; for LC_COMM_BAD_ROWS: max_rows and the sum of the rows */
  uint32_t missing;        /* bit r: rank r */
  uint32_t host_abort;
} lc_comm_record;
/* multicast may be null. op: any number, for the record. timeout_ns: of each wait; 0: none. blocks: at most
 * LC_COMM_MAX_BLOCKS; threads: a multiple of 32, at most 1024. fixed_order: sums in the order of ranks, by loops over
 * the peers, even where there is multicast. load_only: loads the kernel of the call onto the device and launches
 * nothing. Every kernel is loaded before the first call: loading may wait for kernels that run, and those for a rank.
 */
typedef struct lc_comm {
  void* memory[LC_COMM_MAX_RANKS];
  void* multicast;
  lc_comm_record* record;
  uint64_t timeout_ns;
  int32_t rank, ranks, channel, op, blocks, threads, fixed_order, load_only;
} lc_comm;
/* Makes all ranks give up, whatever they wait for: for a stream that no waiting collective blocks. */
typedef struct lc_comm_abort_args {
  size_t struct_size;
  lc_comm comm;
} lc_comm_abort_args;
LC_API int lc_comm_abort(const lc_comm_abort_args* args, lc_stream_t stream);
/* input null: the payload is at offset `payload` already; otherwise it is copied there. out null: the sum stays there.
 */
typedef struct lc_all_reduce_args {
  size_t struct_size;
  lc_comm comm;
  const void* input;
  void* out;
  uint64_t payload;
  int64_t elements;
  int32_t dtype;
} lc_all_reduce_args;
LC_API int lc_all_reduce(const lc_all_reduce_args* args, lc_stream_t stream);
/* All-reduce of at most max_bytes by lines of data and flag, without a barrier. lines: the offset of
 * 4 * ranks * max_bytes bytes, zero before the first call. max_bytes: a multiple of 16; it, lines and blocks are the
 * same in all calls of a channel. */
typedef struct lc_all_reduce_low_latency_args {
  size_t struct_size;
  lc_comm comm;
  const void* input;
  void* out;
  uint64_t lines;
  int64_t max_bytes, elements;
  int32_t dtype;
} lc_all_reduce_low_latency_args;
LC_API int lc_all_reduce_low_latency(const lc_all_reduce_low_latency_args* args, lc_stream_t stream);
/* h = sum + residual, y = rms_norm(h), q and s its 1x128 quantisation, of [rows, width]; width a multiple of 8. Tensors
 * have no gaps and lie on 16 bytes; those of codes on 8. input null: x is at `payload`, where h then stands. lines 1:
 * low latency, `payload` and max_bytes as for lc_all_reduce_low_latency, input given. y null: not stored; q null: no
 * codes. */
typedef struct lc_all_reduce_residual_rms_norm_args {
  size_t struct_size;
  lc_comm comm;
  const void* input;
  const void* residual;
  const float* weight;
  double eps;
  void* residual_out;
  void* y;
  void* q;
  float* s;
  int64_t s_row_stride, s_column_stride;
  uint64_t payload;
  int64_t max_bytes, rows, width;
  int32_t dtype, lines;
} lc_all_reduce_residual_rms_norm_args;
LC_API int lc_all_reduce_residual_rms_norm(const lc_all_reduce_residual_rms_norm_args* args, lc_stream_t stream);
/* Rank r owns device_rows[r] rows of `width` elements, in all at most max_rows, and this one at most max_own_rows; or
 * rows[r] where device_rows is null: then the host has checked them, and neither limit is read.
 * input [all rows, width] as for lc_all_reduce; out [own rows, width]. */
typedef struct lc_reduce_scatter_args {
  size_t struct_size;
  lc_comm comm;
  const void* input;
  void* out;
  uint64_t payload;
  int64_t width, max_rows, max_own_rows;
  const int32_t* device_rows;
  int32_t rows[LC_COMM_MAX_RANKS];
  int32_t dtype;
} lc_reduce_scatter_args;
LC_API int lc_reduce_scatter(const lc_reduce_scatter_args* args, lc_stream_t stream);
/* input [own rows, row_bytes], null: at the rank's place in the payload already. out [all rows, row_bytes], null: the
 * result stays in the payload. A broadcast: only the source has rows. */
typedef struct lc_all_gather_args {
  size_t struct_size;
  lc_comm comm;
  const void* input;
  void* out;
  uint64_t payload;
  int64_t row_bytes, max_rows, max_own_rows;
  const int32_t* device_rows;
  int32_t rows[LC_COMM_MAX_RANKS];
} lc_all_gather_args;
LC_API int lc_all_gather(const lc_all_gather_args* args, lc_stream_t stream);

/* Expert parallelism between the GPUs of one NVLink domain (docs/expert_parallel.md): rows of tokens travel to the
 * ranks of their experts and back, over the symmetric memory. R ranks, N experts, of which expert g lies on rank g / (N
 * / R); received = R * max_tokens * min(top_k, N / R) rows that a rank may get, returned = max_tokens * min(top_k, N).
 * Every rank makes the same calls in the same order, also without tokens: lc_ep_counts, lc_ep_dispatch and lc_ep_wait
 * for LC_EP_DISPATCH; then lc_ep_combine and lc_ep_wait for LC_EP_COMBINE. Calls on different buffers may overlap. The
 * next lc_ep_counts of a buffer comes after all that reads its rows and what came back, in stream order. comm.channel,
 * blocks, threads and fixed_order are not read beyond their check, and there is no multicast.
 * A count of LC_COMM_BAD_ROWS: `missing` has the rank that would get too many rows, or whose offsets make no sense. */
#define LC_EP_MAX_BUFFERS 4
typedef enum lc_ep_traffic { LC_EP_DISPATCH = 0, LC_EP_COMBINE = 1 } lc_ep_traffic;
/* Parts of the symmetric memory, as offsets that are multiples of 16, zero before the first call:
 *   lines     2 * R * (N + 1) * 8 bytes
 *   flags     2 * LC_EP_MAX_BUFFERS * 128 bytes
 * and of this buffer, of any content:
 *   rows      [received, hidden] e4m3 or bf16
 *   scales    [received, ceil(hidden / 128)] f32, of e4m3 rows
 *   returned  [returned, hidden] bf16
 * tables: this rank's own memory on 8 bytes, zero before the first call: 128 bytes, then for each buffer 32 + 4 (3 N +
 * 1) bytes rounded up to 128. Bytes 64 .. 95 are int64 counters of all calls: rows sent, those of them to other ranks,
 * choices that were not sent, bytes sent to other ranks. payload: LC_E4M3 or LC_BF16. hidden: a multiple of 16. */
typedef struct lc_experts {
  lc_comm comm;
  int32_t buffer, num_experts, top_k, payload;
  int64_t max_tokens, hidden;
  uint64_t lines, flags, rows, scales, returned;
  void* tables;
} lc_experts;
/* Waits for the counts of all ranks. plan_offsets [N + 1]: of this rank's plan over all experts; tokens: its number of
 * tokens; offsets [N / R + 1] of the rows that it will receive, sorted by expert, source, and the source's plan. */
typedef struct lc_ep_counts_args {
  size_t struct_size;
  lc_experts experts;
  const int32_t* plan_offsets;
  int64_t tokens;
  int32_t* offsets;
} lc_ep_counts_args;
LC_API int lc_ep_counts(const lc_ep_counts_args* args, lc_stream_t stream);
/* Sends the rows of x, bf16 [tokens, hidden] on 16 bytes, to the experts of ids [tokens, top_k] where row_of
 * [tokens, top_k] of the plan is not -1. */
typedef struct lc_ep_dispatch_args {
  size_t struct_size;
  lc_experts experts;
  lc_matrix x;
  const int32_t* ids;
  const int32_t* row_of;
} lc_ep_dispatch_args;
LC_API int lc_ep_dispatch(const lc_ep_dispatch_args* args, lc_stream_t stream);
/* Waits for the rows of all ranks. traffic: an lc_ep_traffic. */
typedef struct lc_ep_wait_args {
  size_t struct_size;
  lc_experts experts;
  int32_t traffic;
} lc_ep_wait_args;
LC_API int lc_ep_wait(const lc_ep_wait_args* args, lc_stream_t stream);
/* Sends row j of y, bf16 [received, hidden] on 16 bytes, back to the source of received row j: row i of `returned`
 * there is then the result for row i of the source's plan. Rows of y behind the received ones are not read. */
typedef struct lc_ep_combine_args {
  size_t struct_size;
  lc_experts experts;
  lc_matrix y;
} lc_ep_combine_args;
LC_API int lc_ep_combine(const lc_ep_combine_args* args, lc_stream_t stream);

#ifdef __cplusplus
}
#endif

#endif /* LONGCAT_OPS_H_ */
