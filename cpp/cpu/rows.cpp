#include "cpu/rows.h"

#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

template <class Format>
LC_INLINE void silu_body(const SiluAndMulParams& p, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  for (int64_t row = begin; row < end; ++row) {
    const Storage* __restrict gate = row_of<const Storage>(p.gate_up, row);
    const Storage* __restrict up = gate + p.width;
    Storage* __restrict out = row_of<Storage>(p.out, row);
    for (int64_t i = 0; i < p.width; ++i) out[i] = Format::store(silu(Format::load(gate[i])) * Format::load(up[i]));
  }
}

template <class Format>
void silu_baseline(const SiluAndMulParams& p, int64_t begin, int64_t end) {
  silu_body<Format>(p, begin, end);
}
template <class Format>
LC_TARGET_AVX2 void silu_avx2(const SiluAndMulParams& p, int64_t begin, int64_t end) {
  silu_body<Format>(p, begin, end);
}
template <class Format>
LC_TARGET_AVX512 void silu_avx512(const SiluAndMulParams& p, int64_t begin, int64_t end) {
  silu_body<Format>(p, begin, end);
}

}  // namespace

void embed_rows(const EmbedParams& p, int64_t begin, int64_t end) {
  const int64_t size = element_size(p.dtype);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t id = p.ids[t];
    char* to = row_of<char>({p.out.data, p.out.row_stride * size, 1}, t);
    if (id < 0 || id >= p.vocabulary)
      std::memset(to, 0, p.width * size);
    else
      std::memcpy(to, row_of<char>({p.table.data, p.table.row_stride * size, 1}, id), p.width * size);
  }
}

void silu_and_mul(const SiluAndMulParams& params, int64_t begin, int64_t end) {
  visit_format(params.dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return silu_baseline<Format>(params, begin, end);
      case Isa::kAvx2: return silu_avx2<Format>(params, begin, end);
      case Isa::kAvx512: return silu_avx512<Format>(params, begin, end);
    }
  });
}

}  // namespace longcat_ops::cpu
