// mla_decode: multi-query attention over pages of latent rows. 64 heads of a token are the M of wgmma, so a page of 64
// rows meets them in 576 / 16 products for the scores and 64 / 16 for the values.
//
// Floor per token and row of its past, of LongCat-Flash: 1152 bytes and 2 * 64 * (576 + 512) flops. A sequence of two
// tokens reads its rows once, from memory: 242 flops a byte, where an H100 balances 295. docs/mla_decode.md has the
// table.
//
// A block is two warpgroups and a warp that loads. The first warpgroup scores a page; each then sums half of the
// columns of the values, because 64 x 512 sums in float32 are half of the register file. Two pages of 72 KB and the
// query are all that shared memory holds: while one is multiplied, the next arrives.
#pragma once

#include "device/pipeline.cuh"
#include "device/warp_reduce.cuh"
#include "device/wgmma_tile.cuh"
#include "mla/decode_params.cuh"

namespace longcat_ops::mla {

// Barriers between the two warpgroups: weights of the last page have been read; those of this one are written; a split
// is complete, and its factors are written.
enum Barrier : uint32_t { kWeightsFree = 1, kWeightsReady, kSplitEnd };
constexpr uint32_t kConsumers = 32 * kConsumerWarps;

LC_DEVICE device::Pipeline stages_of(const MlaDecodeParams& p, uint32_t base) {
  return device::Pipeline(base + p.smem.barriers, p.smem.stages);
}
LC_DEVICE device::Pipeline queries_of(const MlaDecodeParams& p, uint32_t base) {
  return device::Pipeline(base + p.smem.barriers + p.smem.stages * device::kBarrierPairBytes, 1);
}
LC_DEVICE uint32_t row_value(const MlaDecodeParams& p, uint32_t base, RowValue value, uint32_t head) {
  return base + p.smem.row_values + (static_cast<uint32_t>(value) * kTileHeads + head) * 4;
}

// What the consumers know of a stage, 16 bytes beside it.
struct PageWork {
  uint32_t row;
  uint32_t visible;  // rows of the page up to the position; 0: the page does not exist
  uint32_t slot;     // of the workspace: 0 for a split that is merged with those before it in the row
  uint32_t flags;
};
enum Flag : uint32_t {
  kNewQuery = 1,  // the first page of a row
  kOldQuery = 2,  // the last one
  kFirst = 4,     // of a split
  kLast = 8,      // of a split
  kMerges = 16,   // the split has others before it in this block's part of the row
  kDone = 32,     // with this split the row is complete
  kNoMore = 64,   // no page, and no further stage
};

LC_DEVICE uint32_t page_work(const MlaDecodeParams& p, uint32_t base, uint32_t stage) {
  return base + p.smem.pages + 16 * stage;
}

// Called by one thread: walks its block's run, loads queries and pages, and tells the consumers what to do with them.
struct Loader {
  const MlaDecodeParams& p;
  uint32_t base;
  device::Pipeline stages, queries;

  LC_DEVICE void load_query(uint32_t row) {
    queries.wait_empty();
    ptx::mbarrier_arrive_expect_tx(queries.full(), p.smem.query_boxes * kBoxBytes);
    for (uint32_t box = 0; box < p.smem.query_boxes; ++box) {
      const int32_t at[] = {static_cast<int32_t>(box * 128), static_cast<int32_t>(row % p.deal.head_tiles * kTileHeads),
                            static_cast<int32_t>(row / p.deal.head_tiles)};
      ptx::tma_load(base + p.smem.query + box * kBoxBytes, &p.query_map, queries.full(), at);
    }
    queries.advance();
  }

  // A page that does not exist arrives as zeros.
  LC_DEVICE void load_page(int64_t page, const PageWork& work) {
    const auto from = static_cast<int32_t>(page < 0 ? p.deal.pages.pages : page);
    stages.wait_empty();
    ptx::store_shared(page_work(p, base, stages.stage), ptx::Vec16{work.row, work.visible, work.slot, work.flags});
    ptx::mbarrier_arrive_expect_tx(stages.full(), p.smem.stage_bytes());
    for (uint32_t box = 0; box < p.smem.boxes; ++box) {
      const int32_t at[] = {static_cast<int32_t>(box * 128), 0, from};
      ptx::tma_load(base + stages.stage * p.smem.stage_bytes() + box * kBoxBytes, &p.page_map, stages.full(), at);
    }
    stages.advance();
  }

