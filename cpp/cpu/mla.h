// CPU kernels of multi-head latent attention over pages of latent rows. Free of torch; each works on a range, so that
// the caller owns the threads. What a token gets depends on its own sequence and position alone.
#pragma once

#include "common/latent_pages.h"
#include "cpu/quant.h"

namespace longcat_ops::cpu {

// [outer, rows, columns]; elements of a row are adjacent.
struct Matrices {
  void* data;
  int64_t stride, row_stride;  // in elements
};

// The rows of one attention, in pages of kPageRows; table[sequence, i] is the page of rows 64 i .. 64 i + 63.
struct LatentPages {
  Matrices rows;  // [pages, kPageRows, width]
  int64_t pages, width;
  const int32_t* table;
  int64_t sequences, table_width;  // [sequences, table_width], contiguous

  bool has(int32_t sequence, int32_t position) const {
    return sequence >= 0 && sequence < sequences && position >= 0 && position / kPageRows < table_width;
  }
  // The page of a row that the table has; -1 if the table names none that exists.
  int64_t page_of(int32_t sequence, int64_t position) const {
    const int32_t page = table[sequence * table_width + position / kPageRows];
    return page >= 0 && page < pages ? page : -1;
  }
};

// cos and sin of each pair of elements, [positions, 2 * pairs]: pair j of a row is turned by elements 2 j and 2 j + 1.
struct RotaryTable {
  const float* values;
  int64_t row_stride, positions, width;
};

// Row `position` of its sequence = RMSNorm of the first `latent` elements of kv, then the others, turned.
struct MlaWriteParams {
  DType dtype;  // of kv and rows
  Matrix kv;    // [tokens, latent + rope.width]
  const float* weight;
  int64_t latent;
  float eps;
  RotaryTable rope;
  LatentPages pages;
  const int32_t *sequence, *position;  // [tokens]
};

// out[t, h] = q[t, h, : nope] @ w_k[h].T, then the other elements of q, turned.
struct MlaQueryParams {
  DType dtype;   // of q, w_k and out: bf16 or f32
  Matrices q;    // [tokens, heads, nope + rope.width]
  Matrices w_k;  // [heads, latent, nope]
  Matrices out;  // [tokens, heads, latent + rope.width]
  RotaryTable rope;
  const int32_t* position;
  int64_t tokens, heads, nope, latent;
};

// For token t at position p: softmax(scale * q[t] . row) over rows 0 .. p of its sequence, times their first `latent`
// elements, in float32. Splits of split_rows rows (a multiple of kPageRows) are merged in order.
struct MlaDecodeParams {
  DType dtype;  // of q, rows and out: bf16 or f32
  Matrices q;   // [tokens, heads, pages.width]
  LatentPages pages;
  const int32_t *sequence, *position;  // [tokens]
  Matrices out;                        // [tokens, heads, latent]
  int64_t heads, latent, split_rows;
  float scale;
};

constexpr int64_t kHeadBlock = 16;  // heads that share each page as it is read

// Tokens [begin, end). Of two tokens with one place, any may win.
void mla_write(const MlaWriteParams& params, int64_t begin, int64_t end);

// Tiles [begin, end) of heads x latent / kBf16GemmTile; the first tile of a head also turns its other elements.
void mla_query(const MlaQueryParams& params, int64_t begin, int64_t end);

// Units [begin, end) of tokens x ceil(heads / kHeadBlock).
void mla_decode(const MlaDecodeParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
