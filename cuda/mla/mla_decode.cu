#include "mla/mla_decode.cuh"

#include <string>

#include "launch/instances.h"
#include "launch/tensor_map.h"
#include "mla/mla_merge.cuh"

namespace longcat_ops::mla {
namespace {

constexpr double kLog2E = 1.4426950408889634;

MlaDecodeProblem problem_of(const lc_mla_decode_args& args) {
  return {.tokens = args.q.count,
          .heads = args.q.matrix.rows,
          .width = args.q.matrix.columns,
          .latent = args.out.matrix.columns,
          .table_width = args.pages.table_width,
          .split_rows = args.split_rows,
          .sms = sm_count()};
}

ByteTensor bytes_of(const lc_stack& stack) {
  const lc_matrix& m = stack.matrix;
  return {m.data, stack.count, m.rows, 2 * m.columns, 2 * stack.stride, 2 * m.row_stride};
}

int check_call(const lc_mla_decode_args& args) {
  if (args.q.matrix.dtype != LC_BF16) return set_status(LC_ERR_INVALID, "mla_decode takes bf16 on this device");
  if (const char* reason = refusal_of(problem_of(args)))
    return set_status(LC_ERR_INVALID, std::string("mla_decode: ") + reason);
  if (!can_map(bytes_of(args.q)) || !can_map(bytes_of(args.pages.rows)))
    return set_status(LC_ERR_INVALID, "mla_decode: q and rows begin on 16 bytes, and so do their rows");
  const lc_matrix& out = args.out.matrix;
  if ((reinterpret_cast<uintptr_t>(out.data) / 2 | args.out.stride | out.row_stride) % 2 != 0)
    return set_status(LC_ERR_INVALID, "mla_decode: out begins on 4 bytes, and so do its rows");
  return LC_OK;
}

template <uint32_t kHalf>
int launch_kernels(const lc_mla_decode_args& args, const MlaDecodeConfig& config, const MlaDecodeParams& params,
                   lc_stream_t stream) {
  const Deal& deal = params.deal;
  const auto arguments = [&] {
    return Memory()
        .reads("page_table", deal.pages.table, deal.pages.sequences * deal.pages.width)
        .reads("sequence", deal.sequence, args.q.count)
        .reads("position", deal.position, args.q.count)
        .updates("workspace", static_cast<uint8_t*>(args.workspace), config.workspace_bytes())
        .updates("out", &args.out);
  };
  LaunchConfig decode{"mla_decode", config.blocks, kDecodeThreads, static_cast<int>(config.smem.bytes)};
  decode.registers = kFewestRegisters;
  if (const int status = launch(mla_decode_kernel<kHalf>, decode, params, stream,
                                arguments().reads("q", &args.q).reads("rows", &args.pages.rows)))
    return status;
  const LaunchConfig merge{"mla_decode", config.rows * config.merge_parts, kMergeThreads};
  return launch(config.merge_fragments == 1 ? mla_merge_kernel<kHalf, 1> : mla_merge_kernel<kHalf, 4>, merge, params,
                stream, arguments());
}

int launch_mla_decode(const lc_mla_decode_args& args, lc_stream_t stream) {
  const MlaDecodeConfig config = choose_mla_decode_config(problem_of(args));
  if (config.rows == 0 || args.out.matrix.columns == 0) return set_status(LC_OK, "");
  if (args.workspace_bytes < config.workspace_bytes())
    return set_status(LC_ERR_INVALID, "mla_decode: workspace of " + std::to_string(args.workspace_bytes) +
                                          " bytes, expected " + std::to_string(config.workspace_bytes()));
  const lc_pages& pages = args.pages;
  MlaDecodeParams params{};
  if (const int status = encode_map(bytes_of(args.q), kTileHeads, &params.query_map)) return status;
  if (const int status = encode_map(bytes_of(pages.rows), static_cast<uint32_t>(kPageRows), &params.page_map))
    return status;
  params.deal = {.pages = {pages.table, pages.sequences, pages.table_width, pages.rows.count},
                 .sequence = args.sequence,
                 .position = args.position,
                 .rows = static_cast<uint32_t>(config.rows),
                 .head_tiles = static_cast<uint32_t>(config.head_tiles),
                 .split_rows = static_cast<uint32_t>(args.split_rows),
                 .raw_splits = static_cast<uint32_t>(config.raw_splits)};
  if (config.merge_parts > 0) {
    auto* bytes = static_cast<uint8_t*>(args.workspace);
    params.workspace.merged = reinterpret_cast<ptx::Vec16*>(bytes);
    params.workspace.raw = reinterpret_cast<uint32_t*>(bytes += 16 * config.rows);
    params.workspace.slots = reinterpret_cast<float*>(bytes + 16 * ceil_div(config.blocks, 4));
  }
  const lc_matrix& out = args.out.matrix;
  params.out = static_cast<uint16_t*>(out.data);
  params.stride_token = args.out.stride;
  params.stride_head = out.row_stride;
  params.scale = static_cast<float>(args.scale * kLog2E);
  params.heads = static_cast<uint32_t>(out.rows);
  params.latent = static_cast<uint32_t>(out.columns);
  params.smem = config.smem;
  switch (config.half) {
    case 64: return launch_kernels<64>(args, config, params, stream);
    case 128: return launch_kernels<128>(args, config, params, stream);
    default: return launch_kernels<256>(args, config, params, stream);
  }
}

}  // namespace
}  // namespace longcat_ops::mla

extern "C" int lc_mla_decode(const lc_mla_decode_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_mla_decode", args)) return status;
  if (const int status = longcat_ops::mla::check_call(*args)) return status;
  return longcat_ops::mla::launch_mla_decode(*args, stream);
}

extern "C" int64_t lc_mla_decode_workspace(const lc_mla_decode_args* args) {
  if (longcat_ops::check_args("lc_mla_decode_workspace", args) || longcat_ops::mla::check_call(*args)) return 0;
  return longcat_ops::choose_mla_decode_config(longcat_ops::mla::problem_of(*args)).workspace_bytes();
}
