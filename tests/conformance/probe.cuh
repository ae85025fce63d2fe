// A device's properties as JSON, and three peak rates that bound every kernel. CUDA only.
#pragma once

#include <algorithm>
#include <sstream>

#include "box_ring.cuh"
#include "launches.cuh"

namespace longcat_ops::conformance {

constexpr uint32_t kReadStages = 4, kReadBytes = 32768;
constexpr int kProducts = 16;  // in a round, issued back to back on the same accumulators

// Every block reads its share of `data` by bulk copies, four in flight, and uses none of it.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) read_kernel(const uint8_t* data, uint32_t pieces) {
  const uint32_t bar = ptx::dynamic_smem_base(), buffer = bar + 1024;
  if (ptx::thread_index() != 0) return;
  for (uint32_t i = 0; i < kReadStages; ++i) ptx::mbarrier_init(bar + 8 * i, 1);
  ptx::fence_mbarrier_init();
  uint32_t issued = 0, done = 0;
  for (uint32_t piece = ptx::block_index(); piece < pieces; piece += ptx::grid_size(), ++issued) {
    if (issued >= kReadStages) {
      ptx::mbarrier_wait(bar + 8 * (done % kReadStages), done / kReadStages % 2);
      ++done;
    }
    const uint32_t stage = issued % kReadStages;
    ptx::mbarrier_arrive_expect_tx(bar + 8 * stage, kReadBytes);
    ptx::bulk_load(buffer + stage * kReadBytes, data + static_cast<uint64_t>(piece) * kReadBytes, kReadBytes,
                   bar + 8 * stage);
  }
  for (; done < issued; ++done) ptx::mbarrier_wait(bar + 8 * (done % kReadStages), done / kReadStages % 2);
}

