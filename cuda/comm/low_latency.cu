#include "comm/low_latency.cuh"

#include "comm/launch_comm.h"

namespace longcat_ops::comm {
namespace {

template <class Element>
int launch_element(const lc_comm& c, const LowLatencyParams& params, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config = comm_launch("all_reduce_low_latency", c);
  return c.multicast != nullptr ? launch(low_latency_kernel<Element, true>, config, params, stream, memory)
                                : launch(low_latency_kernel<Element, false>, config, params, stream, memory);
}

int launch_low_latency(const lc_all_reduce_low_latency_args& a, lc_stream_t stream) {
  constexpr const char* kOp = "all_reduce_low_latency";
  if (const int status = check_comm(kOp, a.comm)) return status;
  const int64_t bytes = a.elements * element_bytes(a.dtype);
  if (const int status = check_lines(kOp, bytes, a.max_bytes)) return status;
  if (bytes == 0) return set_status(LC_OK, "");
  LowLatencyParams params{};
  params.view = view_of(a.comm);
  params.input = a.input;
  params.output = a.out;
  params.lines = a.lines;
  params.max_bytes = static_cast<uint32_t>(a.max_bytes);
  params.bytes = static_cast<uint32_t>(bytes);
  params.threads = static_cast<uint32_t>(a.comm.threads);
  Memory memory;
  memory.reads("input", static_cast<const uint8_t*>(a.input), bytes);
  if (a.input == a.out) {
    memory.updates("out", static_cast<uint8_t*>(a.out), bytes);
  } else {
    memory.writes("out", static_cast<uint8_t*>(a.out), bytes);
  }
  return visit_element(kOp, a.dtype,
                       [&](auto element) { return launch_element<decltype(element)>(a.comm, params, memory, stream); });
}

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_all_reduce_low_latency(const lc_all_reduce_low_latency_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_all_reduce_low_latency", args)) return status;
  return longcat_ops::comm::launch_low_latency(*args, stream);
}
