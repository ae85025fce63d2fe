// Vector clocks: component c at time t is known to have happened before the owner when clock[c] >= t.
//
// Components are threads, wgmma engines, mbarriers (for the copies they count) and bulk groups. The vector is kept in
// reference-counted chunks that are copied on write: threads that met at a barrier share all chunks but their own.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace longcat_ops::emu {

class VectorClock {
 public:
  static constexpr uint32_t kChunk = 32;

  VectorClock() = default;
  VectorClock(const VectorClock& other);
  VectorClock(VectorClock&& other) noexcept : chunks_(std::move(other.chunks_)) { other.chunks_.clear(); }
  VectorClock& operator=(VectorClock other) noexcept {
    chunks_.swap(other.chunks_);
    return *this;
  }
  ~VectorClock() { clear(); }

  uint32_t operator[](uint32_t component) const {
    const uint32_t index = component / kChunk;
    if (index >= chunks_.size() || chunks_[index] == nullptr) return 0;
    return chunks_[index]->time[component % kChunk];
  }
  bool empty() const { return chunks_.empty(); }
  void clear();
  void raise(uint32_t component, uint32_t time);  // to at least time
  void join(const VectorClock& other);            // elementwise maximum
  void meet(const VectorClock& other);            // elementwise minimum

 private:
  struct Chunk {
    uint32_t references;
    uint32_t time[kChunk];
  };

  static void release(Chunk* chunk);
  static Chunk* share(Chunk* chunk);
  static void make_own(Chunk*& chunk);

  std::vector<Chunk*> chunks_;  // null: all zero
};

// What a thread knows.
struct Clock {
  VectorClock order;         // happened before
  VectorClock async_shared;  // writes to shared memory that the async proxy may see
  VectorClock async_global;  // the same for global memory
  VectorClock order_shared;  // happened before as far as a CTA's accesses to its own shared memory go
  VectorClock alias;         // accesses that those through the other kind of address (multicast or not) may see

  void join(const Clock& other) {
    order.join(other.order);
    async_shared.join(other.async_shared);
    async_global.join(other.async_global);
    order_shared.join(other.order_shared);
    alias.join(other.alias);
  }
  // From another CTA, whose proxy fences for global memory serve only itself.
  void join_across(const Clock& other) {
    order.join(other.order);
    async_shared.join(other.async_shared);
    order_shared.join(other.order_shared);
    alias.join(other.alias);
  }
  void clear() {
    order.clear();
    async_shared.clear();
    async_global.clear();
    order_shared.clear();
    alias.clear();
  }
};

}  // namespace longcat_ops::emu