  LC_DEVICE void load_segment(const Segment& segment) {
    constexpr auto kRows = static_cast<uint32_t>(kPageRows);
    const uint32_t each = p.deal.split_rows / kRows, all = segment.position / kRows + 1;
    const uint32_t begin = segment.begin * each, end = segment.end * each < all ? segment.end * each : all;
    const bool raw = segment.begin > 0;  // the row begins in another block: splits stay as they are
    uint32_t split = segment.begin;
    for (uint32_t at = begin, next = begin; at < end; ++at) {
      PageWork work{segment.row, segment.position + 1 - at * kRows, raw ? 1 + split - segment.begin : 0, 0};
      if (work.visible > kRows) work.visible = kRows;
      const int64_t page = page_of(p.deal.pages, segment.sequence, at * kPageRows);
      if (page < 0) work.visible = 0;
      if (at == begin) work.flags |= kNewQuery;
      if (at + 1 == end) work.flags |= kOldQuery;
      if (at == next) {
        work.flags |= kFirst;
        next += each;
      }
      if (!raw && split > 0) work.flags |= kMerges;
      if (at + 1 == next || at + 1 == end) {
        work.flags |= kLast;
        if (!raw && split + 1 == segment.splits) work.flags |= kDone;
        ++split;
      }
      load_page(page, work);
      if (at == begin) load_query(segment.row);  // the first page need not wait for the last query's products
    }
  }

  LC_DEVICE void load_run(Run run) {
    ptx::prefetch_tensormap(&p.query_map);
    ptx::prefetch_tensormap(&p.page_map);
    const uint32_t block = ptx::block_index();
    if (p.workspace.raw != nullptr) ptx::store_global(p.workspace.raw + block, raw_splits_of(p.deal, run));
    while (run.units > 0) {
      const Segment segment = take_segment(p.deal, run);
      load_segment(segment);
      if (p.workspace.merged != nullptr && segment.begin == 0)
        ptx::store_global(p.workspace.merged + segment.row, ptx::Vec16{segment.end, block, run.stride, 0});
    }
    stages.wait_empty();
    ptx::store_shared(page_work(p, base, stages.stage), ptx::Vec16{0, 0, 0, kNoMore});
    ptx::mbarrier_arrive(stages.full());
    ptx::grid_dependency_launch();  // the last loads are issued
  }
};

// Called by the first warpgroup: the weights of a page, e to the power of score minus largest, go to shared memory in
// bf16. `visible` rows of the page count.
struct Scorer {
  const MlaDecodeParams& p;
  uint32_t base;
  Place place;
  HeadState state[2];  // of heads low and low + 8; the weight is this lane's part of the sum

  LC_DEVICE void start_split() { state[0] = state[1] = empty_state(); }

  LC_DEVICE void products(uint32_t stage, float (&score)[32]) {
    uint64_t query = device::descriptor_of(base + p.smem.query);
    uint64_t page = device::descriptor_of(base + stage * p.smem.stage_bytes());
    for (uint32_t box = 0; box < p.smem.query_boxes; ++box) {
      ptx::wgmma_fence();
      LC_UNROLL
      for (uint32_t k = 0; k < 4; ++k)
        ptx::wgmma_bf16<64>(score, device::moved(query, 2 * k), device::moved(page, 2 * k), box > 0 || k > 0);
      ptx::wgmma_commit();
      query = device::moved(query, kBoxBytes / 16);
      page = device::moved(page, kBoxBytes / 16);
    }
    ptx::wgmma_wait_for<0>(score);
  }

  // Rows past the position hold anything, also NaN, which a weight of 0 would not keep out of the sums.
  LC_DEVICE void hide_rows(uint32_t stage, uint32_t visible, float (&score)[32]) {
    const uint32_t first = base + stage * p.smem.stage_bytes() + visible * 128, bytes = kBoxBytes - visible * 128;
    for (uint32_t box = 0; box < p.smem.boxes; ++box)
      for (uint32_t at = 16 * ptx::thread_index(); at < bytes; at += 16 * 128)
        ptx::store_shared(first + box * kBoxBytes + at, ptx::Vec16{});
    LC_UNROLL
    for (uint32_t i = 0; i < 32; ++i)
      if (8 * (i / 4) + ptx::lane_index() % 4 * 2 + i % 2 >= visible) score[i] = empty_state().largest;
  }

