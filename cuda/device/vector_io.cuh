// Moves rows in chunks of 8 neighbouring elements, with 16-byte accesses on the wide path and element by element
// otherwise. Widths and group sizes are multiples of 8, so a chunk never straddles two rows or two groups.
#pragma once

#include <cstdint>
#include <cstring>

#include "ptx/ptx.cuh"

namespace longcat_ops::device {

constexpr uint32_t kChunk = 8;
constexpr uint32_t kNanBits = 0x7fc00000u;  // of float32, quiet

LC_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LC_DEVICE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// A format: its storage type, its 32-bit words per chunk, and both conversions (rounding to nearest even).
struct Float32 {
  using Storage = float;
  static constexpr int kWords = 8;
  static LC_DEVICE void unpack(const uint32_t (&words)[kWords], float (&values)[kChunk]) {
    LC_UNROLL
    for (int i = 0; i < kWords; ++i) values[i] = bits_float(words[i]);
  }
  static LC_DEVICE void pack(const float (&values)[kChunk], uint32_t (&words)[kWords]) {
    LC_UNROLL
    for (int i = 0; i < kWords; ++i) words[i] = float_bits(values[i]);
  }
};

struct Float16 {
  using Storage = uint16_t;
  static constexpr int kWords = 4;
  static LC_DEVICE void unpack(const uint32_t (&words)[kWords], float (&values)[kChunk]) {
    LC_UNROLL
    for (int i = 0; i < kWords; ++i) ptx::unpack_f16x2(words[i], values[2 * i], values[2 * i + 1]);
  }
  static LC_DEVICE void pack(const float (&values)[kChunk], uint32_t (&words)[kWords]) {
    LC_UNROLL
    for (int i = 0; i < kWords; ++i) words[i] = ptx::pack_f16x2(values[2 * i], values[2 * i + 1]);
  }
};

struct BFloat16 {
  using Storage = uint16_t;
  static constexpr int kWords = 4;
  static LC_DEVICE void unpack(const uint32_t (&words)[kWords], float (&values)[kChunk]) {
    LC_UNROLL
    for (int i = 0; i < kWords; ++i) ptx::unpack_bf16x2(words[i], values[2 * i], values[2 * i + 1]);
  }
  static LC_DEVICE void pack(const float (&values)[kChunk], uint32_t (&words)[kWords]) {
    LC_UNROLL
    for (int i = 0; i < kWords; ++i) words[i] = ptx::pack_bf16x2(values[2 * i], values[2 * i + 1]);
  }
};

// 8 elements as they lie in memory. All zero bits are eight zeros in every format.
template <class Format>
struct Chunk {
  uint32_t words[Format::kWords];
};

template <class Format>
LC_DEVICE void unpack(const Chunk<Format>& chunk, float (&values)[kChunk]) {
  Format::unpack(chunk.words, values);
}

template <class Format>
LC_DEVICE Chunk<Format> pack(const float (&values)[kChunk]) {
  Chunk<Format> chunk;
  Format::pack(values, chunk.words);
  return chunk;
}

// NOTE: plain ld.global, never .nc. Under programmatic dependent launch the kernel ahead may still write the input
// while this one runs, and .nc is defined only for memory that stays unwritten for the kernel's lifetime.
template <class Format, bool kWide>
LC_DEVICE Chunk<Format> load_chunk(const typename Format::Storage* from) {
  Chunk<Format> chunk;
  if constexpr (kWide) {
    LC_UNROLL
    for (int i = 0; i < Format::kWords; i += 4) {
      const ptx::Vec16 part = ptx::load_global(reinterpret_cast<const ptx::Vec16*>(from) + i / 4);
      chunk.words[i] = part.x;
      chunk.words[i + 1] = part.y;
      chunk.words[i + 2] = part.z;
      chunk.words[i + 3] = part.w;
    }
  } else if constexpr (Format::kWords == 8) {
    LC_UNROLL
    for (int i = 0; i < Format::kWords; ++i) chunk.words[i] = float_bits(ptx::load_global(from + i));
  } else {
    LC_UNROLL
    for (int i = 0; i < Format::kWords; ++i) {
      const uint32_t low = ptx::load_global(from + 2 * i), high = ptx::load_global(from + 2 * i + 1);
      chunk.words[i] = low | high << 16;
    }
  }
  return chunk;
}

// The first `count` elements, one by one; the others are 0.
template <class Format>
LC_DEVICE Chunk<Format> load_elements(const typename Format::Storage* from, uint32_t count) {
  Chunk<Format> chunk{};
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) {
    if (i >= count) continue;
    if constexpr (Format::kWords == 8) {
      chunk.words[i] = float_bits(ptx::load_global(from + i));
    } else {
      chunk.words[i / 2] |= static_cast<uint32_t>(ptx::load_global(from + i)) << 16 * (i % 2);
    }
  }
  return chunk;
}
template <class Format>
LC_DEVICE void store_elements(typename Format::Storage* to, const Chunk<Format>& chunk, uint32_t count) {
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) {
    if (i >= count) continue;
    if constexpr (Format::kWords == 8) {
      ptx::store_global(to + i, bits_float(chunk.words[i]));
    } else {
      ptx::store_global(to + i, static_cast<uint16_t>(chunk.words[i / 2] >> 16 * (i % 2)));
    }
  }
}

template <class Format, bool kWide>
LC_DEVICE void store_chunk(typename Format::Storage* to, const Chunk<Format>& chunk) {
  if constexpr (kWide) {
    LC_UNROLL
    for (int i = 0; i < Format::kWords; i += 4) {
      const ptx::Vec16 part{chunk.words[i], chunk.words[i + 1], chunk.words[i + 2], chunk.words[i + 3]};
      ptx::store_global(reinterpret_cast<ptx::Vec16*>(to) + i / 4, part);
    }
  } else {
    store_elements<Format>(to, chunk, kChunk);
  }
}

// 8 e4m3 codes, the first in the lowest byte of x.
template <bool kWide>
LC_DEVICE ptx::Vec8 load_codes(const uint8_t* from, uint32_t count = kChunk) {
  if constexpr (kWide) {
    return ptx::load_global(reinterpret_cast<const ptx::Vec8*>(from));
  } else {
    uint32_t words[2] = {0, 0};
    LC_UNROLL
    for (uint32_t i = 0; i < kChunk; ++i)
      if (i < count) words[i / 4] |= static_cast<uint32_t>(ptx::load_global(from + i)) << 8 * (i % 4);
    return {words[0], words[1]};
  }
}

template <bool kWide>
LC_DEVICE void store_codes(uint8_t* to, ptx::Vec8 codes) {
  if constexpr (kWide) {
    ptx::store_global(reinterpret_cast<ptx::Vec8*>(to), codes);
  } else {
    LC_UNROLL
    for (uint32_t i = 0; i < kChunk; ++i)
      ptx::store_global(to + i, static_cast<uint8_t>((i < 4 ? codes.x : codes.y) >> 8 * (i % 4)));
  }
}

// 8 floats that need no unpacking: the weight of a norm.
template <bool kWide>
LC_DEVICE void load_floats(const float* from, float (&values)[kChunk]) {
  unpack(load_chunk<Float32, kWide>(from), values);
}

}  // namespace longcat_ops::device
