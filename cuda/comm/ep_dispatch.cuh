// ep_dispatch: sends each token's row to the ranks of its FFN experts, straight to where their products read it. FP8: a
// row is quantised once, bit for bit as moe_permute_quant does, and its codes and scales travel; bf16: the row as it
// is.
//
// Floor per token that has a row, H columns: 2 H bytes read once; H + 4 ceil(H / 128) (FP8) or 2 H (bf16) bytes written
// per row, over NVLink unless the expert is this rank's own: 6336 or 12 288 bytes for H = 6144.
//
// ep_counts has run before in this stream: so the receivers read these rows no longer, and every row has its place.
#pragma once

#include "comm/ep_view.cuh"
#include "moe_dispatch/choices.cuh"
#include "moe_dispatch/row_access.cuh"
#include "moe_dispatch/spread_rows.cuh"

namespace longcat_ops::comm {

struct EpDispatchParams {
  ExpertView view;
  const uint16_t* x;   // bf16 [T, hidden]
  const int32_t* ids;  // [T, top_k]
  int64_t stride_x;
  moe_dispatch::PlanView plan;  // without src_of
  moe_dispatch::TokenWarps warps;
};

using Place = ptx::Vec8;  // an entry of a warp's list: a rank and a row there

// Where a choice of this expert goes. False: nowhere.
LC_DEVICE bool find_place(const ExpertView& e, int32_t row, uint32_t expert, Place& place) {
  if (row < 0 || expert >= e.experts) return false;
  place.x = expert / e.local;
  place.y = static_cast<uint32_t>(row + ptx::load_global(ExpertTable(e).send_shift + expert));
  return place.y < e.received;  // whatever the plan says, nothing is written outside
}

// Behind the lists, what each warp leaves of its 2 groups: their scales, the number of rows, the first group.
constexpr uint32_t kLeftBytes = 16, kLeftAt = moe_dispatch::kDispatchWarps * moe_dispatch::kListBytes<Place>;
constexpr uint32_t kEpDispatchSmem = kLeftAt + moe_dispatch::kDispatchWarps * kLeftBytes;

LC_DEVICE uint32_t left_of_warp(uint32_t warp) { return ptx::dynamic_smem_base() + kLeftAt + kLeftBytes * warp; }

// Returns to how many rows the chunk has gone.
template <bool kFp8>
LC_DEVICE uint32_t send_chunk(const EpDispatchParams& p, const moe_dispatch::WarpPlace& warp) {
  using namespace device;
  using Rows = moe_dispatch::WideRows<BFloat16>;
  const ExpertView& e = p.view;
  const uint32_t list = moe_dispatch::list_of_warp<Place>(), lane = ptx::lane_index();
  const uint32_t chunk = 32 * warp.cell + lane;
  const bool inside = chunk < p.warps.chunks;

  // Places of a call that was given up are those of an earlier one.
  const bool aborted = ptx::any(is_aborted(e.ranks));
  const moe_dispatch::PlanChoice choice = moe_dispatch::load_choice(p.plan, warp.token);
  const bool has_choice = lane < p.plan.top_k;
  const uint32_t expert = has_choice ? static_cast<uint32_t>(ptx::load_global(p.ids + choice.source)) : e.experts;
  if (aborted || !ptx::any(choice.row >= 0)) return 0;
  Rows::Held held = {};
  if (inside) held = Rows::load(p.x, moe_dispatch::Element::kBF16, warp.token * p.stride_x + kChunk * chunk);
  Place own{};
  const bool keep = find_place(e, choice.row, expert, own);
  const uint32_t count = moe_dispatch::list_choices(list, keep, own);
  const uint64_t row_bytes = (kFp8 ? 1 : 2) * kChunk * p.warps.chunks;
  const auto row = [&](uint32_t i) {
    const Place to = moe_dispatch::choice_of_list<Place>(list, i);
    return e.ranks.memory[to.x] + e.rows + to.y * row_bytes;
  };

  if constexpr (kFp8) {
    const moe_dispatch::QuantisedChunk quantised = moe_dispatch::quantise_token<Rows>(held);
    if (lane % moe_dispatch::kGroupLanes == 0)
      ptx::store_shared(left_of_warp(ptx::warp_index()) + 4 * (lane / moe_dispatch::kGroupLanes), quantised.scale);
    moe_dispatch::spread_codes<true>(quantised, chunk, p.warps.chunks, count, row);
  } else if (inside) {
    for (uint32_t i = 0; i < count; ++i)
      store_chunk<BFloat16, true>(reinterpret_cast<uint16_t*>(row(i)) + kChunk * chunk, held);
  }
  return count;
}

// The scales of the block's warps, which mostly have one token: lane l takes group l % 8 of them, so that 32 bytes of
// a row leave together. Warp by warp each would cross NVLink alone, half as many packets again as the codes need.
LC_DEVICE void send_scales(const EpDispatchParams& p) {
  constexpr uint32_t kGroups = 2 * moe_dispatch::kDispatchWarps, kRows = kWarpLanes / kGroups;
  const ExpertView& e = p.view;
  const uint32_t lane = ptx::lane_index(), of = lane % kGroups / 2;
  const uint32_t left = left_of_warp(of);
  const auto [count, first_group] = ptx::load_shared<ptx::Vec8>(left + 8);
  const uint32_t group = first_group + lane % 2, groups = ceil_div(p.warps.chunks, moe_dispatch::kGroupLanes);
  if (count == 0 || group >= groups) return;
  const auto scale = ptx::load_shared<float>(left + 4 * (lane % 2));
  const uint32_t list = ptx::dynamic_smem_base() + moe_dispatch::kListBytes<Place> * of;
  for (uint32_t i = kRows * ptx::warp_index() + lane / kGroups; i < count; i += kRows * moe_dispatch::kDispatchWarps) {
    const Place to = moe_dispatch::choice_of_list<Place>(list, i);
    auto* scales = reinterpret_cast<float*>(e.ranks.memory[to.x] + e.scales) + uint64_t{to.y} * groups;
    ptx::store_global(scales + group, scale);
  }
}

template <bool kFp8>
LC_KERNEL LC_LAUNCH_BOUNDS(kDispatchThreads, 12) ep_dispatch_kernel(LC_GRID_CONSTANT EpDispatchParams p) {
  const moe_dispatch::WarpPlace place = moe_dispatch::locate(p.warps);
  const uint32_t count = place.inside ? send_chunk<kFp8>(p, place) : 0;
  if constexpr (kFp8) {
    if (ptx::lane_index() == 0)
      ptx::store_shared(left_of_warp(ptx::warp_index()) + 8, ptx::Vec8{count, 2 * place.cell});
    ptx::sync_threads();
    send_scales(p);
  }
  flag_rows(p.view, Traffic::kDispatch);
}

}  // namespace longcat_ops::comm