  // factor: brings earlier sums to the new largest score.
  LC_DEVICE void weigh(float (&score)[32], float (&factor)[2]) {
    LC_UNROLL
    for (uint32_t side = 0; side < 2; ++side) {
      HeadState& head = state[side];
      float largest = head.largest;
      LC_UNROLL
      for (uint32_t i = 2 * side; i < 32; i += 4) {
        LC_UNROLL
        for (uint32_t j = i; j < i + 2; ++j) largest = score[j] > largest ? score[j] : largest;
      }
      LC_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float other = ptx::shuffle_xor(largest, mask);
        largest = other > largest ? other : largest;
      }
      const float shift = largest == empty_state().largest ? 0.0f : largest;  // no row counts: -inf + inf is NaN
      factor[side] = head.largest == largest ? 1.0f : ptx::exp2_unit(ptx::add_rn(head.largest, -shift));
      head.largest = largest;
      head.weight = ptx::multiply_rn(head.weight, factor[side]);
      LC_UNROLL
      for (uint32_t i = 2 * side; i < 32; i += 4) {
        LC_UNROLL
        for (uint32_t j = i; j < i + 2; ++j) score[j] = ptx::exp2_unit(ptx::add_rn(score[j], -shift));
      }
    }
  }

  // Rounds the weights; the sum is that of rounded weights, so that they add up to 1. Swizzled as TMA would.
  LC_DEVICE void store(const float (&score)[32], const float (&factor)[2]) {
    const uint32_t lane = ptx::lane_index(), row = place.low / 16 * 16 + lane / 8 % 2 * 8 + lane % 8;
    LC_UNROLL
    for (uint32_t j = 0; j < 8; j += 2) {
      uint32_t words[4];
      LC_UNROLL
      for (uint32_t w = 0; w < 4; ++w) {
        const uint32_t i = 4 * j + 2 * w;
        float low, high;
        words[w] = ptx::pack_bf16x2(score[i], score[i + 1]);
        ptx::unpack_bf16x2(words[w], low, high);
        state[w % 2].weight = ptx::add_rn(state[w % 2].weight, ptx::add_rn(low, high));
      }
      const uint32_t chunk = (j + lane / 16) ^ row % 8;
      ptx::store_matrix<4, false>(base + p.smem.weights + 128 * row + 16 * chunk, words);
    }
    if (lane % 4 != 0) return;
    LC_UNROLL
    for (uint32_t side = 0; side < 2; ++side)
      ptx::store_shared(row_value(p, base, RowValue::kFactor, place.low + 8 * side), factor[side]);
  }

  LC_DEVICE void score_page(uint32_t stage, uint32_t visible) {
    float score[32], factor[2];
    products(stage, score);
    const float scale = visible > 0 ? p.scale : device::bits_float(device::kNanBits);
    LC_UNROLL
    for (uint32_t i = 0; i < 32; ++i) score[i] = ptx::multiply_rn(score[i], scale);
    if (visible < kPageRows && visible > 0) hide_rows(stage, visible, score);
    weigh(score, factor);
    ptx::named_barrier_sync(kWeightsFree, kConsumers);
    store(score, factor);
    ptx::fence_proxy_async_shared();  // wgmma reads through the async proxy
  }

  // Merges the split with those before, if it `merges`, and tells both warpgroups how. states: where those of an
  // incomplete result go.
  LC_DEVICE void finish_split(bool merges, float* states) {
    LC_UNROLL
    for (uint32_t side = 0; side < 2; ++side) {
      const uint32_t head = place.low + 8 * side;
      HeadState all = state[side];
      all.weight = device::reduce_lanes<4>(all.weight, device::Sum());
      Factors factors{};
      if (merges) {
        const HeadState split = all;
        all = {ptx::load_shared<float>(row_value(p, base, RowValue::kLargest, head)),
               ptx::load_shared<float>(row_value(p, base, RowValue::kWeight, head))};
        factors = merge_states(all, split);
        ptx::warp_sync();  // all lanes have read before one writes
      }
      if (ptx::lane_index() % 4 != 0) continue;
      ptx::store_shared(row_value(p, base, RowValue::kKeep, head), factors.keep);
      ptx::store_shared(row_value(p, base, RowValue::kAdd, head), factors.add);
      ptx::store_shared(row_value(p, base, RowValue::kLargest, head), all.largest);
      ptx::store_shared(row_value(p, base, RowValue::kWeight, head), all.weight);
      if (states != nullptr)
        ptx::store_global(reinterpret_cast<ptx::Vec8*>(states) + head,
                          ptx::Vec8{device::float_bits(all.largest), device::float_bits(all.weight)});
    }
  }
};

