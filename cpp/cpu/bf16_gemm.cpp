#include "cpu/bf16_gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/constants.h"
#include "common/numeric.h"
#include "cpu/dispatch.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

constexpr int kTile = kBf16GemmTile;
constexpr int kStep = 2 * kLanes;     // elements of k at once: a vector of bf16
constexpr int kPanelRows = 64;        // rows of a that are widened at once and share each read of the weights
constexpr int64_t kChunkSteps = 16;   // steps of k after which other rows have their turn, so that both stay in L1
constexpr int64_t kPanelSteps = 192;  // steps of all rows of a panel up to which it stays there as a whole
constexpr int kAhead = 4;             // rows of the weight between one that is read and one that is fetched

// Rows of a as float32 in blocks of kBlockRows or fewer: [blocks, steps, rows of the block, kStep].
struct Panel {
  float* values;
  float* sums;  // [kPanelRows, kTile, kLanes]
  int64_t rows, steps;
};

namespace baseline {
#define LC_BODY LC_INLINE
#define LC_WIDTH 4
#define LC_ACCUMULATORS 2
#include "cpu/bf16_gemm_body.inc"
#undef LC_ACCUMULATORS
#undef LC_WIDTH
#undef LC_BODY
}  // namespace baseline
namespace avx2 {
#define LC_BODY LC_TARGET_AVX2 LC_INLINE
#define LC_WIDTH 8
#define LC_ACCUMULATORS 4
#include "cpu/bf16_gemm_body.inc"
#undef LC_ACCUMULATORS
#undef LC_WIDTH
#undef LC_BODY
}  // namespace avx2
namespace avx512 {
#define LC_BODY LC_TARGET_AVX512 LC_INLINE
#define LC_WIDTH 16
#define LC_ACCUMULATORS 16
#include "cpu/bf16_gemm_body.inc"
#undef LC_ACCUMULATORS
#undef LC_WIDTH
#undef LC_BODY
}  // namespace avx512

#define LC_DEFINE_KERNEL(isa, ...)                                                                       \
  template <class Format>                                                                                \
  __VA_ARGS__ void gemm_##isa(const Bf16GemmParams& p, const Panel& panel, int64_t begin, int64_t end) { \
    isa::gemm<Format>(p, panel, begin, end);                                                             \
  }

LC_DEFINE_KERNEL(baseline, )
LC_DEFINE_KERNEL(avx2, LC_TARGET_AVX2)
LC_DEFINE_KERNEL(avx512, LC_TARGET_AVX512)

// A panel in this thread's own memory, on a cache line.
Panel make_panel(int64_t rows, int64_t k) {
  constexpr int64_t kLine = 64 / sizeof(float);
  thread_local std::vector<float> memory;
  const int64_t steps = ceil_div(k, kStep), held = std::min<int64_t>(rows, kPanelRows);
  const size_t wanted = held * (steps * kStep + kTile * kLanes) + kLine;
  if (memory.size() < wanted) memory.resize(wanted);
  float* start = memory.data() + (-(reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float))) % kLine;
  return {start + held * kTile * kLanes, start, 0, steps};
}

Matrix from_row(const Matrix& matrix, int64_t row, DType dtype) {
  char* start = static_cast<char*>(matrix.data) + row * matrix.row_stride * element_size(dtype);
  return {start, matrix.row_stride, matrix.column_stride};
}

template <class Format>
void run(const Bf16GemmParams& params, int64_t begin, int64_t end) {
  const Panel panel = make_panel(params.row_end - params.row_begin, params.k);
  switch (active_isa()) {
    case Isa::kBaseline: return gemm_baseline<Format>(params, panel, begin, end);
    case Isa::kAvx2: return gemm_avx2<Format>(params, panel, begin, end);
    case Isa::kAvx512: return gemm_avx512<Format>(params, panel, begin, end);
  }
}

}  // namespace

void bf16_gemm_nt(const Bf16GemmParams& params, int64_t begin, int64_t end) {
  params.dtype == DType::kBFloat16 ? run<BFloat16>(params, begin, end) : run<Float32>(params, begin, end);
}

// The products of a block of channels, in float32, then SwiGLU of a tile of gate and the tile of up behind it.
void bf16_swiglu_gemm_nt(const Bf16SwigluParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 2 * kQuantBlock;
  thread_local float sums[kPanelRows * kColumns], h[kPanelRows * kQuantBlock];
  for (int64_t row = p.row_begin; row < p.row_end; row += kPanelRows) {
    const int64_t rows = smaller(kPanelRows, p.row_end - row);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t tiles = p.out.channels(block) / kTile;
      const Bf16GemmParams products{
          .a = from_row(p.a, row, p.dtype),
          .b = from_row(p.gate_up, block * kColumns, p.dtype),
          .out = {sums, kColumns, 1},
          .dtype = p.dtype,
          .out_dtype = DType::kFloat32,
          .row_begin = 0,
          .row_end = rows,
          .n = 2 * tiles * kTile,
          .k = p.k,
      };
      bf16_gemm_nt(products, 0, 2 * tiles);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const float *gate = sums + i * kColumns + 2 * tile * kTile, *up = gate + kTile;
          float* to = h + i * kQuantBlock + tile * kTile;
          for (int c = 0; c < kTile; ++c) to[c] = silu(gate[c]) * up[c];
        }
      p.out.store(h, row, rows, block);
    }
  }
}

}  // namespace longcat_ops::cpu
