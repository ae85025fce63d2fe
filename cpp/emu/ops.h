// What the emulated primitives (ptx/*.h) call. Not for kernels.
#pragma once

#include <cstdint>

#include "emu/error.h"

namespace longcat_ops::ptx {
struct TensorMap;
enum class MultimemType;
}  // namespace longcat_ops::ptx

namespace longcat_ops::emu {

enum class Scope : uint8_t { kCta, kCluster, kGpu, kSys };
enum class Order : uint8_t { kWeak, kRelaxed, kAcquire, kRelease, kAcqRel };
enum class Shuffle { kIndex, kXor, kUp };

uint32_t thread_index();
uint32_t block_index();
uint32_t grid_size();
uint32_t dynamic_smem_base();
uint64_t globaltimer_ns();
uint32_t sm_index();
uint32_t cluster_rank();
uint32_t cluster_size();
uint32_t cluster_index();
uint32_t cluster_address(uint32_t address, uint32_t rank, const Location& where);
void cluster_arrive(bool release, const Location& where);
void cluster_wait(const Location& where);
void grid_dependency_wait(const Location& where);
void grid_dependency_launch(const Location& where);
void set_max_registers(uint32_t count, bool increase, const Location& where);
bool elect_one(const Location& where);
uint32_t shuffle(uint32_t value, Shuffle kind, int argument, const Location& where);
uint32_t ballot(bool predicate, const Location& where);
uint32_t redux(uint32_t value, bool largest, const Location& where);
uint32_t match_any(uint32_t value, const Location& where);
void warp_sync(const Location& where);
void sync_threads(const Location& where);
void named_barrier(uint32_t id, uint32_t threads, bool wait, const Location& where);
void spin_pause(const Location& where);

void load_shared(uint32_t address, void* value, uint32_t bytes, const Location& where);
void store_shared(uint32_t address, const void* value, uint32_t bytes, const Location& where);
void load_cluster(uint32_t address, void* value, uint32_t bytes, const Location& where);
void store_cluster(uint32_t address, const void* value, uint32_t bytes, const Location& where);
void load_cluster_strong(uint32_t address, void* value, uint32_t bytes, Order order, const Location& where);
void store_cluster_strong(uint32_t address, const void* value, uint32_t bytes, Order order, const Location& where);
uint32_t atomic_add_cluster(uint32_t address, uint32_t value, Order order, const Location& where);
void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t barrier, const Location& where);
void load_global(const void* address, void* value, uint32_t bytes, bool read_only, const Location& where);
void prefetch_global(const void* address, const Location& where);
void store_global(void* address, const void* value, uint32_t bytes, const Location& where);
void load_strong(const void* address, void* value, uint32_t bytes, Order order, Scope scope, const Location& where);
void store_strong(void* address, const void* value, uint32_t bytes, Order order, Scope scope, const Location& where);
uint32_t atomic_add(uint32_t* address, uint32_t value, Order order, Scope scope, const Location& where);
void fence_acq_rel(Scope scope, const Location& where);
// own: shared memory of the CTA; cluster: what this thread has written in other CTAs' shared memory.
void fence_proxy_async(bool own, bool cluster, bool global);
void fence_proxy_alias(const Location& where);
void fence_release_shared_cluster();
void fence_acquire_shared_cluster();
void fence_mbarrier_init();

enum class Reduction { kAdd, kMin, kMax };
void multimem_load(const void* address, void* value, uint32_t bytes, ptx::MultimemType type, Reduction reduction,
                   Order order, const Location& where);  // sys scope
void multimem_store(void* address, const void* value, uint32_t bytes, Order order, const Location& where);
void multimem_add(void* address, const void* value, uint32_t bytes, Order order, Scope scope, const Location& where);
void multimem_add(void* address, const void* value, uint32_t bytes, ptx::MultimemType type, Order order,
                  const Location& where);

void mbarrier_init(uint32_t address, uint32_t count, const Location& where);
void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t expect_bytes, const Location& where);  // count may be 0
void mbarrier_arrive_cluster(uint32_t address, uint32_t count, uint32_t expect_bytes, Order order, Scope scope,
                             const Location& where);
bool mbarrier_try_wait(uint32_t address, uint32_t parity, Order order, Scope scope, const Location& where);
bool mbarrier_test_wait(uint32_t address, uint32_t parity, Order order, Scope scope, const Location& where);
void mbarrier_wait(uint32_t address, uint32_t parity, Order order, Scope scope, const Location& where);

constexpr uint64_t kPolicyEvictFirst = 0xe71c7f, kPolicyEvictLast = 0xe71c71;
void check_policy(uint64_t policy, const Location& where);
void tma_load(uint32_t dst, const ptx::TensorMap& map, uint32_t barrier, const int32_t* coord, uint32_t rank,
              const Location& where);
void tma_load_multicast(uint32_t dst, const ptx::TensorMap& map, uint32_t barrier, const int32_t* coord, uint32_t rank,
                        uint32_t cta_mask, const Location& where);
void tma_store(const ptx::TensorMap& map, uint32_t src, const int32_t* coord, uint32_t rank, const Location& where);
void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t barrier, const Location& where);
void bulk_store(void* dst, uint32_t src, uint32_t bytes, const Location& where);
void bulk_commit();
void bulk_wait(uint32_t keep, bool read_only, const Location& where);

struct WgmmaCall {
  float* accumulator;
  int n;
  bool bf16 = false;        // else e4m3
  bool mn_major_a = false;  // bf16 only
  bool mn_major_b = false;
  const uint32_t* a_registers = nullptr;  // null: A comes from shared memory
  uint64_t a = 0;
  uint64_t b = 0;
  bool accumulate = true;
};
void wgmma_fence(const Location& where);
void wgmma(const WgmmaCall& call, const Location& where);
void wgmma_commit(const Location& where);
void wgmma_wait(uint32_t keep, const Location& where);

void load_matrix(uint32_t* registers, int count, bool transposed, uint32_t row_address, const Location& where);
void store_matrix(const uint32_t* registers, int count, bool transposed, uint32_t row_address, const Location& where);

}  // namespace longcat_ops::emu
