#include "emu/shadow.h"

#include <algorithm>

namespace longcat_ops::emu {
namespace {

struct Visitor {
  const Access& access;
  FaultReporter report;
  void* context;
  uint64_t& cells;

  // Two strong accesses may race if their scopes include each other. NOTE: scopes are not checked within a device.
  bool both_strong(uint8_t strength) const { return access.strength != kWeak && strength != kWeak; }
  bool in_scope(uint8_t strength, uint8_t device) const {
    return device == access.device || std::min(access.strength, strength) > kGpuStrength;
  }

  void check_order(uint32_t component, uint32_t time, uint8_t strength, uint8_t device, Fault race, const Cell& cell,
                   const ReadEpoch* read, size_t offset) const {
    if (access.ordered_after(component, time)) return;
    if (!both_strong(strength)) fault(race, cell, read, offset);
    if (!in_scope(strength, device)) fault(Fault::kScope, cell, read, offset);
  }

  // NOTE: strong accesses are exempt, or no flag could be polled through the other address.
  bool hidden_by_alias(uint32_t component, uint32_t time, uint8_t strength, bool multicast) const {
    return access.alias_visible != nullptr && multicast != access.multicast && !both_strong(strength) &&
           (*access.alias_visible)[component] < time;
  }

  void fault(Fault kind, const Cell& cell, const ReadEpoch* read, size_t offset) const {
    report(context, kind, access, cell, read, offset);
  }

  void check_write(const Cell& cell, size_t offset) const {
    if (cell.write_component == kNobody) return;
    check_order(cell.write_component, cell.write_time, cell.write_strength, cell.write_device, Fault::kWriteRace, cell,
                nullptr, offset);
    if (hidden_by_alias(cell.write_component, cell.write_time, cell.write_strength, cell.write_multicast))
      fault(Fault::kAlias, cell, nullptr, offset);
    if (access.async_visible != nullptr && !cell.write_async &&
        (*access.async_visible)[cell.write_component] < cell.write_time)
      fault(Fault::kProxy, cell, nullptr, offset);
  }

  void check_reads(const Cell& cell, size_t offset) const {
    auto check = [&](const ReadEpoch& read) {
      if (read.component == kNobody) return;
      check_order(read.component, read.time, read.strength, read.device, Fault::kReadRace, cell, &read, offset);
      if (access.pedantic && hidden_by_alias(read.component, read.time, read.strength, read.multicast))
        fault(Fault::kAlias, cell, &read, offset);
    };
    check(cell.read);
    if (cell.more_reads)
      for (const ReadEpoch& read : *cell.more_reads) check(read);
    if (cell.read_only_launch != 0 && cell.read_only_launch == access.launch)
      fault(Fault::kReadOnly, cell, &cell.read, offset);
  }

  void record_write(Cell& cell) const {
    cell.write_component = access.component;
    cell.write_time = access.time;
    cell.write_site = access.site;
    cell.write_strength = access.strength;
    cell.write_device = access.device;
    cell.write_multicast = access.multicast;
    cell.write_async = access.async_visible != nullptr;
    cell.swizzle = access.swizzle;
    cell.initialised = true;
    cell.read = {};
    cell.read_only_launch = 0;
    if (cell.more_reads) cell.more_reads->clear();
  }

  void record_read(Cell& cell) const {
    const ReadEpoch mine{access.component, access.time, access.site, access.strength, access.device, access.multicast};
    if (access.read_only) cell.read_only_launch = access.launch;
    if (cell.read.component == kNobody || cell.read.component == mine.component ||
        access.ordered_after(cell.read.component, cell.read.time)) {
      cell.read = mine;
      return;
    }
    if (!cell.more_reads) cell.more_reads = std::make_unique<std::vector<ReadEpoch>>();
    for (ReadEpoch& read : *cell.more_reads)
      if (read.component == mine.component) {
        read = mine;
        return;
      }
    cell.more_reads->push_back(mine);
  }