// sums = factor * sums + weights @ values of a page, of one half of the columns.
template <uint32_t kHalf>
LC_DEVICE void add_page(const MlaDecodeParams& p, uint32_t base, uint32_t stage, uint32_t group, bool first,
                        const Place& place, float (&sums)[kHalf / 2]) {
  const float factor[] = {ptx::load_shared<float>(row_value(p, base, RowValue::kFactor, place.low)),
                          ptx::load_shared<float>(row_value(p, base, RowValue::kFactor, place.low + 8))};
  if (!first && ptx::any(factor[0] != 1.0f || factor[1] != 1.0f)) {
    LC_UNROLL
    for (uint32_t i = 0; i < kHalf / 2; ++i) sums[i] = ptx::multiply_rn(sums[i], factor[i / 2 % 2]);
  }
  const uint64_t weights = device::descriptor_of(base + p.smem.weights);
  // Rows of the page are the K of the product and lie 128 bytes apart; 64 columns are a box.
  const uint32_t at = base + stage * p.smem.stage_bytes() + group * (kHalf / kBoxElements) * kBoxBytes;
  const uint64_t values = ptx::make_descriptor(at, kBoxBytes, 1024, ptx::Swizzle::k128B);
  ptx::wgmma_fence();
  LC_UNROLL
  for (uint32_t k = 0; k < 4; ++k)
    ptx::wgmma_bf16<kHalf, 0, 1>(sums, device::moved(weights, 2 * k), device::moved(values, 2048 / 16 * k),
                                 !first || k > 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait_for<0>(sums);
}

// Writes 0 for padding and NaN for places that the table does not have. Called by 128 threads.
LC_DEVICE void fill_other_rows(const MlaDecodeParams& p, uint32_t thread) {
  for (uint32_t row = ptx::block_index(); row < p.deal.rows; row += ptx::grid_size()) {
    const uint32_t token = row / p.deal.head_tiles;
    if (splits_of(p.deal, token) > 0) continue;
    const float value = ptx::load_global(p.deal.position + token) < 0 ? 0.0f : device::bits_float(device::kNanBits);
    const uint32_t first = row % p.deal.head_tiles * kTileHeads;
    const uint32_t heads = p.heads - first < kTileHeads ? p.heads - first : kTileHeads;
    for (uint32_t i = thread; i < heads * p.latent / 2; i += 128) {
      const uint32_t head = first + i / (p.latent / 2), column = i % (p.latent / 2) * 2;
      ptx::store_global(reinterpret_cast<uint32_t*>(p.out + token * p.stride_token + head * p.stride_head + column),
                        ptx::pack_bf16x2(value, value));
    }
  }
}

// Sums of a split, complete: they are merged with those of the splits before, which lie in `slot`, if `merges`; then
// they are the result, if `done`, or go to the slot.
template <uint32_t kHalf>
LC_DEVICE void finish_split(const MlaDecodeParams& p, uint32_t base, uint32_t row, const Place& place, float* slot,
                            bool merges, bool done, float (&sums)[kHalf / 2]) {
  constexpr uint32_t kFragments = kHalf / 2 / kFragment, kAhead = 4;
  const uint32_t thread = ptx::thread_index();
  float keep[2], add[2], weight[2];
  LC_UNROLL
  for (uint32_t side = 0; side < 2; ++side) {
    keep[side] = ptx::load_shared<float>(row_value(p, base, RowValue::kKeep, place.low + 8 * side));
    add[side] = ptx::load_shared<float>(row_value(p, base, RowValue::kAdd, place.low + 8 * side));
    weight[side] = ptx::load_shared<float>(row_value(p, base, RowValue::kWeight, place.low + 8 * side));
  }
  if (merges) {
    LC_UNROLL
    for (uint32_t j = 0; j < kFragments; j += kAhead) {
      ptx::Float4 before[kAhead];
      LC_UNROLL
      for (uint32_t a = 0; a < kAhead; ++a) before[a] = ptx::load_global(fragment_at(slot, thread, j + a));
      LC_UNROLL
      for (uint32_t a = 0; a < kAhead; ++a) {
        const float values[] = {before[a].x, before[a].y, before[a].z, before[a].w};
        LC_UNROLL
        for (uint32_t i = 0; i < kFragment; ++i) {
          float& sum = sums[kFragment * (j + a) + i];
          sum = merge_sums(values[i], sum, {keep[i / 2], add[i / 2]});
        }
      }
    }
  }
  if (done) {
    const Result result = result_of(p, row, place);
    const float share[] = {ptx::divide_rn(1.0f, weight[0]), ptx::divide_rn(1.0f, weight[1])};
    LC_UNROLL
    for (uint32_t j = 0; j < kFragments; ++j) store_fragment(result, j, share, sums + kFragment * j);
  } else {
    LC_UNROLL
    for (uint32_t j = 0; j < kFragments; ++j) {
      const float* four = sums + kFragment * j;
      ptx::store_global(fragment_at(slot, thread, j), ptx::Float4{four[0], four[1], four[2], four[3]});
    }
  }
}

// Called by a warpgroup: both sum values, and group 0 scores.
template <uint32_t kHalf>
LC_DEVICE void attend(const MlaDecodeParams& p, uint32_t base, uint32_t group) {
  const Place place = place_of(ptx::thread_index(), kHalf);
  device::Pipeline stages = stages_of(p, base), queries = queries_of(p, base);
  Scorer scorer{p, base, place, {empty_state(), empty_state()}};
  float sums[kHalf / 2];
  while (true) {
    stages.wait_full();  // precedes wgmma_fence, which orders operand reads after it
    const auto words = ptx::load_shared<ptx::Vec16>(page_work(p, base, stages.stage));
    const PageWork work{words.x, words.y, words.z, words.w};
    if (work.flags & kNoMore) return;
    if (group == 0) {
      if (work.flags & kNewQuery) queries.wait_full();
      if (work.flags & kFirst) scorer.start_split();
      scorer.score_page(stages.stage, work.visible);
      if (work.flags & kOldQuery) {
        device::arrive_warp(queries.empty());
        queries.advance();
      }
    } else {
      ptx::named_barrier_arrive(kWeightsFree, kConsumers);
    }
    ptx::named_barrier_sync(kWeightsReady, kConsumers);
    add_page<kHalf>(p, base, stages.stage, group, work.flags & kFirst, place, sums);
    device::arrive_warp(stages.empty());
    stages.advance();
    if (!(work.flags & kLast)) continue;
    const bool merges = work.flags & kMerges, done = work.flags & kDone;
    float* slot = slot_of<kHalf>(p, ptx::block_index(), work.slot);
    if (group == 0) scorer.finish_split(merges, done ? nullptr : states_of<kHalf>(slot));
    ptx::named_barrier_sync(kSplitEnd, kConsumers);
    finish_split<kHalf>(p, base, work.row, place, slot, merges, done, sums);
  }
}

// kHalf: columns of the values that a warpgroup sums.
template <uint32_t kHalf>
LC_KERNEL LC_LAUNCH_BOUNDS(kDecodeThreads, 1) mla_decode_kernel(LC_GRID_CONSTANT MlaDecodeParams p) {
  const uint32_t base = ptx::dynamic_smem_base(), warp = ptx::warp_index(), thread = ptx::thread_index();
  if (thread == 0) {
    device::init_pipeline(base + p.smem.barriers, p.smem.stages, 1, kConsumerWarps);
    device::init_pipeline(base + p.smem.barriers + p.smem.stages * device::kBarrierPairBytes, 1, 1, kScoreWarps);
    ptx::fence_mbarrier_init();
  }
  ptx::grid_dependency_wait();
  const Run run = deal_run(p.deal, base + p.smem.scratch);  // its barriers order the mbarriers, too
  if (warp >= kConsumerWarps) {
    ptx::setmaxnreg_dec<kLoaderRegisters>();
    if (warp == kConsumerWarps && ptx::elect_one())
      Loader{p, base, stages_of(p, base), queries_of(p, base)}.load_run(run);
    return;
  }
  ptx::setmaxnreg_inc<kConsumerRegisters>();
  if (warp >= kScoreWarps) fill_other_rows(p, thread - 128);
  attend<kHalf>(p, base, warp / kScoreWarps);
}

}  // namespace longcat_ops::mla
