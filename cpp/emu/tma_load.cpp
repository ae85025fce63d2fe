// Copies that complete on an mbarrier, to shared memory of one CTA or of several in a cluster.
#include <cstring>

#include "emu/engine.h"
#include "emu/tensor_box.h"

namespace longcat_ops::emu {
namespace {

// Where a copy puts its bytes, and which mbarrier counts them.
struct Target {
  Target(Cta& cta_, uint32_t dst_, uint32_t barrier_address, const Location& where)
      : cta(cta_), dst(dst_), barrier(live_barrier(cta_, barrier_address, where)) {
    if (!barrier.fenced)
      fail("mbarrier", "the async proxy may not see the mbarrier's initialisation: fence.mbarrier_init is missing",
           where);
  }

  Cta& cta;
  uint32_t dst;
  MBarrier& barrier;
};

struct Load : AsyncOperation {
  Load(const Target& target, const Location& where_)
      : cta(&target.cta), barrier(&target.barrier), phase(barrier->phase), dst(target.dst), where(where_) {
    ++cta->copies_in_flight;
  }

  // Some of the `units` that are left; all of them if asynchronous work is eager.
  uint32_t next_share(uint32_t units) const {
    return engine().policy == Policy::kEager ? units : 1 + engine().random.below(units);
  }
  bool finish(bool done) {
    if (done) --cta->copies_in_flight;
    return done;
  }

  Cta* cta;
  MBarrier* barrier;
  uint32_t phase;
  uint32_t dst;
  Location where;
};

struct TensorLoad : Load {
  TensorLoad(const Target& target, const TensorBox& box_, const Location& where_)
      : Load(target, where_), box(box_), row_data(box_.row_bytes) {}

  void copy_row(uint32_t index) {
    const TensorBox::Span span = box.row(index);
    std::fill(row_data.begin(), row_data.end(), uint8_t(0));
    if (span.bytes > 0) std::memcpy(row_data.data() + span.skip, span.global, span.bytes);
    for (uint32_t b = 0; b < box.row_bytes; b += 16)
      std::memcpy(cta->shared(swizzled(dst + index * box.row_bytes + b, box.map.swizzle), 16, "TMA load", where),
                  row_data.data() + b, 16);
  }

  bool step() override {
    const uint32_t count = next_share(box.rows - rows_done);
    for (uint32_t i = 0; i < count; ++i) copy_row(rows_done + i);
    rows_done += count;
    // NOTE: bytes outside the tensor count as well.
    barrier->complete_tx(count * box.row_bytes, phase, where);
    return finish(rows_done == box.rows);
  }

  TensorBox box;
  std::vector<uint8_t> row_data;
  uint32_t rows_done = 0;
};

struct BulkLoad : Load {
  BulkLoad(const uint8_t* src_, const Target& target, uint32_t bytes_, const Location& where_)
      : Load(target, where_), src(src_), bytes(bytes_) {}

  bool step() override {
    const uint32_t count = 16 * next_share((bytes - bytes_done) / 16);
    std::memcpy(cta->shared(dst + bytes_done, count, "bulk load", where), src + bytes_done, count);
    bytes_done += count;
    barrier->complete_tx(count, phase, where);
    return finish(bytes_done == bytes);
  }