  void visit_whole(Cell& cell, size_t offset) const {
    ++cells;
    check_write(cell, offset);
    if (access.write) {
      check_reads(cell, offset);
      record_write(cell);
      return;
    }
    if (access.check_initialised && !cell.initialised) fault(Fault::kUninitialised, cell, nullptr, offset);
    if (access.read_only && cell.write_component != kNobody &&
        !access.before_launch(cell.write_component, cell.write_time))
      fault(Fault::kReadOnly, cell, nullptr, offset);
    if (access.check_swizzle && cell.swizzle != kAnySwizzle && cell.swizzle != access.swizzle)
      fault(Fault::kSwizzle, cell, nullptr, offset);
    record_read(cell);
  }

  // begin and end: bytes of the cell, which starts at offset.
  void visit(Cell& cell, size_t width, size_t begin, size_t end, size_t offset) const {
    const bool whole = begin == 0 && end == width;
    if (whole && !cell.split) return visit_whole(cell, offset);
    if (!cell.split) cell.make_parts();
    const size_t part = width / 4;
    for (size_t i = 0; i < 4; ++i) {
      const size_t from = std::max(begin, i * part), to = std::min(end, (i + 1) * part);
      if (from < to) visit(cell.parts[i], part, from - i * part, to - i * part, offset + i * part);
    }
    if (whole && access.write) {
      cell.split = false;
      record_write(cell);
    }
  }
};

void set_cell_initialised(Cell& cell, size_t width, size_t begin, size_t end) {
  const bool whole = begin == 0 && end == width;
  if (whole && !cell.split) {
    cell.initialised = true;
    return;
  }
  if (!cell.split && cell.initialised) return;
  if (!cell.split) cell.make_parts();
  const size_t part = width / 4;
  for (size_t i = 0; i < 4; ++i) {
    const size_t from = std::max(begin, i * part), to = std::min(end, (i + 1) * part);
    if (from < to) set_cell_initialised(cell.parts[i], part, from - i * part, to - i * part);
  }
}

}  // namespace

void Cell::make_parts() {
  if (!parts) parts = std::make_unique<Cell[]>(4);
  for (int i = 0; i < 4; ++i) {
    Cell& part = parts[i];
    part.write_component = write_component;
    part.write_time = write_time;
    part.write_site = write_site;
    part.write_strength = write_strength;
    part.write_device = write_device;
    part.write_multicast = write_multicast;
    part.write_async = write_async;
    part.initialised = initialised;
    part.split = false;
    part.swizzle = swizzle;
    part.read_only_launch = read_only_launch;
    part.read = read;
    if (more_reads)
      part.more_reads = std::make_unique<std::vector<ReadEpoch>>(*more_reads);
    else
      part.more_reads.reset();
  }
  split = true;
}

Cell* ShadowMemory::page(size_t index) {
  std::unique_ptr<Cell[]>& page = pages_[index];
  if (!page) {
    page = std::make_unique<Cell[]>(kPageBytes / kCellBytes);
    if (initialised_)
      for (size_t i = 0; i < kPageBytes / kCellBytes; ++i) page[i].initialised = true;
  }
  return page.get();
}

void ShadowMemory::access(size_t offset, size_t bytes, const Access& access, FaultReporter report, void* context,
                          uint64_t& cells) {
  const Visitor visitor{access, report, context, cells};
  const size_t end = offset + bytes;
  for (size_t at = offset / kCellBytes * kCellBytes; at < end; at += kCellBytes) {
    Cell& cell = page(at / kPageBytes)[at % kPageBytes / kCellBytes];
    visitor.visit(cell, kCellBytes, std::max(offset, at) - at, std::min(end - at, kCellBytes), at);
  }
}

void ShadowMemory::set_initialised(size_t offset, size_t bytes) {
  const size_t end = offset + bytes;
  for (size_t at = offset / kCellBytes * kCellBytes; at < end; at += kCellBytes) {
    Cell& cell = page(at / kPageBytes)[at % kPageBytes / kCellBytes];
    set_cell_initialised(cell, kCellBytes, std::max(offset, at) - at, std::min(end - at, kCellBytes));
  }
}

}  // namespace longcat_ops::emu
