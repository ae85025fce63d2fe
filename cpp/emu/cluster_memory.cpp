// Accesses to shared memory anywhere in the cluster.
#include <algorithm>
#include <array>
#include <cstring>

#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

// Checks and records the access; returns the bytes.
uint8_t* access_cluster(uint32_t address, uint32_t bytes, bool write, uint8_t strength, const char* operation,
                        const Location& where) {
  Cta& cta = cluster_target(address, bytes, operation, where);
  check_alignment(address, bytes, operation, where);
  if (cta.barriers.touches_live(address - cta.smem_base, bytes))
    fail("mbarrier", std::string(operation) + " touches a live mbarrier", where);
  Access access = cluster_access(cta, where, operation);
  access.write = write;
  access.strength = strength;
  access.check_initialised = !write;
  engine().check_shared(cta, address, bytes, access);
  return cta.shared(address, bytes, operation, where);
}

uint8_t* access_flag(uint32_t address, uint32_t bytes, bool write, const char* operation, const Location& where) {
  constexpr uint8_t kStrength = 1 + uint8_t(Scope::kCluster);
  uint8_t* flag = access_cluster(address, bytes, write, kStrength, operation, where);
  std::vector<uint64_t>& flags = cluster_target(address, bytes, operation, where).flags;
  const uint64_t key = reinterpret_cast<uint64_t>(flag);
  if (write && std::find(flags.begin(), flags.end(), key) == flags.end()) flags.push_back(key);
  return flag;
}

struct AsyncStore : AsyncOperation {
  bool step() override {
    std::memcpy(cta->shared(dst, bytes, "st.async", where), data.data(), bytes);
    barrier->arriving.across_cluster |= across;
    barrier->complete_tx(bytes, phase, where);
    --cta->copies_in_flight;
    return true;
  }

  Cta* cta;
  MBarrier* barrier;
  uint32_t phase;
  uint32_t dst;
  uint32_t bytes;
  bool across;  // from another CTA
  std::array<uint8_t, 16> data;
  Location where;
};

}  // namespace

void load_cluster(uint32_t address, void* value, uint32_t bytes, const Location& where) {
  std::memcpy(value, access_cluster(address, bytes, false, kWeak, "ld.shared::cluster", where), bytes);
}

void store_cluster(uint32_t address, const void* value, uint32_t bytes, const Location& where) {
  std::memcpy(access_cluster(address, bytes, true, kWeak, "st.shared::cluster", where), value, bytes);
}

void load_cluster_strong(uint32_t address, void* value, uint32_t bytes, Order order, const Location& where) {
  maybe_yield(where);
  engine().note_poll(where);
  const uint8_t* flag = access_flag(address, bytes, false, "ld at cluster scope", where);
  look(this_thread(), flag);
  std::memcpy(value, flag, bytes);
  observe(flag, order, Scope::kCluster, where);
}

void store_cluster_strong(uint32_t address, const void* value, uint32_t bytes, Order order, const Location& where) {
  maybe_yield(where);
  uint8_t* flag = access_flag(address, bytes, true, "st at cluster scope", where);
  std::memcpy(flag, value, bytes);
  publish(flag, make_release(this_thread(), order, Scope::kCluster), false);
  engine().note_event(flag, bytes);
}

uint32_t atomic_add_cluster(uint32_t address, uint32_t value, Order order, const Location& where) {
  maybe_yield(where);
  access_flag(address, sizeof value, false, "atomic add in the cluster", where);
  uint8_t* flag = access_flag(address, sizeof value, true, "atomic add in the cluster", where);
  if (order == Order::kAcqRel) observe(flag, order, Scope::kCluster, where);
  uint32_t old;
  std::memcpy(&old, flag, sizeof old);
  const uint32_t sum = old + value;
  std::memcpy(flag, &sum, sizeof sum);
  publish(flag, make_release(this_thread(), order, Scope::kCluster), true);
  engine().note_event(flag, sizeof sum);
  return old;
}

// A write of the generic proxy that happens later and counts on the mbarrier, as a copy's bytes do.
void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t barrier_address, const Location& where) {
  constexpr const char* kName = "st.async";
  maybe_yield(where);
  Thread& self = this_thread();
  Cta& cta = cluster_target(address, bytes, kName, where);
  check_alignment(address, bytes, kName, where);
  if (cta.cluster->size() == 1) fail("cluster", "st.async needs a cluster of more than one CTA", where);
  if (&cluster_target(barrier_address, 8, kName, where) != &cta)
    fail("cluster", "st.async: the destination and the mbarrier are in different CTAs", where);
  if (cta.barriers.touches_live(address - cta.smem_base, bytes))
    fail("mbarrier", "st.async overwrites a live mbarrier", where);
  MBarrier& barrier = live_barrier(cta, barrier_address, where);
  Access access{.component = barrier.component, .time = barrier.copy_time(), .order = &self.clock.order};
  access.order_shared = &self.clock.order_shared;
  access.write = true;
  access.site = engine().site(where, kName);
  engine().check_shared(cta, address, bytes, access);
  note_foreign(cta, access);
  auto store = std::make_shared<AsyncStore>();
  store->cta = &cta;
  store->barrier = &barrier;
  store->phase = barrier.phase;
  store->dst = address;
  store->bytes = bytes;
  store->across = &cta != self.cta;
  std::memcpy(store->data.data(), value, bytes);
  store->where = where;
  ++cta.copies_in_flight;
  engine().enqueue(std::move(store));
}

}  // namespace longcat_ops::emu
