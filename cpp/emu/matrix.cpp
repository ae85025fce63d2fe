// ldmatrix and stmatrix: 8x8 matrices of 16-bit elements between the registers of a warp and shared memory.
#include <cstring>
#include <functional>
#include <utility>

#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

enum Kind { kLoad = 1000, kStore = 2000 };

struct LaneMatrix {
  Thread* thread;
  uint32_t row_address;
  uint32_t* loaded;
  const uint32_t* stored;
};

// Lane 4 * row + pair holds elements 2 * pair and 2 * pair + 1 of a row; .trans swaps row and column.
struct Place {
  uint32_t lane, half;
};
Place place_of(uint32_t row, uint32_t element, bool transposed) {
  if (transposed) std::swap(row, element);
  return {4 * row + element / 2, element % 2};
}

// Reports name the lane that gave the address, not the last one to arrive.
struct ActAs {
  explicit ActAs(Thread* thread) : self(std::exchange(current.thread, thread)) {}
  ~ActAs() { current.thread = self; }
  Thread* self;
};

uint8_t* access_row(const LaneMatrix& lane, bool write, const char* operation, const Location& where) {
  const ActAs addressing(lane.thread);
  Cta& cta = *lane.thread->cta;
  uint8_t* row = cta.shared(lane.row_address, 16, operation, where);
  check_alignment(lane.row_address, 16, operation, where);
  if (cta.barriers.touches_live(lane.row_address - cta.smem_base, 16))
    fail("mbarrier", std::string(operation) + " touches a live mbarrier", where);
  Access access = engine().thread_access(*lane.thread, where, operation);
  access.write = write;
  access.check_initialised = !write;
  engine().check_shared(cta, lane.row_address, 16, access);
  return row;
}

}  // namespace

void load_matrix(uint32_t* registers, int count, bool transposed, uint32_t row_address, const Location& where) {
  LaneMatrix mine{&this_thread(), row_address, registers, nullptr};
  warp_collective(kLoad + 2 * count + transposed, &mine, where, [&](std::array<void*, 32>& payload) {
    auto lane = [&](uint32_t i) -> LaneMatrix& { return *static_cast<LaneMatrix*>(payload[i]); };
    for (int matrix = 0; matrix < count; ++matrix)
      for (uint32_t row = 0; row < 8; ++row) {
        // NOTE: every lane gets parts of rows that others address; the access belongs to the addressing lane.
        uint16_t elements[8];
        std::memcpy(elements, access_row(lane(8 * matrix + row), false, "ldmatrix", where), 16);
        for (uint32_t e = 0; e < 8; ++e) {
          const Place place = place_of(row, e, transposed);
          std::memcpy(reinterpret_cast<uint8_t*>(&lane(place.lane).loaded[matrix]) + 2 * place.half, &elements[e], 2);
        }
      }
  });
}

void store_matrix(const uint32_t* registers, int count, bool transposed, uint32_t row_address, const Location& where) {
  LaneMatrix mine{&this_thread(), row_address, nullptr, registers};
  warp_collective(kStore + 2 * count + transposed, &mine, where, [&](std::array<void*, 32>& payload) {
    auto lane = [&](uint32_t i) -> LaneMatrix& { return *static_cast<LaneMatrix*>(payload[i]); };
    for (int matrix = 0; matrix < count; ++matrix)
      for (uint32_t row = 0; row < 8; ++row) {
        uint16_t elements[8];
        for (uint32_t e = 0; e < 8; ++e) {
          const Place place = place_of(row, e, transposed);
          elements[e] = uint16_t(lane(place.lane).stored[matrix] >> (16 * place.half));
        }
        std::memcpy(access_row(lane(8 * matrix + row), true, "stmatrix", where), elements, 16);
      }
  });
}

}  // namespace longcat_ops::emu
