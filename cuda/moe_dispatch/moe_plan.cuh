// moe_plan: a stable counting sort of the choices of all tokens by expert, without atomics.
//
// Floor: 4 bytes read and 4 written per choice, 4 more read where there are weights, 4 per row of src_of, 4 per expert.
//
// A choice is a place t * K + k of ids and weights. A block takes a run of choices and each of its warps a part of the
// run, 32 places at a time, in order. A warp counts in its own row of shared memory. Lanes of one expert find each
// other with match.any; a lane's rank is the count so far plus the lanes before it, and the last of them stores the new
// count. Prefix sums over the warps and over the experts turn ranks into rows.
//
// One block, or a cluster whose blocks read each other's counts, needs one launch. More blocks need three:
// moe_plan_count stores each choice's rank within its block in row_of, and each block's counts in src_of, which has
// room for them and is unused until then; moe_plan_rows adds the prefix sums over blocks and experts, which every block
// computes for itself; moe_plan_sources inverts row_of.
#pragma once

#include "device/block_scan.cuh"
#include "moe_dispatch/config.h"

namespace longcat_ops::moe_dispatch {

struct MoePlanParams {
  const int32_t* ids;    // [choices]
  const float* weights;  // [choices], or null; a choice of weight 0 has no row
  int32_t* offsets;      // [groups + 1]
  int32_t* row_of;       // [choices]
  int32_t* src_of;       // [rows]; before that the counts, [blocks, groups]
  uint32_t choices, rows, groups;
  uint32_t blocks, threads;  // of the grid, of a block; threads >= groups
  uint32_t warps;            // warps per block that take choices
  uint32_t steps;            // steps per warp, of 32 choices each: 1 .. kPlanMaxSteps
};

constexpr int kPlanBatch = 8;
static_assert(device::kScanScratchBytes == kPlanScanBytes);

// A lane's places are first + 32 * step for each of its steps, as far as they are below `choices`.
struct PlanPlaces {
  uint32_t first, steps;
};

LC_DEVICE PlanPlaces locate_places(const MoePlanParams& p) {
  const uint32_t warp = ptx::warp_index();
  return {(ptx::block_index() * p.warps + warp) * p.steps * 32 + ptx::lane_index(), warp < p.warps ? p.steps : 0};
}

// NOTE: a token that names an expert twice may leave a choice without a row: src_of has min(K, G) rows per token.
LC_DEVICE int32_t row_or_none(const MoePlanParams& p, uint32_t row) {
  return row < p.rows ? static_cast<int32_t>(row) : -1;
}

// Thread g passes where expert g's rows begin.
LC_DEVICE void store_offsets(const MoePlanParams& p, device::Scan begin) {
  const uint32_t thread = ptx::thread_index();
  const auto bounded = [&](uint32_t row) { return static_cast<int32_t>(row < p.rows ? row : p.rows); };
  if (thread < p.groups) ptx::store_global(p.offsets + thread, bounded(begin.before));
  if (thread == 0) ptx::store_global(p.offsets + p.groups, bounded(begin.total));
}

// Sets the rows of src_of behind the last one used to -1; all threads of the grid share them.
LC_DEVICE void clear_unused_sources(const MoePlanParams& p, uint32_t used) {
  for (uint32_t row = used + ptx::block_index() * p.threads + ptx::thread_index(); row < p.rows;
       row += p.blocks * p.threads)
    ptx::store_global(p.src_of + row, -1);
}

// Thread g loads the counts of kPlanBatch warps for expert g, with several loads in flight.
LC_DEVICE void load_counts(const MoePlanParams& p, uint32_t counts, uint32_t first, uint32_t (&of_warp)[kPlanBatch]) {
  const uint32_t expert = ptx::thread_index();
  LC_UNROLL
  for (uint32_t i = 0; i < kPlanBatch; ++i) {
    const bool inside = expert < p.groups && first + i < p.warps;
    of_warp[i] = inside ? ptx::load_shared<uint32_t>(counts + 4 * ((first + i) * p.groups + expert)) : 0;
  }
}

// Choices of an expert in the cluster's blocks before this one, and in all blocks.
struct ClusterCounts {
  uint32_t before, total;
};

// Thread g passes its block's choices of expert g. `counts`: shared memory, 4 bytes per expert. Other blocks read it
// until they arrive at the cluster's barrier, which this block waits for before it ends.
LC_DEVICE ClusterCounts add_cluster_counts(const MoePlanParams& p, uint32_t counts, uint32_t total) {
  const uint32_t thread = ptx::thread_index(), own = ptx::cluster_rank();
  if (thread < p.groups) ptx::store_shared(counts + 4 * thread, total);
  ptx::cluster_sync();
  ClusterCounts sums{0, 0};
  for (uint32_t rank = 0; rank < p.blocks && thread < p.groups; ++rank) {
    const auto count = ptx::load_relaxed_cluster<uint32_t>(ptx::cluster_address(counts + 4 * thread, rank));
    sums.before += rank < own ? count : 0;
    sums.total += count;
  }
  ptx::cluster_arrive_release();
  return sums;
}

// kLaunches leaves counts and ranks to the next two kernels; otherwise the block or cluster does everything.
template <PlanForm kForm>
LC_KERNEL LC_LAUNCH_BOUNDS(kPlanMaxThreads, 1) moe_plan_count_kernel(LC_GRID_CONSTANT MoePlanParams p) {
  const uint32_t scratch = ptx::dynamic_smem_base();
  const uint32_t counts = scratch + device::kScanScratchBytes;  // [warps, groups]
  const uint32_t thread = ptx::thread_index(), warp = ptx::warp_index(), lane = ptx::lane_index();
  const uint32_t own_counts = counts + 4 * warp * p.groups;
  const PlanPlaces places = locate_places(p);

  for (uint32_t i = thread; i < p.warps * p.groups; i += p.threads) ptx::store_shared(counts + 4 * i, 0u);
  ptx::sync_threads();

  // Read all choices of this lane before any is used.
  ptx::grid_dependency_wait();
  uint32_t expert[kPlanMaxSteps], rank[kPlanMaxSteps] = {};
  float weight[kPlanMaxSteps];
  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j) {
    const uint32_t place = places.first + 32 * j;
    const bool inside = j < places.steps && place < p.choices;
    expert[j] = inside ? static_cast<uint32_t>(ptx::load_global(p.ids + place)) : p.groups;
    weight[j] = inside && p.weights ? ptx::load_global(p.weights + place) : 1.0f;
  }
  ptx::grid_dependency_launch();

