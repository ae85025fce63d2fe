#include "moe_dispatch/moe_plan.cuh"

#include "launch/launch.h"
#include "longcat_ops.h"

namespace longcat_ops::moe_dispatch {
namespace {

int launch_moe_plan(const int32_t* ids, int64_t tokens, int32_t top_k, int32_t num_local, const float* weights,
                    int32_t* offsets, int32_t* row_of, int32_t* src_of, lc_stream_t stream) {
  const int64_t choices = tokens * top_k, rows = tokens * (top_k < num_local ? top_k : num_local);
  const MoePlanConfig config = choose_moe_plan_config(choices, num_local);
  MoePlanParams params{};
  params.ids = ids;
  params.weights = weights;
  params.offsets = offsets;
  params.row_of = row_of;
  params.src_of = src_of;
  params.choices = static_cast<uint32_t>(choices);
  params.rows = static_cast<uint32_t>(rows);
  params.groups = static_cast<uint32_t>(num_local);
  params.blocks = static_cast<uint32_t>(config.blocks);
  params.threads = static_cast<uint32_t>(config.threads);
  params.warps = static_cast<uint32_t>(config.warps);
  params.steps = static_cast<uint32_t>(config.steps);

  LaunchConfig count{"moe_plan", config.blocks, config.threads, config.count_smem};
  if (config.form != PlanForm::kLaunches) {
    const Memory memory = Memory()
                              .reads("ids", ids, choices)
                              .reads("weights", weights, choices)
                              .writes("offsets", offsets, num_local + 1)
                              .writes("row_of", row_of, choices, Filler::kNoIndex)
                              .writes("src_of", src_of, rows, Filler::kNoIndex);
    if (config.form == PlanForm::kAlone)
      return launch(moe_plan_count_kernel<PlanForm::kAlone>, count, params, stream, memory);
    count.cluster = static_cast<int>(config.blocks);
    return launch(moe_plan_count_kernel<PlanForm::kCluster>, count, params, stream, memory);
  }
  const int64_t counts = config.blocks * num_local;  // in src_of, until it gets its values
  const Memory counted = Memory()
                             .reads("ids", ids, choices)
                             .reads("weights", weights, choices)
                             .writes("row_of", row_of, choices, Filler::kNoIndex)
                             .writes("src_of", src_of, counts, Filler::kNoIndex);
  if (const int status = launch(moe_plan_count_kernel<PlanForm::kLaunches>, count, params, stream, counted))
    return status;
  const LaunchConfig ranked{"moe_plan", config.blocks, config.threads, config.rows_smem};
  const Memory ranks = Memory()
                           .reads("ids", ids, choices)
                           .updates("row_of", row_of, choices)
                           .reads("src_of", src_of, counts)
                           .writes("offsets", offsets, num_local + 1);
  if (const int status = launch(moe_plan_rows_kernel, ranked, params, stream, ranks)) return status;
  const LaunchConfig inverted{"moe_plan", config.blocks, config.threads};
  const Memory sources = Memory()
                             .reads("row_of", row_of, choices)
                             .reads("offsets", offsets, num_local + 1)
                             .writes("src_of", src_of, rows, Filler::kNoIndex);
  return launch(moe_plan_sources_kernel, inverted, params, stream, sources);
}

}  // namespace
}  // namespace longcat_ops::moe_dispatch

extern "C" int lc_moe_plan(const lc_moe_plan_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_moe_plan", args)) return status;
  return longcat_ops::moe_dispatch::launch_moe_plan(args->ids, args->tokens, args->top_k, args->num_local,
                                                    args->weights, args->offsets, args->row_of, args->src_of, stream);
}
