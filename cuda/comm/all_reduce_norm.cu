#include "comm/all_reduce_norm.cuh"

#include "comm/launch_comm.h"

namespace longcat_ops::comm {
namespace {

constexpr const char* kOp = "all_reduce_residual_rms_norm";
using Args = lc_all_reduce_residual_rms_norm_args;

bool aligned(const Args& a) {
  const auto bits = [](const void* data) { return reinterpret_cast<uintptr_t>(data); };
  return (bits(a.input) | bits(a.residual) | bits(a.weight) | bits(a.residual_out) | bits(a.y) | a.payload) % 16 == 0 &&
         bits(a.q) % 8 == 0;
}

template <class Element>
int launch_element(const Args& a, const NormParams& params, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config = comm_launch(kOp, a.comm, kNormSmemBytes);
  const bool multicast = a.comm.multicast != nullptr;
  if (a.lines != 0)
    return multicast ? launch(low_latency_norm_kernel<Element, true>, config, params, stream, memory)
                     : launch(low_latency_norm_kernel<Element, false>, config, params, stream, memory);
  if (!multicast || a.comm.fixed_order != 0)
    return launch(all_reduce_norm_kernel<Element, PeerSwitch<Element>, PeerSync>, config, params, stream, memory);
  return launch(all_reduce_norm_kernel<Element, MulticastSwitch<Element>, MulticastSync>, config, params, stream,
                memory);
}

int launch_norm(const Args& a, lc_stream_t stream) {
  if (const int status = check_comm(kOp, a.comm)) return status;
  if (a.width % device::kChunk != 0 || !aligned(a))
    return set_status(LC_ERR_INVALID,
                      text(kOp, ": width ", a.width, ", expected a multiple of 8, and tensors on 16 bytes"));
  NormParams params{};
  params.chunks = static_cast<uint32_t>(a.width / device::kChunk);
  const uint32_t team = device::norm_threads(params.chunks);
  if (static_cast<uint32_t>(a.comm.threads) < team)
    return set_status(LC_ERR_INVALID,
                      text(kOp, ": ", a.comm.threads, " threads, expected at least ", team, " for rows of ", a.width));
  const int64_t bytes = a.rows * a.width * element_bytes(a.dtype);
  if (a.lines != 0)
    if (const int status = check_lines(kOp, bytes, a.max_bytes)) return status;
  if (a.rows == 0) return set_status(LC_OK, "");
  params.view = view_of(a.comm);
  params.input = a.input;
  params.residual = a.residual;
  params.weight = a.weight;
  params.residual_out = a.residual_out;
  params.y = a.y;
  params.q = static_cast<uint8_t*>(a.q);
  params.s = a.s;
  params.stride_s_row = a.s_row_stride;
  params.stride_s_column = a.s_column_stride;
  params.payload = a.payload;
  params.max_bytes = static_cast<uint32_t>(a.max_bytes);
  params.rows = static_cast<uint32_t>(a.rows);
  params.threads = static_cast<uint32_t>(a.comm.threads);
  params.width = static_cast<float>(a.width);
  params.eps = static_cast<float>(a.eps);
  const lc_matrix s{
      a.s, LC_F32, a.q != nullptr ? a.rows : 0, ceil_div(a.width, kQuantBlock), a.s_row_stride, a.s_column_stride};
  const Memory memory = Memory()
                            .reads("input", static_cast<const uint8_t*>(a.input), bytes)
                            .reads("residual", static_cast<const uint8_t*>(a.residual), bytes)
                            .reads("weight", a.weight, a.width)
                            .writes("residual_out", static_cast<uint8_t*>(a.residual_out), bytes)
                            .writes("y", static_cast<uint8_t*>(a.y), bytes)
                            .writes("q", params.q, a.rows * a.width)
                            .writes("s", &s);
  return visit_element(kOp, a.dtype,
                       [&](auto element) { return launch_element<decltype(element)>(a, params, memory, stream); });
}

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_all_reduce_residual_rms_norm(const lc_all_reduce_residual_rms_norm_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_all_reduce_residual_rms_norm", args)) return status;
  return longcat_ops::comm::launch_norm(*args, stream);
}