  const uint8_t* src;
  uint32_t bytes;
  uint32_t bytes_done = 0;
};

Target own_target(uint32_t dst, uint32_t barrier, const Location& where) {
  return {*this_thread().cta, dst, barrier, where};
}

// The CTAs of the mask, each with the destination and the mbarrier at the offsets that they have in this CTA.
std::vector<Target> multicast_targets(uint32_t dst, uint32_t barrier, uint32_t cta_mask, const char* operation,
                                      const Location& where) {
  Cta& self = *this_thread().cta;
  self.shared(dst, 1, operation, where);
  self.shared(barrier, 8, operation, where);
  if (cta_mask == 0) fail("cluster", std::string(operation) + ": the mask names no CTA", where);
  std::vector<Target> targets;
  for (uint32_t rank = 0; rank < 32; ++rank) {
    if ((cta_mask >> rank & 1) == 0) continue;
    Cta& cta = cluster_peer(rank, operation, where);
    targets.emplace_back(cta, cta.smem_base + (dst - self.smem_base), cta.smem_base + (barrier - self.smem_base),
                         where);
  }
  return targets;
}

// An access on behalf of a copy that `barrier` counts, issued by this thread.
Access copy_access(const MBarrier& barrier, bool write, const char* operation, const Location& where) {
  const Thread& self = this_thread();
  Access access{.component = barrier.component, .time = barrier.copy_time(), .order = &self.clock.order};
  access.async_visible = write ? &self.clock.async_shared : &self.clock.async_global;
  if (write) access.order_shared = &self.clock.order_shared;
  access.write = write;
  access.site = engine().site(where, operation);
  access.launch = self.cta->grid->number;
  return access;
}

void check_destination(const Target& target, uint32_t bytes, const Access& access, const char* operation,
                       const Location& where) {
  Cta& cta = target.cta;
  cta.shared(target.dst, bytes, operation, where);
  if (cta.barriers.touches_live(target.dst - cta.smem_base, bytes))
    fail("mbarrier", std::string(operation) + " overwrites a live mbarrier", where);
  engine().check_shared(cta, target.dst, bytes, access);
  if (&cta != this_thread().cta) note_foreign(cta, access);
}

void start_tensor_load(const Target& target, const TensorBox& box, const char* operation, const Location& where) {
  Access write = copy_access(target.barrier, true, operation, where);
  write.swizzle = uint8_t(box.map.swizzle);
  check_destination(target, box.bytes(), write, operation, where);
  const Access read = copy_access(target.barrier, false, operation, where);
  for (uint32_t r = 0; r < box.rows; ++r) {
    const TensorBox::Span span = box.row(r);
    if (span.bytes == 0) continue;
    engine().check_global(engine().find_global(span.global, span.bytes, operation, where), span.global, span.bytes,
                          read);
  }
  engine().enqueue(std::make_shared<TensorLoad>(target, box, where));
}

}  // namespace

void check_tensor_copy(const ptx::TensorMap& map, uint32_t smem_address, uint32_t rank, const char* operation,
                       const Location& where) {
  constexpr uint32_t kSpan[] = {0, 32, 64, 128};
  const std::string prefix = std::string(operation) + ": ";
  auto require = [&](bool condition, const char* text) {
    if (!condition) fail("tensor-map", prefix + text, where);
  };
  check_alignment(smem_address, 128, operation, where);
  require(map.rank == rank, "the map has another rank than the coordinates");
  require(map.rank >= 1 && map.rank <= 5, "the rank is not 1 to 5");
  require(map.element_size == 1 || map.element_size == 2 || map.element_size == 4 || map.element_size == 8,
          "the element size is not 1, 2, 4 or 8");
  require(reinterpret_cast<uint64_t>(map.base) % 16 == 0, "the tensor is not at a multiple of 16 B");
  require(map.strides[0] == map.element_size, "the fastest dimension is not contiguous");
  for (uint32_t d = 0; d < rank; ++d) {
    require(map.box[d] >= 1 && map.box[d] <= 256, "a side of the box is not 1 to 256");
    require(map.sizes[d] >= 1, "a dimension is empty");
    require(d == 0 || map.strides[d] % 16 == 0, "a stride is not a multiple of 16 B");
  }
  const uint32_t row_bytes = map.box[0] * map.element_size;
  require(row_bytes % 16 == 0, "the box is not a multiple of 16 B wide");
  if (map.swizzle != ptx::Swizzle::kNone)
    require(row_bytes == kSpan[int(map.swizzle)], "the box is not as wide as the swizzle (narrower is not modelled)");
}

void check_policy(uint64_t policy, const Location& where) {
  if (policy != kPolicyEvictFirst && policy != kPolicyEvictLast)
    fail("policy", "a cache hint that no create_policy made", where);
}

void tma_load(uint32_t dst, const ptx::TensorMap& map, uint32_t barrier, const int32_t* coord, uint32_t rank,
              const Location& where) {
  constexpr const char* kName = "TMA load";
  maybe_yield(where);
  check_tensor_copy(map, dst, rank, kName, where);
  start_tensor_load(own_target(dst, barrier, where), TensorBox(map, coord), kName, where);
}

void tma_load_multicast(uint32_t dst, const ptx::TensorMap& map, uint32_t barrier, const int32_t* coord, uint32_t rank,
                        uint32_t cta_mask, const Location& where) {
  constexpr const char* kName = "multicast TMA load";
  maybe_yield(where);
  check_tensor_copy(map, dst, rank, kName, where);
  for (const Target& target : multicast_targets(dst, barrier, cta_mask, kName, where))
    start_tensor_load(target, TensorBox(map, coord), kName, where);
}

void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t barrier, const Location& where) {
  constexpr const char* kName = "bulk load";
  maybe_yield(where);
  check_alignment(dst, 16, kName, where);
  check_alignment(reinterpret_cast<uint64_t>(src), 16, kName, where);
  if (bytes == 0 || bytes % 16 != 0)
    fail("misaligned", "a " + std::string(kName) + " of " + std::to_string(bytes) + " B", where);
  const Target target = own_target(dst, barrier, where);
  check_destination(target, bytes, copy_access(target.barrier, true, kName, where), kName, where);
  engine().check_global(engine().find_global(src, bytes, kName, where), src, bytes,
                        copy_access(target.barrier, false, kName, where));
  engine().enqueue(std::make_shared<BulkLoad>(static_cast<const uint8_t*>(src), target, bytes, where));
}

}  // namespace longcat_ops::emu
