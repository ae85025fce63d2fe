// The machine of a case: GPU device 0. machine_emu.h has the same interface. nvcc compiles it; it links no libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

namespace longcat_ops::conformance {

inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}
#define LC_CHECK(call) ::longcat_ops::conformance::check(call, #call)

// Looks up an entry point of the driver at run time.
template <class Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  LC_CHECK(cudaGetDriverEntryPointByVersion(name, &found, 12010, cudaEnableDefault, &status));
  if (status != cudaDriverEntryPointSuccess) throw std::runtime_error(std::string("the driver has no ") + name);
  return reinterpret_cast<Function*>(found);
}

class Machine {
 public:
  Machine(uint64_t, int) {}
  ~Machine() {
    for (void* memory : memory_) cudaFree(memory);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  template <class T>
  T* input(const std::vector<T>& values) {
    T* memory = allocate<T>(values.size());
    LC_CHECK(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return memory;
  }

  template <class T>
  T* output(size_t count) {
    T* memory = allocate<T>(count);
    LC_CHECK(cudaMemset(memory, 0xcd, count * sizeof(T)));
    return memory;
  }

  ptx::TensorMap tensor_map(const void* base, const Tensor& tensor) {
    constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                              CU_TENSOR_MAP_DATA_TYPE_UINT32};
    constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                                CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
    static auto* const encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
    const std::vector<cuuint64_t> sizes(tensor.sizes.begin(), tensor.sizes.end());
    std::vector<cuuint64_t> strides(tensor.strides.begin(), tensor.strides.end());
    strides.push_back(0);  // a tensor of rank 1 has no strides, but the pointer must not be null
    const std::vector<cuuint32_t> steps(sizes.size(), 1);
    CUtensorMap encoded;
    const CUresult status =
        encode(&encoded, kTypes[static_cast<int>(tensor.element)], static_cast<cuuint32_t>(sizes.size()),
               const_cast<void*>(base), sizes.data(), strides.data(), tensor.box.data(), steps.data(),
               CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(tensor.swizzle)],
               CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) throw std::runtime_error("cuTensorMapEncodeTiled: " + std::to_string(status));
    ptx::TensorMap map;
    static_assert(sizeof map == sizeof encoded);
    memcpy(&map, &encoded, sizeof map);
    return map;
  }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), const Launch& launch, const A&... arguments) {
    constexpr uint32_t kDefaultSmem = 48 * 1024;  // more needs an attribute
    if (launch.smem > kDefaultSmem)
      LC_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(launch.smem)));
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {launch.cluster, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = launch.dependent ? 1 : 0;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(launch.grid);
    config.blockDim = dim3(launch.block);
    config.dynamicSmemBytes = launch.smem;
    config.attrs = attributes;
    config.numAttrs = 2;
    LC_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

  template <class T>
  void expect(const T* memory, const std::vector<T>& expected) {
    LC_CHECK(cudaDeviceSynchronize());
    std::vector<uint8_t>& actual = result.actual;
    const size_t at = actual.size(), bytes = expected.size() * sizeof(T);
    actual.resize(at + bytes);
    LC_CHECK(cudaMemcpy(actual.data() + at, memory, bytes, cudaMemcpyDeviceToHost));
    const auto* wanted = reinterpret_cast<const uint8_t*>(expected.data());
    result.expected.insert(result.expected.end(), wanted, wanted + bytes);
  }

  Result result;

 private:
  template <class T>
  T* allocate(size_t count) {
    void* memory = nullptr;
    LC_CHECK(cudaMalloc(&memory, count * sizeof(T)));
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }

  std::vector<void*> memory_;
};

}  // namespace longcat_ops::conformance
