#include "comm/launch_comm.h"

namespace longcat_ops::comm {
namespace {

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) abort_kernel(LC_GRID_CONSTANT RankView v) {
  if (ptx::thread_index() == 0) give_up(v, {Status::kHostAborted, Stage::kEntry, 0, 0, 1u << v.rank});
}

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_comm_abort(const lc_comm_abort_args* args, lc_stream_t stream) {
  using namespace longcat_ops::comm;
  if (const int status = longcat_ops::check_args("lc_comm_abort", args)) return status;
  if (const int status = check_comm("comm_abort", args->comm)) return status;
  longcat_ops::LaunchConfig config = comm_launch("comm_abort", args->comm, 0);
  config.grid = 1;
  config.block = 32;
  return longcat_ops::launch(abort_kernel, config, view_of(args->comm), stream, longcat_ops::Memory());
}
