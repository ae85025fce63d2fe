// Tensor copies: bytes of shared memory after a load, of global memory after a store.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

constexpr uint32_t kTileAt = 1024;  // the box's offset in shared memory, behind its barrier

enum class Evict { kUnsaid, kFirst, kLast };

// Loads one box over 0xee bytes in shared memory; out: the bytes of shared memory in their order.
template <int R, Evict kEvict>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1)
    tma_load_kernel(LC_GRID_CONSTANT ptx::TensorMap map, const int32_t* coords, uint32_t bytes, uint32_t* out) {
  const uint32_t bar = ptx::dynamic_smem_base(), tile = bar + kTileAt, lane = ptx::lane_index();
  for (uint32_t i = lane; i < bytes / 4; i += 32) ptx::store_shared(tile + 4 * i, 0xeeeeeeeeu);
  if (lane == 0) {
    ptx::prefetch_tensormap(&map);
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::fence_proxy_async_shared();
  ptx::warp_sync();
  if (lane == 0) {
    int32_t coord[R];
    LC_UNROLL
    for (int i = 0; i < R; ++i) coord[i] = ptx::load_global(coords + i);
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    if constexpr (kEvict == Evict::kUnsaid) ptx::tma_load(tile, &map, bar, coord);
    if constexpr (kEvict == Evict::kFirst) ptx::tma_load(tile, &map, bar, coord, ptx::create_policy_evict_first());
    if constexpr (kEvict == Evict::kLast) ptx::tma_load(tile, &map, bar, coord, ptx::create_policy_evict_last());
  }
  ptx::mbarrier_wait(bar, 0);
  for (uint32_t i = lane; i < bytes / 4; i += 32) ptx::store_global(out + i, ptx::load_shared<uint32_t>(tile + 4 * i));
}

// One box from shared memory, where image lies byte for byte, to the tensor.
template <int R>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) tma_store_kernel(LC_GRID_CONSTANT ptx::TensorMap map, const int32_t* coords,
                                                   uint32_t bytes, const uint32_t* image) {
  const uint32_t tile = ptx::dynamic_smem_base() + kTileAt, lane = ptx::lane_index();
  for (uint32_t i = lane; i < bytes / 4; i += 32) ptx::store_shared(tile + 4 * i, ptx::load_global(image + i));
  ptx::fence_proxy_async_shared();
  ptx::warp_sync();
  if (lane != 0) return;
  int32_t coord[R];
  LC_UNROLL
  for (int i = 0; i < R; ++i) coord[i] = ptx::load_global(coords + i);
  ptx::tma_store(&map, tile, coord);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

// ISA, swizzling modes: a 16-byte chunk's index within the span is XORed with the address bits from 128 bytes up.
inline uint32_t swizzled_offset(uint32_t offset, ptx::Swizzle swizzle) {
  const uint32_t chunks = swizzle == ptx::Swizzle::k128B ? 8 : swizzle == ptx::Swizzle::k64B ? 4 : 2;
  return swizzle == ptx::Swizzle::kNone ? offset : offset ^ offset / 128 % chunks * 16;
}

// Calls visit(offset in shared memory, offset in the tensor or -1 if outside) for every element of the box. In shared
// memory the box is dense apart from the swizzle, first dimension fastest.
template <class Visit>
void for_each_element(const Tensor& tensor, const std::vector<int32_t>& coords, Visit visit) {
  const uint32_t size = element_bytes(tensor.element), rank = static_cast<uint32_t>(tensor.sizes.size());
  for (uint32_t offset = 0; offset < tensor.box_bytes(); offset += size) {
    int64_t address = 0;
    uint32_t rest = offset / size;
    for (uint32_t d = 0; d < rank; ++d) {
      const int64_t at = coords[d] + static_cast<int64_t>(rest % tensor.box[d]);
      rest /= tensor.box[d];
      if (at < 0 || at >= static_cast<int64_t>(tensor.sizes[d])) address = -1;
      if (address >= 0) address += at * static_cast<int64_t>(d == 0 ? size : tensor.strides[d - 1]);
    }
    visit(swizzled_offset(offset, tensor.swizzle), address);
  }
}

template <int R, Evict kEvict = Evict::kUnsaid>
void tma_load_case(Machine& machine, const Tensor& tensor, const std::vector<std::vector<int32_t>>& all_coords) {
  const auto data = random_values<uint8_t>(tensor.bytes(), R);
  auto* memory = machine.input(data);
  const uint32_t size = element_bytes(tensor.element), bytes = tensor.box_bytes();
  for (const auto& coords : all_coords) {
    std::vector<uint8_t> expected(bytes);
    for_each_element(tensor, coords, [&](uint32_t at, int64_t address) {
      for (uint32_t i = 0; i < size; ++i) expected[at + i] = address < 0 ? 0 : data[address + i];
    });
    auto* out = machine.output<uint8_t>(bytes);
    machine.launch(tma_load_kernel<R, kEvict>, {1, 32, kTileAt + bytes}, machine.tensor_map(memory, tensor),
                   static_cast<const int32_t*>(machine.input(coords)), bytes, reinterpret_cast<uint32_t*>(out));
    machine.expect(out, expected);
  }
}

template <int R>
void tma_store_case(Machine& machine, const Tensor& tensor, const std::vector<std::vector<int32_t>>& all_coords) {
  const auto data = random_values<uint8_t>(tensor.bytes(), 10 + R);
  const auto image = random_values<uint8_t>(tensor.box_bytes(), 20 + R);
  const uint32_t size = element_bytes(tensor.element), bytes = tensor.box_bytes();
  for (const auto& coords : all_coords) {
    std::vector<uint8_t> expected = data;
    for_each_element(tensor, coords, [&](uint32_t at, int64_t address) {
      if (address >= 0) memcpy(&expected[address], &image[at], size);
    });
    auto* memory = machine.input(data);
    auto* source = reinterpret_cast<const uint32_t*>(machine.input(image));
    machine.launch(tma_store_kernel<R>, {1, 32, kTileAt + bytes}, machine.tensor_map(memory, tensor),
                   static_cast<const int32_t*>(machine.input(coords)), bytes, source);
    machine.expect(memory, expected);
  }
}

// Tensors whose sizes are multiples of nothing, with gaps between rows, and boxes inside, over each edge and outside.
inline Tensor rank_1() { return {Element::kU8, {100}, {}, {64}}; }
inline Tensor rank_2() { return {Element::kU16, {21, 11}, {48}, {16, 5}}; }
inline Tensor rank_3() { return {Element::kU32, {6, 5, 4}, {32, 160}, {4, 3, 2}}; }
inline Tensor rank_4() { return {Element::kU8, {40, 3, 4, 3}, {48, 144, 720}, {16, 2, 3, 2}}; }
inline Tensor rank_5() { return {Element::kU16, {9, 2, 3, 2, 3}, {32, 64, 192, 576}, {8, 2, 2, 1, 2}}; }
// Boxes of 20 rows as long as the swizzle's span, so that its period of 8 x 128 bytes repeats.
inline Tensor swizzled_tensor(ptx::Swizzle swizzle) {
  const uint32_t span = 16u << static_cast<int>(swizzle);
  return {Element::kU8, {span + 16, 30}, {span + 16}, {span, 20}, swizzle};
}

inline void tma_cases(Cases& cases) {
  using Coords = std::vector<std::vector<int32_t>>;
  const Coords one = {{0}, {36}, {40}, {-16}, {99}, {100}, {-64}};
  const Coords two = {{0, 0}, {5, 6}, {5, 8}, {-3, 2}, {13, -4}, {-1, -1}, {21, 0}, {0, 11}, {-16, 0}};
  const Coords three = {{0, 0, 0}, {2, 2, 2}, {-1, 4, 3}, {5, -2, -1}, {6, 5, 4}};
  const Coords four = {{0, 0, 0, 0}, {24, 1, 1, 1}, {30, 2, 2, 2}, {-8, -1, -2, -1}, {0, 0, 4, 0}};
  const Coords five = {{0, 0, 0, 0, 0}, {1, 0, 1, 1, 1}, {4, 1, 2, 1, 2}, {-2, -1, -1, 0, -1}, {0, 0, 0, 2, 0}};
  const Coords swizzles = {{0, 0}, {16, 10}, {-5, 3}, {7, -9}, {8, 25}};
  const char* load = "tma_load prefetch_tensormap";
  cases.add("tma/load_1d", load, [=](Machine& m) { tma_load_case<1>(m, rank_1(), one); });
  cases.add("tma/load_2d", load, [=](Machine& m) { tma_load_case<2>(m, rank_2(), two); });
  cases.add("tma/load_3d", load, [=](Machine& m) { tma_load_case<3>(m, rank_3(), three); });
  cases.add("tma/load_4d", load, [=](Machine& m) { tma_load_case<4>(m, rank_4(), four); });
  cases.add("tma/load_5d", load, [=](Machine& m) { tma_load_case<5>(m, rank_5(), five); });
  cases.add("tma/load_evict_first", "tma_load create_policy_evict_first",
            [=](Machine& m) { tma_load_case<3, Evict::kFirst>(m, rank_3(), three); });
  cases.add("tma/load_evict_last", "tma_load create_policy_evict_last",
            [=](Machine& m) { tma_load_case<2, Evict::kLast>(m, rank_2(), two); });
  const char* store = "tma_store bulk_commit bulk_wait fence_proxy_async_shared";
  cases.add("tma/store_1d", store, [=](Machine& m) { tma_store_case<1>(m, rank_1(), one); });
  cases.add("tma/store_2d", store, [=](Machine& m) { tma_store_case<2>(m, rank_2(), two); });
  cases.add("tma/store_3d", store, [=](Machine& m) { tma_store_case<3>(m, rank_3(), three); });
  cases.add("tma/store_4d", store, [=](Machine& m) { tma_store_case<4>(m, rank_4(), four); });
  cases.add("tma/store_5d", store, [=](Machine& m) { tma_store_case<5>(m, rank_5(), five); });
  for (const auto swizzle : {ptx::Swizzle::k32B, ptx::Swizzle::k64B, ptx::Swizzle::k128B}) {
    const std::string span = std::to_string(16 << static_cast<int>(swizzle));
    const Tensor tensor = swizzled_tensor(swizzle);
    cases.add("tma/load_swizzle_" + span, "tma_load", [=](Machine& m) { tma_load_case<2>(m, tensor, swizzles); });
    cases.add("tma/store_swizzle_" + span, "tma_store", [=](Machine& m) { tma_store_case<2>(m, tensor, swizzles); });
  }
}

}  // namespace longcat_ops::conformance
