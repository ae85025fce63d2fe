// The machine of a case: the host emulator. machine_cuda.h has the same interface.
#pragma once

#include "emu/world.h"

namespace longcat_ops::conformance {

class Machine {
 public:
  // policy: 0 random, 1 asynchronous work first, 2 last.
  Machine(uint64_t seed, int policy) : world_(seed, static_cast<emu::Policy>(policy), settings()) {}

  // Memory of the device with these values; kernels may write it.
  template <class T>
  T* input(const std::vector<T>& values) {
    T* memory = world_.alloc_array<T>(values.size(), 0, "input", true);
    memcpy(memory, values.data(), values.size() * sizeof(T));
    return memory;
  }

  // Memory of the device, filled with 0xcd bytes.
  template <class T>
  T* output(size_t count) {
    T* memory = world_.alloc_array<T>(count, 0, "output", true);
    memset(memory, 0xcd, count * sizeof(T));
    return memory;
  }

  ptx::TensorMap tensor_map(const void* base, const Tensor& tensor) {
    ptx::TensorMap map{};
    map.base = static_cast<uint8_t*>(const_cast<void*>(base));
    map.rank = static_cast<uint32_t>(tensor.sizes.size());
    map.element_size = element_bytes(tensor.element);
    for (uint32_t i = 0; i < map.rank; ++i) {
      map.sizes[i] = tensor.sizes[i];
      map.strides[i] = i == 0 ? map.element_size : tensor.strides[i - 1];
      map.box[i] = tensor.box[i];
    }
    map.swizzle = tensor.swizzle;
    return map;
  }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), const Launch& launch, const A&... arguments) {
    emu::Launch one;
    one.grid = launch.grid;
    one.block = launch.block;
    one.smem_bytes = launch.smem;
    one.dependent_launch = launch.dependent;
    one.cluster = launch.cluster;
    one.body = [=] { kernel(arguments...); };
    world_.launch(std::move(one));
  }

  // Appends memory that the launches wrote, and the values that the ISA specifies, to the result.
  template <class T>
  void expect(const T* memory, const std::vector<T>& expected) {
    world_.synchronize();
    append(result.actual, memory, expected.size());
    append(result.expected, expected.data(), expected.size());
  }

  Result result;

 private:
  static emu::Settings settings() {
    emu::Settings settings;
    settings.mma_mode = emu::MmaMode::kHopper;
    return settings;
  }
  template <class T>
  static void append(std::vector<uint8_t>& to, const T* values, size_t count) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values);
    to.insert(to.end(), bytes, bytes + count * sizeof(T));
  }

  emu::World world_;
};

}  // namespace longcat_ops::conformance
