#include "comm/exchange.cuh"

#include "comm/launch_comm.h"

namespace longcat_ops::comm {
namespace {

template <Collective kWhat, class Element>
int launch_element(const char* op, const lc_comm& c, const ExchangeParams& params, const Memory& memory,
                   lc_stream_t stream) {
  const LaunchConfig config = comm_launch(op, c);
  if (c.multicast == nullptr || c.fixed_order != 0)
    return launch(exchange_kernel<kWhat, Element, PeerSwitch<Element>, PeerSync>, config, params, stream, memory);
  return launch(exchange_kernel<kWhat, Element, MulticastSwitch<Element>, MulticastSync>, config, params, stream,
                memory);
}

template <Collective kWhat>
int launch_dtype(const char* op, const lc_comm& c, int32_t dtype, const ExchangeParams& params, const Memory& memory,
                 lc_stream_t stream) {
  return visit_element(
      op, dtype, [&](auto element) { return launch_element<kWhat, decltype(element)>(op, c, params, memory, stream); });
}

template <class Args>
ExchangeParams params_of(const Args& a) {
  ExchangeParams params{};
  params.view = view_of(a.comm);
  params.input = a.input;
  params.output = a.out;
  params.payload = a.payload;
  params.threads = static_cast<uint32_t>(a.comm.threads);
  return params;
}

template <class Args>
ExchangeParams params_of_rows(const Args& a, int64_t row_bytes) {
  ExchangeParams params = params_of(a);
  params.row_bytes = static_cast<uint64_t>(row_bytes);
  params.device_rows = a.device_rows;
  memcpy(params.rows, a.rows, sizeof params.rows);
  params.max_rows = a.max_rows;
  params.max_own_rows = a.max_own_rows;
  return params;
}

// The most rows of this rank, as far as the host knows.
template <class Args>
int64_t own_rows(const Args& a) {
  return a.device_rows != nullptr ? a.max_own_rows : a.rows[a.comm.rank];
}

template <class Args>
int64_t total_rows(const Args& a) {
  if (a.device_rows != nullptr) return a.max_rows;
  int64_t sum = 0;
  for (int rank = 0; rank < a.comm.ranks; ++rank) sum += a.rows[rank];
  return sum;
}

auto* bytes_of(const void* data) { return static_cast<const uint8_t*>(data); }
auto* bytes_of(void* data) { return static_cast<uint8_t*>(data); }

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_all_reduce(const lc_all_reduce_args* args, lc_stream_t stream) {
  using namespace longcat_ops::comm;
  if (const int status = longcat_ops::check_args("lc_all_reduce", args)) return status;
  if (const int status = check_comm("all_reduce", args->comm)) return status;
  ExchangeParams params = params_of(*args);
  params.bytes = static_cast<uint64_t>(args->elements * element_bytes(args->dtype));
  const auto bytes = static_cast<int64_t>(params.bytes);
  const longcat_ops::Memory memory =
      longcat_ops::Memory().reads("input", bytes_of(args->input), bytes).writes("out", bytes_of(args->out), bytes);
  return launch_dtype<Collective::kAllReduce>("all_reduce", args->comm, args->dtype, params, memory, stream);
}

extern "C" int lc_reduce_scatter(const lc_reduce_scatter_args* args, lc_stream_t stream) {
  using namespace longcat_ops::comm;
  if (const int status = longcat_ops::check_args("lc_reduce_scatter", args)) return status;
  if (const int status = check_comm("reduce_scatter", args->comm)) return status;
  const ExchangeParams params = params_of_rows(*args, args->width * element_bytes(args->dtype));
  const auto row_bytes = static_cast<int64_t>(params.row_bytes);
  const longcat_ops::Memory memory = longcat_ops::Memory()
                                         .reads("input", bytes_of(args->input), row_bytes * total_rows(*args))
                                         .reads("rows", args->device_rows, args->comm.ranks)
                                         .updates("out", bytes_of(args->out), row_bytes * own_rows(*args));
  return launch_dtype<Collective::kReduceScatter>("reduce_scatter", args->comm, args->dtype, params, memory, stream);
}

extern "C" int lc_all_gather(const lc_all_gather_args* args, lc_stream_t stream) {
  using namespace longcat_ops::comm;
  if (const int status = longcat_ops::check_args("lc_all_gather", args)) return status;
  if (const int status = check_comm("all_gather", args->comm)) return status;
  const ExchangeParams params = params_of_rows(*args, args->row_bytes);
  const longcat_ops::Memory memory = longcat_ops::Memory()
                                         .reads("input", bytes_of(args->input), args->row_bytes * own_rows(*args))
                                         .reads("rows", args->device_rows, args->comm.ranks)
                                         .updates("out", bytes_of(args->out), args->row_bytes * total_rows(*args));
  return launch_element<Collective::kAllGather, Bytes>("all_gather", args->comm, params, memory, stream);
}