  // Count. `groups` stands for no local expert or weight 0 (a NaN is not 0): row_of becomes -1 there, so the next two
  // kernels need no weights.
  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j) {
    if (j >= places.steps) continue;
    const bool local = expert[j] < p.groups && weight[j] != 0.0f;
    if (!local) expert[j] = p.groups;
    const uint32_t count = own_counts + 4 * expert[j];
    const uint32_t same = ptx::match_any(expert[j]);
    const uint32_t lower = same & ((1u << lane) - 1);
    const uint32_t seen = local ? ptx::load_shared<uint32_t>(count) : 0;
    rank[j] = seen + ptx::popcount(lower);
    ptx::warp_sync();
    if (local && same >> lane == 1) ptx::store_shared(count, rank[j] + 1);
    ptx::warp_sync();
  }
  ptx::sync_threads();

  // Thread g: counts of expert g become each warp's first row or, with kLaunches, its first rank.
  uint32_t total = 0;
  for (uint32_t first = 0; first < p.warps; first += kPlanBatch) {
    uint32_t of_warp[kPlanBatch];
    load_counts(p, counts, first, of_warp);
    LC_UNROLL
    for (uint32_t i = 0; i < kPlanBatch; ++i) total += of_warp[i];
  }
  device::Scan begin{0, 0};
  uint32_t next = 0;
  if constexpr (kForm == PlanForm::kLaunches) {
    if (thread < p.groups)
      ptx::store_global(p.src_of + (ptx::block_index() * p.groups + thread), static_cast<int32_t>(total));
  } else {
    ClusterCounts sums{0, total};
    if constexpr (kForm == PlanForm::kCluster) sums = add_cluster_counts(p, counts + 4 * p.warps * p.groups, total);
    begin = device::scan_block(sums.total, p.threads / 32, scratch);
    if (ptx::block_index() == 0) store_offsets(p, begin);
    next = begin.before + sums.before;
  }
  for (uint32_t first = 0; first < p.warps; first += kPlanBatch) {
    uint32_t of_warp[kPlanBatch];
    load_counts(p, counts, first, of_warp);
    LC_UNROLL
    for (uint32_t i = 0; i < kPlanBatch; ++i) {
      if (thread < p.groups && first + i < p.warps)
        ptx::store_shared(counts + 4 * ((first + i) * p.groups + thread), next);
      next += of_warp[i];
    }
  }
  ptx::sync_threads();

  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j) {
    const uint32_t place = places.first + 32 * j;
    if (j >= places.steps || place >= p.choices) continue;
    int32_t row = -1;
    if (expert[j] < p.groups) row = row_or_none(p, ptx::load_shared<uint32_t>(own_counts + 4 * expert[j]) + rank[j]);
    ptx::store_global(p.row_of + place, row);
    if (kForm != PlanForm::kLaunches && row >= 0) ptx::store_global(p.src_of + row, static_cast<int32_t>(place));
  }
  if constexpr (kForm != PlanForm::kLaunches) clear_unused_sources(p, begin.total);
  if constexpr (kForm == PlanForm::kCluster) ptx::cluster_wait_acquire();
}

