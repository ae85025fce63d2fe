// Tensor and bulk copies: bytes, boxes outside the tensor, swizzles.
#include <algorithm>

#include "check.h"

namespace test {

using namespace longcat_ops::ptx;

namespace {

// XOR of address bits, written independently of the emulator: 16-byte chunk ^= row of 128 bytes.
uint32_t expected_address(uint32_t address, Swizzle swizzle) {
  const uint32_t chunks = swizzle == Swizzle::k128B  ? 8
                          : swizzle == Swizzle::k64B ? 4
                          : swizzle == Swizzle::k32B ? 2
                                                     : 1;
  const uint32_t row = address / 128, chunk = address / 16;
  return (chunk / chunks * chunks + (chunk % chunks ^ row % chunks)) * 16 + address % 16;
}

struct Tensor {
  TensorMap map;
  uint64_t elements;
};

// sizes and box: fastest dimension first; element i holds i + 1.
template <int R>
Tensor make_tensor(emu::World& world, const uint64_t (&sizes)[R], const uint32_t (&box)[R], Swizzle swizzle) {
  Tensor t{};
  t.map.rank = R;
  t.map.element_size = 4;
  t.map.swizzle = swizzle;
  uint64_t stride = 4;
  for (int d = 0; d < R; ++d) {
    t.map.sizes[d] = sizes[d];
    t.map.strides[d] = stride;
    t.map.box[d] = box[d];
    stride = (stride * sizes[d] + 15) / 16 * 16;
  }
  t.elements = stride / 4;
  auto* data = world.alloc_array<uint32_t>(t.elements, 0, "tensor", true);
  for (uint64_t i = 0; i < t.elements; ++i) data[i] = uint32_t(i + 1);
  t.map.base = reinterpret_cast<uint8_t*>(data);
  return t;
}

// Loads a box and compares every element with the definition.
template <int R>
void check_load(const uint64_t (&sizes)[R], const uint32_t (&box)[R], const int32_t (&coord)[R], Swizzle swizzle) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(9, policy);
    const TensorMap map = make_tensor(world, sizes, box, swizzle).map;
    uint32_t count = 1;
    for (int d = 0; d < R; ++d) count *= box[d];
    auto* out = world.alloc_array<uint32_t>(count, 0, "out");
    int32_t at[R];
    std::copy_n(coord, R, at);
    run(world, 1, 32, count * 4 + 2048, [=] {
      const uint32_t bar = dynamic_smem_base(), data = bar + 1024;
      if (thread_index() == 0) {
        mbarrier_init(bar, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(bar, count * 4);
        int32_t c[R];
        std::copy_n(at, R, c);
        tma_load(data, &map, bar, c);
      }
      sync_threads();
      mbarrier_wait(bar, 0);
      for (uint32_t i = thread_index(); i < count; i += 32)
        store_global(out + i, load_shared<uint32_t>(expected_address(data + 4 * i, swizzle)));
    });
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t rest = i;
      uint64_t offset = 0;
      bool inside = true;
      for (int d = 0; d < R; ++d) {
        const int64_t position = int64_t(coord[d]) + rest % box[d];
        rest /= box[d];
        inside &= position >= 0 && position < int64_t(sizes[d]);
        offset += uint64_t(position) * map.strides[d] / 4;
      }
      CHECK_EQ(out[i], inside ? uint32_t(offset + 1) : 0u);
    }
  }
}

}  // namespace

TEST(tma_load_1d_to_5d_with_edges) {
  check_load<1>({100}, {32}, {80}, Swizzle::kNone);
  check_load<1>({100}, {32}, {-5}, Swizzle::kNone);
  check_load<2>({40, 10}, {16, 4}, {32, 8}, Swizzle::kNone);
  check_load<2>({40, 10}, {16, 4}, {-4, -1}, Swizzle::kNone);
  check_load<3>({20, 5, 4}, {8, 3, 2}, {16, 3, 3}, Swizzle::kNone);
  check_load<4>({8, 5, 4, 3}, {4, 2, 3, 2}, {4, 4, -1, 2}, Swizzle::kNone);
  check_load<5>({8, 3, 4, 3, 2}, {4, 2, 2, 2, 2}, {6, 2, 3, -1, 1}, Swizzle::kNone);
  check_load<2>({40, 10}, {16, 4}, {400, 8}, Swizzle::kNone);  // entirely outside
}

TEST(tma_load_swizzles) {
  check_load<2>({64, 20}, {8, 16}, {8, 1}, Swizzle::k32B);
  check_load<2>({64, 20}, {16, 16}, {8, 1}, Swizzle::k64B);
  check_load<2>({64, 20}, {32, 16}, {8, 9}, Swizzle::k128B);
  check_load<3>({64, 20, 3}, {32, 8, 2}, {40, 15, 2}, Swizzle::k128B);
}

