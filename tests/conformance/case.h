// A conformance case: tiny kernels whose raw outputs show what a primitive of cuda/ptx does, and the outputs that the
// PTX ISA specifies. g++ compiles the same source over the emulator, nvcc for sm_90a. docs/hardware.md tells how to add
// one.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ptx/ptx.cuh"

namespace longcat_ops::conformance {

struct Launch {
  uint32_t grid = 1;
  uint32_t block = 32;
  uint32_t smem = 0;       // bytes
  bool dependent = false;  // programmatic dependent launch: may start before the previous launch ends
  uint32_t cluster = 1;    // blocks
};

enum class Element { kU8, kU16, kU32 };

inline uint32_t element_bytes(Element element) {
  return element == Element::kU8 ? 1 : element == Element::kU16 ? 2 : 4;
}

// A tiled tensor in global memory, fastest dimension first.
struct Tensor {
  Element element;
  std::vector<uint64_t> sizes;
  std::vector<uint64_t> strides;  // bytes, from the second dimension on: multiples of 16 and of each other
  std::vector<uint32_t> box;
  ptx::Swizzle swizzle = ptx::Swizzle::kNone;

  uint64_t bytes() const { return strides.empty() ? sizes[0] * element_bytes(element) : strides.back() * sizes.back(); }
  uint32_t box_bytes() const {
    uint32_t bytes = element_bytes(element);
    for (const uint32_t extent : box) bytes *= extent;
    return bytes;
  }
};

// A case's concatenated outputs, and what they should be.
struct Result {
  std::vector<uint8_t> actual, expected;
};

// A fixed sequence of 32-bit numbers, the same on every machine.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}
  uint32_t next() {  // splitmix64
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32);
  }
  uint32_t below(uint32_t bound) { return next() % bound; }

 private:
  uint64_t state_;
};

template <class T>
std::vector<T> random_values(size_t count, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(numbers.next());
  return values;
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

class Machine;

struct Case {
  std::string name;        // chapter/what
  std::string primitives;  // the wrappers of cuda/ptx that it covers, separated by spaces
  std::string note;        // what the machine may choose and how the output hides it, or the expectation's source
  std::function<void(Machine&)> run;
};

class Cases {
 public:
  void add(std::string name, std::string primitives, std::function<void(Machine&)> run, std::string note = "") {
    for (const Case& other : all_)
      if (other.name == name) throw std::logic_error("two conformance cases are named " + name);
    all_.push_back({std::move(name), std::move(primitives), std::move(note), std::move(run)});
  }
  const std::vector<Case>& all() const { return all_; }

 private:
  std::vector<Case> all_;
};

}  // namespace longcat_ops::conformance

#ifdef LC_EMULATE
#include "machine_emu.h"
#else
#include "machine_cuda.h"
#endif