// Turns the ranks in row_of into rows.
LC_KERNEL LC_LAUNCH_BOUNDS(kPlanMaxThreads, 1) moe_plan_rows_kernel(LC_GRID_CONSTANT MoePlanParams p) {
  const uint32_t scratch = ptx::dynamic_smem_base();
  const uint32_t first_row = scratch + device::kScanScratchBytes;  // [groups], for this block's choices
  const uint32_t thread = ptx::thread_index();
  const PlanPlaces places = locate_places(p);

  // Thread g sums the choices of expert g in the blocks before this one, and in all.
  ptx::grid_dependency_wait();
  uint32_t before = 0, total = 0;
  for (uint32_t block = 0; block < p.blocks; block += kPlanBatch) {
    uint32_t count[kPlanBatch] = {};
    LC_UNROLL
    for (uint32_t i = 0; i < kPlanBatch; ++i)
      if (thread < p.groups && block + i < p.blocks)
        count[i] = static_cast<uint32_t>(ptx::load_global(p.src_of + ((block + i) * p.groups + thread)));
    LC_UNROLL
    for (uint32_t i = 0; i < kPlanBatch; ++i) {
      total += count[i];
      before += block + i < ptx::block_index() ? count[i] : 0;
    }
  }
  const device::Scan begin = device::scan_block(total, p.threads / 32, scratch);
  if (ptx::block_index() == 0) store_offsets(p, begin);
  if (thread < p.groups) ptx::store_shared(first_row + 4 * thread, begin.before + before);
  ptx::sync_threads();

  int32_t expert[kPlanMaxSteps], rank[kPlanMaxSteps];
  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j) {
    const uint32_t place = places.first + 32 * j;
    rank[j] = -1;
    if (j >= places.steps || place >= p.choices) continue;
    expert[j] = ptx::load_global(p.ids + place);
    rank[j] = ptx::load_global(p.row_of + place);
  }
  ptx::grid_dependency_launch();
  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j) {
    if (rank[j] < 0) continue;  // no local expert, or weight 0
    const uint32_t begin_row = ptx::load_shared<uint32_t>(first_row + 4 * static_cast<uint32_t>(expert[j]));
    ptx::store_global(p.row_of + places.first + 32 * j, row_or_none(p, begin_row + static_cast<uint32_t>(rank[j])));
  }
}

// src_of[row_of[place]] = place.
LC_KERNEL LC_LAUNCH_BOUNDS(kPlanMaxThreads, 1) moe_plan_sources_kernel(LC_GRID_CONSTANT MoePlanParams p) {
  const PlanPlaces places = locate_places(p);
  ptx::grid_dependency_wait();
  int32_t row[kPlanMaxSteps];
  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j) {
    const uint32_t place = places.first + 32 * j;
    row[j] = j < places.steps && place < p.choices ? ptx::load_global(p.row_of + place) : -1;
  }
  ptx::grid_dependency_launch();
  LC_UNROLL
  for (uint32_t j = 0; j < kPlanMaxSteps; ++j)
    if (row[j] >= 0) ptx::store_global(p.src_of + row[j], static_cast<int32_t>(places.first + 32 * j));
  clear_unused_sources(p, static_cast<uint32_t>(ptx::load_global(p.offsets + p.groups)));
}

}  // namespace longcat_ops::moe_dispatch