// Two warpgroups a block multiply the same 64 x 128 and 256 x 128 tiles repeatedly, by m64n256k32.
LC_KERNEL LC_LAUNCH_BOUNDS(256, 1) multiply_kernel(uint32_t rounds, float* out) {
  const uint32_t base = ptx::dynamic_smem_base(), t = ptx::thread_index();
  // Codes without NaN: numbers of both signs and many exponents.
  for (uint32_t i = t; i < (64 + 256) * 32; i += 256) ptx::store_shared(base + 4 * i, (i * 2654435761u) & 0xf7b7d7b7u);
  ptx::fence_proxy_async_shared();
  ptx::sync_threads();
  const uint64_t a = ptx::make_descriptor(base, 16, 1024, ptx::Swizzle::k128B);
  const uint64_t b = ptx::make_descriptor(base + 8192, 16, 1024, ptx::Swizzle::k128B);
  float acc[128];
  for (uint32_t round = 0; round < rounds; ++round) {
    ptx::wgmma_fence();
    LC_UNROLL
    for (int i = 0; i < kProducts; ++i) ptx::wgmma_e4m3<256>(acc, a + 2 * (i % 4), b + 2 * (i % 4), i > 0 || round > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait_for<0>(acc);
  }
  LC_UNROLL
  for (int i = 1; i < 128; ++i) acc[0] += acc[i];
  ptx::store_global(out + 256 * ptx::block_index() + t, acc[0]);
}

// Median milliseconds of 7 calls, after one uncounted warm-up call.
template <class Call>
double milliseconds(Call call) {
  cudaEvent_t start, end;
  LC_CHECK(cudaEventCreate(&start));
  LC_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 8; ++i) {
    LC_CHECK(cudaEventRecord(start));
    call();
    LC_CHECK(cudaEventRecord(end));
    LC_CHECK(cudaEventSynchronize(end));
    float ms;
    LC_CHECK(cudaEventElapsedTime(&ms, start, end));
    if (i > 0) times.push_back(ms);
  }
  LC_CHECK(cudaEventDestroy(start));
  LC_CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

class JsonObject {
 public:
  template <class T>
  void add(const char* name, const T& value) {
    text_ << (text_.tellp() > 0 ? ", " : "") << '"' << name << "\": " << value;
  }
  void add(const char* name, const char* value) { add(name, '"' + std::string(value) + '"'); }
  std::string text() const { return '{' + text_.str() + '}'; }

 private:
  std::ostringstream text_;
};

inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  LC_CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

inline std::string device_facts() {
  cudaDeviceProp properties;
  LC_CHECK(cudaGetDeviceProperties(&properties, 0));
  int driver = 0, runtime = 0;
  LC_CHECK(cudaDriverGetVersion(&driver));
  LC_CHECK(cudaRuntimeGetVersion(&runtime));
  JsonObject facts;
  facts.add("device", properties.name);
  facts.add("compute_capability", properties.major * 10 + properties.minor);
  facts.add("driver_cuda", driver);
  facts.add("runtime_cuda", runtime);
  facts.add("sms", properties.multiProcessorCount);
  facts.add("memory_bytes", properties.totalGlobalMem);
  facts.add("l2_bytes", properties.l2CacheSize);
  facts.add("shared_bytes_per_block", properties.sharedMemPerBlockOptin);
  facts.add("sm_clock_khz", attribute(cudaDevAttrClockRate));
  facts.add("memory_clock_khz", attribute(cudaDevAttrMemoryClockRate));
  facts.add("memory_bus_bits", attribute(cudaDevAttrGlobalMemoryBusWidth));
  return facts.text();
}

// Whether this device could join a multicast object. Binds no memory: binding blocks until every member has joined.
inline std::string multicast_facts() {
  JsonObject facts;
  CUdevice device;
  auto* attribute_of = driver_function<decltype(cuDeviceGetAttribute)>("cuDeviceGetAttribute");
  auto* get_device = driver_function<decltype(cuDeviceGet)>("cuDeviceGet");
  if (get_device(&device, 0) != CUDA_SUCCESS) throw std::runtime_error("cuDeviceGet failed");
  auto ask = [&](const char* name, CUdevice_attribute which) {
    int value = -1;
    attribute_of(&value, which, device);
    facts.add(name, value);
    return value;
  };
  ask("virtual_memory", CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
  ask("handle_posix_fd", CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
  ask("handle_fabric", CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED);
  ask("multicast", CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED);
  auto* granularity_of = driver_function<decltype(cuMulticastGetGranularity)>("cuMulticastGetGranularity");
  auto* create = driver_function<decltype(cuMulticastCreate)>("cuMulticastCreate");
  auto* release = driver_function<decltype(cuMemRelease)>("cuMemRelease");
  for (const unsigned devices : {1u, 2u}) {
    CUmulticastObjectProp prop{};
    prop.numDevices = devices;
    prop.size = size_t{1} << 25;
    prop.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    size_t minimum = 0, recommended = 0;
    const std::string suffix = "_of_" + std::to_string(devices);
    const int status = granularity_of(&minimum, &prop, CU_MULTICAST_GRANULARITY_MINIMUM);
    granularity_of(&recommended, &prop, CU_MULTICAST_GRANULARITY_RECOMMENDED);
    facts.add(("granularity_status" + suffix).c_str(), status);
    facts.add(("granularity_minimum" + suffix).c_str(), minimum);
    facts.add(("granularity_recommended" + suffix).c_str(), recommended);
    CUmemGenericAllocationHandle handle;
    const int created = create(&handle, &prop);
    facts.add(("create_status" + suffix).c_str(), created);
    if (created == CUDA_SUCCESS) release(handle);
  }
  return facts.text();
}

// Bytes and operations a second. read: by TMA into shared memory; copy: device to device, reads plus writes.
inline std::string rates() {
  const auto sms = static_cast<uint32_t>(attribute(cudaDevAttrMultiProcessorCount));
  constexpr size_t kBytes = size_t{1} << 31;
  Machine machine(0, 0);
  auto* data = machine.output<uint8_t>(2 * kBytes);
  auto* out = machine.output<float>(256 * sms);
  const Launch read{sms, 32, 1024 + kReadStages * kReadBytes};
  const double read_ms = milliseconds([&] {
    machine.launch(read_kernel, read, static_cast<const uint8_t*>(data), static_cast<uint32_t>(kBytes / kReadBytes));
  });
  const double copy_ms =
      milliseconds([&] { LC_CHECK(cudaMemcpyAsync(data + kBytes, data, kBytes, cudaMemcpyDeviceToDevice)); });
  constexpr uint32_t kRounds = 5000;
  const double multiply_ms =
      milliseconds([&] { machine.launch(multiply_kernel, {sms, 256, (64 + 256) * 128}, kRounds, out); });
  JsonObject facts;
  facts.add("tma_read_gb_per_s", static_cast<double>(kBytes) / read_ms * 1e-6);
  facts.add("copy_gb_per_s", 2.0 * static_cast<double>(kBytes) / copy_ms * 1e-6);
  facts.add("e4m3_wgmma_tflop_per_s", 2.0 * sms * kRounds * kProducts * (2.0 * 64 * 256 * 32) / multiply_ms * 1e-9);
  return facts.text();
}

// out [2]: the smallest step of the device's timer in ns, and the number of steps seen.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) timer_kernel(uint64_t* out) {
  if (ptx::thread_index() != 0) return;
  uint64_t before = ptx::globaltimer_ns(), least = ~uint64_t{0}, steps = 0;
  const uint64_t begin = before;
  while (before - begin < 200000) {
    const uint64_t now = ptx::globaltimer_ns();
    if (now == before) continue;
    least = now - before < least ? now - before : least;
    before = now;
    ++steps;
  }
  ptx::store_global(out, least);
  ptx::store_global(out + 1, steps);
}

inline std::string timer() {
  Machine machine(0, 0);
  auto* out = machine.output<uint64_t>(2);
  machine.launch(timer_kernel, {}, out);
  uint64_t found[2];
  LC_CHECK(cudaMemcpy(found, out, sizeof found, cudaMemcpyDeviceToHost));
  JsonObject facts;
  facts.add("least_step_ns", found[0]);
  facts.add("mean_step_ns", 200000.0 / static_cast<double>(found[1]));
  return facts.text();
}

// The rate at which `sms` multiprocessors read HBM by TMA in boxes of 128 x 128 bytes: 4 MB each, from a matrix far
// larger than L2, starting at a different row each time.
inline std::string box_rate(uint32_t sms) {
  constexpr uint32_t kColumns = 48, kRows = 2048, kBoxesEach = 256;  // rows of 6144 bytes, 1.6 GB
  Machine machine(0, 0);
  const Tensor tensor = ring_tensor(kColumns, kRows);
  auto* data = machine.output<uint8_t>(tensor.bytes());
  auto* sums = machine.output<uint32_t>(sms);
  const uint32_t boxes = sms * kBoxesEach, step = (boxes + kColumns - 1) / kColumns * kBoxRows;
  uint32_t first_row = 0;
  const double ms = milliseconds([&] {
    if (first_row + step > kRows * kBoxRows) first_row = 0;
    Tensor part = tensor;
    part.sizes[1] = step;
    const uint8_t* from = data + uint64_t{first_row} * kColumns * kBoxBytes;
    machine.launch(box_ring_kernel, {sms, 32, kRingSmem}, machine.tensor_map(from, part), boxes, kColumns, sums);
    first_row += step;
  });
  const double bytes = static_cast<double>(boxes) * kBoxBytes * kBoxRows;
  JsonObject facts;
  facts.add("sms", sms);
  facts.add("us", 1e3 * ms);
  facts.add("gb_per_s", bytes / ms * 1e-6);
  facts.add("gb_per_s_of_one", bytes / ms * 1e-6 / sms);
  return facts.text();
}

// Counts stale words among `rounds` times kSeenWords.
inline std::string two_back(uint32_t rounds) {
  Machine machine(0, 0);
  const uint32_t* wrong = see_two_back(machine, rounds);
  uint32_t found = 0;
  LC_CHECK(cudaMemcpy(&found, wrong, sizeof found, cudaMemcpyDeviceToHost));
  JsonObject facts;
  facts.add("words", uint64_t{rounds} * kSeenWords);
  facts.add("wrong", found);
  return facts.text();
}

inline std::string probe(const std::string& what, uint32_t number) {
  if (what == "device") return device_facts();
  if (what == "multicast") return multicast_facts();
  if (what == "rates") return rates();
  if (what == "timer") return timer();
  if (what == "box_rate") return box_rate(number);
  if (what == "two_back") return two_back(number);
  throw std::invalid_argument("there is no probe " + what);
}

}  // namespace longcat_ops::conformance
