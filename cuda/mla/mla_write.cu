#include "mla/mla_write.cuh"

#include "launch/instances.h"

namespace longcat_ops::mla {
namespace {

int launch_mla_write(const lc_mla_write_args& args, lc_stream_t stream) {
  const lc_matrix& kv = args.kv;
  const lc_pages& pages = args.pages;
  const int64_t latent = kv.columns - args.rope.columns;
  const uint32_t chunks = static_cast<uint32_t>(ceil_div(latent, int64_t{device::kChunk}));
  const MlaWriteParams params{
      .kv = kv.data,
      .weight = args.weight,
      .rope = static_cast<const float*>(args.rope.data),
      .sequence = args.sequence,
      .position = args.position,
      .rows = pages.rows.matrix.data,
      .pages = {pages.table, pages.sequences, pages.table_width, pages.rows.count},
      .stride_kv = kv.row_stride,
      .stride_rope = args.rope.row_stride,
      .stride_page = pages.rows.stride,
      .stride_row = pages.rows.matrix.row_stride,
      .positions = args.rope.rows,
      .latent = static_cast<uint32_t>(latent),
      .pairs = static_cast<uint32_t>(args.rope.columns / 2),
      .threads = device::norm_threads(chunks),
      .eps = static_cast<float>(args.eps),
  };
  const lc_matrix weight{const_cast<float*>(args.weight), LC_F32, 1, latent, latent, 1};
  const int64_t page_bytes = pages.rows.stride * element_bytes(kv.dtype);
  const bool wide = latent % device::kChunk == 0 && chunks_aligned(&kv) && chunks_aligned(&weight) &&
                    chunks_aligned(&pages.rows.matrix) && page_bytes % 16 == 0;
  const Memory memory = Memory()
                            .reads("kv", &kv)
                            .reads("weight", &weight)
                            .reads("rope", &args.rope)
                            .reads("page_table", pages.table, pages.sequences * pages.table_width)
                            .reads("sequence", args.sequence, kv.rows)
                            .reads("position", args.position, kv.rows)
                            .updates("rows", &pages.rows);
  const LaunchConfig config{"mla_write", kv.rows, static_cast<int>(params.threads), kWriteSmemBytes};
  return visit_format(kv.dtype, [&](auto format) {
    using Format = decltype(format);
    return launch(wide ? mla_write_kernel<Format, true> : mla_write_kernel<Format, false>, config, params, stream,
                  memory);
  });
}

}  // namespace
}  // namespace longcat_ops::mla

extern "C" int lc_mla_write(const lc_mla_write_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_mla_write", args)) return status;
  return longcat_ops::mla::launch_mla_write(*args, stream);
}
