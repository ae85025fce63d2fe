// A neighbour for other kernels: blocks that hold shared memory and run until they are stopped. CUDA only.
#pragma once

#include <chrono>
#include <set>
#include <thread>

#include "launches.cuh"
#include "probe.cuh"

namespace longcat_ops::conformance {

class Neighbour {
 public:
  // Returns when all blocks have started. carveout: preferred shared memory carveout in per cent, -1 for no preference.
  Neighbour(uint32_t blocks, uint32_t bytes, int carveout, uint32_t limit_ms) : blocks_(blocks), machine_(0, 0) {
    LC_CHECK(cudaHostAlloc(&flags_, (blocks + 1) * sizeof(uint32_t), cudaHostAllocMapped));
    for (uint32_t i = 0; i <= blocks; ++i) flags_[i] = 0;
    void* flags = nullptr;
    LC_CHECK(cudaHostGetDevicePointer(&flags, const_cast<uint32_t*>(flags_), 0));
    places_ = machine_.output<uint32_t>(2 * blocks);
    LC_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    const auto* kernel = reinterpret_cast<const void*>(stay_kernel);
    LC_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, carveout));
    auto* words = static_cast<uint32_t*>(flags);
    stay_kernel<<<blocks, 32, bytes, stream_>>>(words + blocks, uint64_t{1000000} * limit_ms, words, places_);
    LC_CHECK(cudaGetLastError());
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
    while (started() < blocks && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  ~Neighbour() {
    flags_[blocks_] = 1;
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
    cudaFreeHost(const_cast<uint32_t*>(flags_));
  }
  Neighbour(const Neighbour&) = delete;
  Neighbour& operator=(const Neighbour&) = delete;

  // Reports the started blocks, the multiprocessors they ran on, and the blocks whose time ran out before the stop.
  std::string stop() {
    JsonObject facts;
    facts.add("blocks", started());
    flags_[blocks_] = 1;
    LC_CHECK(cudaStreamSynchronize(stream_));
    std::vector<uint32_t> places(2 * blocks_);
    LC_CHECK(cudaMemcpy(places.data(), places_, places.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost));
    std::set<uint32_t> sms;
    uint32_t late = 0;
    for (uint32_t i = 0; i < blocks_; ++i) {
      sms.insert(places[2 * i]);
      late += places[2 * i + 1] == 2;
    }
    facts.add("sms", sms.size());
    facts.add("late", late);
    return facts.text();
  }

 private:
  uint32_t started() const {
    uint32_t count = 0;
    for (uint32_t i = 0; i < blocks_; ++i) count += flags_[i];
    return count;
  }

  uint32_t blocks_;
  Machine machine_;
  volatile uint32_t* flags_ = nullptr;  // a started flag per block, then the stop flag
  uint32_t* places_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace longcat_ops::conformance
