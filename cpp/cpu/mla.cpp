#include "cpu/mla.h"

#include <algorithm>

#include "cpu/bf16_gemm.h"
#include "cpu/dispatch.h"
#include "cpu/norm.h"

namespace longcat_ops::cpu {
namespace {

template <class T>
T* row_at(const Matrices& m, int64_t outer, int64_t row) {
  return static_cast<T*>(m.data) + outer * m.stride + row * m.row_stride;
}

char* bytes_at(const Matrices& m, int64_t outer, int64_t row, int64_t column, DType dtype) {
  return static_cast<char*>(m.data) + (outer * m.stride + row * m.row_stride + column) * element_size(dtype);
}

// Turns pairs of x by a row of the table; NaN where the table has no such position.
template <class Format>
void turn(const RotaryTable& rope, int64_t position, const typename Format::Storage* x, typename Format::Storage* y) {
  if (position >= rope.positions) return (void)std::fill_n(y, rope.width, Format::store(bits_float(kNanBits)));
  const float* angle = rope.values + position * rope.row_stride;
  for (int64_t i = 0; i < rope.width; i += 2) {
    const float even = Format::load(x[i]), odd = Format::load(x[i + 1]), cos = angle[i], sin = angle[i + 1];
    y[i] = Format::store(even * cos - odd * sin);
    y[i + 1] = Format::store(even * sin + odd * cos);
  }
}

template <class Format>
void write_rows(const MlaWriteParams& p, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  for (int64_t t = begin; t < end; ++t) {
    if (!p.pages.has(p.sequence[t], p.position[t])) continue;
    const int64_t page = p.pages.page_of(p.sequence[t], p.position[t]);
    if (page < 0) continue;
    auto* x = static_cast<Storage*>(p.kv.data) + t * p.kv.row_stride;
    auto* y = row_at<Storage>(p.pages.rows, page, p.position[t] % kPageRows);
    rms_norm({.dtype = p.dtype, .x = {x, 0, 1}, .y = {y, 0, 1}, .weight = p.weight, .columns = p.latent, .eps = p.eps},
             0, 1);
    turn<Format>(p.rope, p.position[t], x + p.latent, y + p.latent);
  }
}

template <class Format>
void turn_head(const MlaQueryParams& p, int64_t head) {
  using Storage = typename Format::Storage;
  for (int64_t t = 0; t < p.tokens; ++t) {
    Storage* y = row_at<Storage>(p.out, t, head) + p.latent;
    if (p.position[t] < 0)
      std::fill_n(y, p.rope.width, Storage{});
    else
      turn<Format>(p.rope, p.position[t], row_at<Storage>(p.q, t, head) + p.nope, y);
  }
}

// Zero, where the token is padding.
template <class Format>
void clear_padding(const MlaQueryParams& p, int64_t head, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  for (int64_t t = 0; t < p.tokens; ++t)
    if (p.position[t] < 0)
      std::fill(row_at<Storage>(p.out, t, head) + begin, row_at<Storage>(p.out, t, head) + end, Storage{});
}

}  // namespace

void mla_write(const MlaWriteParams& params, int64_t begin, int64_t end) {
  visit_format(params.dtype, [&](auto format) { write_rows<decltype(format)>(params, begin, end); });
}

void mla_query(const MlaQueryParams& p, int64_t begin, int64_t end) {
  const int64_t tiles = p.latent / kBf16GemmTile;
  visit_format(p.dtype, [&](auto format) {
    using Format = decltype(format);
    for (int64_t at = begin; at < end;) {
      const int64_t head = at / tiles, first = at % tiles, last = std::min(tiles, first + end - at);
      const Bf16GemmParams product{
          .a = {bytes_at(p.q, 0, head, 0, p.dtype), p.q.stride, 1},
          .b = {bytes_at(p.w_k, head, 0, 0, p.dtype), p.w_k.row_stride, 1},
          .out = {bytes_at(p.out, 0, head, 0, p.dtype), p.out.stride, 1},
          .dtype = p.dtype,
          .out_dtype = p.dtype,
          .row_begin = 0,
          .row_end = p.tokens,
          .n = p.latent,
          .k = p.nope,
      };
      bf16_gemm_nt(product, first, last);
      clear_padding<Format>(p, head, first * kBf16GemmTile, last * kBf16GemmTile);
      if (first == 0) turn_head<Format>(p, head);
      at += last - first;
    }
  });
}

}  // namespace longcat_ops::cpu