namespace {

template <class Change>
void load_with(Change change, uint32_t offset = 0, uint32_t expect = 64) {
  emu::World world(1);
  TensorMap map = make_tensor<2>(world, {16, 8}, {4, 4}, Swizzle::kNone).map;
  change(map);
  run(world, 1, 1, 2048, [=] {
    const uint32_t bar = dynamic_smem_base();
    mbarrier_init(bar, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(bar, expect);
    tma_load(bar + 1024 + offset, &map, bar, {0, 0});
    mbarrier_wait(bar, 0);
  });
}

}  // namespace

TEST(tma_load_takes_policies_that_were_made) {
  const auto load = [](uint64_t policy) {
    emu::World world(1);
    const TensorMap map = make_tensor<2>(world, {16, 8}, {4, 4}, Swizzle::kNone).map;
    run(world, 1, 1, 2048, [=] {
      const uint32_t bar = dynamic_smem_base();
      mbarrier_init(bar, 1);
      fence_mbarrier_init();
      mbarrier_arrive_expect_tx(bar, 64);
      tma_load(bar + 1024, &map, bar, {0, 0}, policy);
      mbarrier_wait(bar, 0);
    });
  };
  load(create_policy_evict_first());
  load(create_policy_evict_last());
  CHECK_ERROR("policy", load(0));
}

TEST(tma_refuses_bad_maps_and_addresses) {
  load_with([](TensorMap&) {});
  CHECK_ERROR("misaligned", load_with([](TensorMap&) {}, 64));
  CHECK_ERROR("tensor-map", load_with([](TensorMap& map) { map.strides[1] += 4; }));
  CHECK_ERROR("tensor-map", load_with([](TensorMap& map) { map.base += 4; }));
  CHECK_ERROR("tensor-map", load_with([](TensorMap& map) { map.box[0] = 3; }));
  CHECK_ERROR("tensor-map", load_with([](TensorMap& map) { map.box[1] = 257; }));
  CHECK_ERROR("tensor-map", load_with([](TensorMap& map) { map.rank = 3; }));
  CHECK_ERROR("tensor-map", load_with([](TensorMap& map) { map.swizzle = Swizzle::k128B; }));
  CHECK_ERROR("out-of-bounds", load_with([](TensorMap& map) { map.sizes[1] = 9, map.strides[1] = 1 << 20; }));
  CHECK_ERROR("deadlock", load_with([](TensorMap&) {}, 0, 80));
}

TEST(tma_two_copies_to_one_place_conflict) {
  emu::World world(1);
  const TensorMap map = make_tensor<2>(world, {16, 8}, {4, 4}, Swizzle::kNone).map;
  CHECK_ERROR("race", run(world, 1, 1, 2048, [=] {
                const uint32_t bar = dynamic_smem_base();
                mbarrier_init(bar, 1);
                fence_mbarrier_init();
                mbarrier_arrive_expect_tx(bar, 128);
                tma_load(bar + 1024, &map, bar, {0, 0});
                tma_load(bar + 1024, &map, bar, {4, 0});
                mbarrier_wait(bar, 0);
              }));
}

namespace {

enum class Kind { kStore, kBulkStore };

// 4 rows of 32 floats from shared to global memory.
std::vector<float> store_with(Kind kind, emu::Policy policy, bool fence = true, int ctas = 1) {
  emu::World world(3, policy);
  auto* out = world.alloc_array<float>(32 * 6, 0, "out", true);
  std::fill_n(out, 32 * 6, 100.0f);
  TensorMap map{};
  map = {reinterpret_cast<uint8_t*>(out), 2, 4, {32, 6}, {4, 128}, {32, 4}, Swizzle::k128B};
  const bool tensor = kind == Kind::kStore;
  run(world, ctas, 32, 512, [=] {
    const uint32_t base = dynamic_smem_base();
    for (uint32_t i = thread_index(); i < 128; i += 32) {
      const uint32_t address = base + 4 * i;
      store_shared(tensor ? expected_address(address, Swizzle::k128B) : address, float(i));
    }
    if (fence) fence_proxy_async_shared();
    sync_threads();
    if (thread_index() != 0) return;
    if (kind == Kind::kStore) tma_store(&map, base, {0, 4});  // two rows are outside
    if (kind == Kind::kBulkStore) bulk_store(out + 32, base, 512);
    bulk_commit();
    bulk_wait_read<0>();
  });
  return {out, out + 32 * 6};
}

}  // namespace

TEST(bulk_stores) {
  for (const emu::Policy policy : kPolicies) {
    const std::vector<float> stored = store_with(Kind::kStore, policy), bulk = store_with(Kind::kBulkStore, policy);
    for (int i = 0; i < 192; ++i) {
      CHECK_EQ(stored[i], i < 128 ? 100.0f : float(i - 128));
      CHECK_EQ(bulk[i], i < 32 || i >= 160 ? 100.0f : float(i - 32));
    }
    CHECK_ERROR("proxy", store_with(Kind::kStore, policy, false));
    CHECK_ERROR("proxy", store_with(Kind::kBulkStore, policy, false));
    CHECK_ERROR("race", store_with(Kind::kBulkStore, policy, true, 2));
  }
}

}  // namespace test
