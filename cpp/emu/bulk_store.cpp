// Copies from shared to global memory, in bulk groups. Reading the source and writing the destination are separate
// events.
#include <cstring>
#include <optional>

#include "emu/engine.h"
#include "emu/tensor_box.h"
#include "emu/wgmma.h"

namespace longcat_ops::emu {

struct BulkCopy : AsyncOperation {
  Cta* cta;
  Thread* owner;  // null when it has ended
  Grid* grid;
  uint32_t src;
  uint32_t bytes;
  std::optional<TensorBox> box;  // else the destination is `linear`
  uint8_t* linear = nullptr;
  Location where;
  std::vector<uint8_t> data;
  bool read_done = false;
  bool written = false;

  void read();
  void write();
  bool step() override;
};

void BulkCopy::read() {
  data.resize(bytes);
  const ptx::Swizzle swizzle = box ? box->map.swizzle : ptx::Swizzle::kNone;
  for (uint32_t b = 0; b < bytes; b += 16)
    std::memcpy(data.data() + b, cta->shared(swizzled(src + b, swizzle), 16, "bulk store", where), 16);
  read_done = true;
}

void BulkCopy::write() {
  if (!box) {
    std::memcpy(linear, data.data(), bytes);
  } else {
    for (uint32_t r = 0; r < box->rows; ++r) {
      const TensorBox::Span span = box->row(r);
      if (span.bytes > 0) std::memcpy(span.global, data.data() + r * box->row_bytes + span.skip, span.bytes);
    }
  }
  written = true;
  --grid->writes_in_flight;
  engine().note_event();
}

bool BulkCopy::step() {
  if (read_done)
    write();
  else
    read();
  if (owner != nullptr && owner->bulk.waiting) {
    owner->bulk.waiting = false;
    engine().wake(owner);
  }
  return written;
}

namespace {

BulkGroups& groups_of(Thread& thread) {
  BulkGroups& groups = thread.bulk;
  if (groups.read_component != kNobody) return groups;
  Engine& machine = engine();
  groups.read_component = machine.extra_component(thread.cta, "bulk reads of thread", thread.index);
  groups.write_component = machine.extra_component(thread.cta, "bulk writes of thread", thread.index);
  groups.first_number = 1 + std::max(machine.components[groups.read_component].last_time,
                                     machine.components[groups.write_component].last_time);
  groups.start_number = groups.first_number;
  return groups;
}

Access group_access(Thread& thread, bool of_global, const char* operation, const Location& where) {
  const BulkGroups& groups = groups_of(thread);
  Access access{.component = of_global ? groups.write_component : groups.read_component,
                .time = groups.open_number(),
                .order = &thread.clock.order};
  access.async_visible = of_global ? &thread.clock.async_global : &thread.clock.async_shared;
  access.site = engine().site(where, operation);
  access.launch = thread.cta->grid->number;
  return access;
}

void check_source(uint32_t address, uint32_t bytes, bool matters, const char* operation, const Location& where) {
  Thread& self = this_thread();
  self.cta->shared(address, bytes, operation, where);
  Access access = group_access(self, false, operation, where);
  access.check_initialised = matters;
  engine().check_shared(*self.cta, address, bytes, access);
}

void check_target(const void* address, uint32_t bytes, const char* operation, const Location& where) {
  Thread& self = this_thread();
  Allocation& allocation = engine().find_global(address, bytes, operation, where);
  Access access = group_access(self, true, operation, where);
  access.write = true;
  engine().check_global(allocation, address, bytes, access);
}

void add_copy(std::shared_ptr<BulkCopy> copy) {
  Thread& self = this_thread();
  copy->cta = self.cta;
  copy->owner = &self;
  copy->grid = self.cta->grid;
  ++copy->grid->writes_in_flight;
  self.bulk.open.push_back(copy);
  engine().enqueue(std::move(copy));
}

bool group_done(const std::vector<std::shared_ptr<BulkCopy>>& group, bool read_only) {
  for (const auto& copy : group)
    if (!(read_only ? copy->read_done : copy->written)) return false;
  return true;
}

}  // namespace

Thread::~Thread() {
  for (auto& group : bulk.committed)
    for (auto& copy : group) copy->owner = nullptr;
  for (auto& copy : bulk.open) copy->owner = nullptr;
}

void tma_store(const ptx::TensorMap& map, uint32_t src, const int32_t* coord, uint32_t rank, const Location& where) {
  constexpr const char* kName = "TMA store";
  maybe_yield(where);
  check_tensor_copy(map, src, rank, kName, where);
  const TensorBox box(map, coord);
  for (uint32_t r = 0; r < box.rows; ++r) {
    const TensorBox::Span span = box.row(r);
    check_source(src + r * box.row_bytes, box.row_bytes, span.bytes > 0, kName, where);
    if (span.bytes > 0) check_target(span.global, span.bytes, kName, where);
  }
  auto copy = std::make_shared<BulkCopy>();
  copy->src = src;
  copy->bytes = box.bytes();
  copy->box = box;
  copy->where = where;
  add_copy(std::move(copy));
}

void bulk_store(void* dst, uint32_t src, uint32_t bytes, const Location& where) {
  constexpr const char* kName = "bulk store";
  maybe_yield(where);
  check_alignment(src, 16, kName, where);
  check_alignment(reinterpret_cast<uint64_t>(dst), 16, kName, where);
  if (bytes == 0 || bytes % 16 != 0)
    fail("misaligned", std::string(kName) + " of " + std::to_string(bytes) + " B", where);
  check_source(src, bytes, true, kName, where);
  check_target(dst, bytes, kName, where);
  auto copy = std::make_shared<BulkCopy>();
  copy->src = src;
  copy->bytes = bytes;
  copy->linear = static_cast<uint8_t*>(dst);
  copy->where = where;
  add_copy(std::move(copy));
}

void bulk_commit() {
  BulkGroups& groups = groups_of(this_thread());
  groups.committed.push_back(std::move(groups.open));
  groups.open.clear();
}

void bulk_wait(uint32_t keep, bool read_only, const Location& where) {
  Thread& self = this_thread();
  BulkGroups& groups = groups_of(self);
  maybe_yield(where);
  const size_t count = groups.committed.size() > keep ? groups.committed.size() - keep : 0;
  for (size_t i = 0; i < count; ++i)
    while (!group_done(groups.committed[i], read_only)) {
      groups.waiting = true;
      block("bulk wait_group", where);
    }
  if (engine().settings.detectors && groups.open_number() > groups.start_number + keep) {
    const uint32_t newest = groups.open_number() - 1 - keep;
    self.clock.order.raise(groups.read_component, newest);
    if (!read_only) self.clock.order.raise(groups.write_component, newest);
  }
  for (size_t i = 0; i < count && group_done(groups.committed.front(), false); ++i) {
    groups.committed.erase(groups.committed.begin());
    ++groups.first_number;
  }
}

void check_bulk_reads_done(const Thread& thread) {
  if (!thread.bulk.open.empty())
    fail("exit", "a thread ends with bulk copies that it has not committed", thread.bulk.open.front()->where);
  for (const auto& group : thread.bulk.committed)
    for (const auto& copy : group)
      if (!copy->read_done)
        fail("exit", "a thread ends while its bulk store may still read shared memory: wait_group.read is missing",
             copy->where);
}

}  // namespace longcat_ops::emu
