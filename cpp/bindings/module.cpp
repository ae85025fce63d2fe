// _C, the module that Python imports: importing it loads liblongcat_torch, which registers the torch ops. It provides
// checks and build facts. It includes no torch header, so it depends on CPython's version only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <vector>

#include "bindings/direct_call.h"
#include "check/error.h"
#include "comm/config.h"
#include "common/version.h"
#include "cpu/isa.h"
#include "launch/device_check.h"
#include "ops/table.h"
#ifdef LONGCAT_WITH_CUDA
#include "longcat_ops.h"
#endif

namespace py = pybind11;

namespace longcat_ops {
namespace {

// torch's dtypes are singletons, so each is looked up by name once.
DType dtype_from_object(const py::handle& dtype) {
  static std::unordered_map<PyObject*, DType> known;
  const auto found = known.find(dtype.ptr());
  if (found != known.end()) return found->second;
  return known[dtype.inc_ref().ptr()] = dtype_from_name(py::str(dtype));
}

void set_sizes(TensorDesc& desc, const py::tuple& sizes, const py::tuple& strides) {
  if (sizes.size() != strides.size()) throw std::invalid_argument("sizes and strides differ in length");
  desc.dim = static_cast<int>(sizes.size());
  for (int i = 0; i < std::min(desc.dim, kMaxDims); ++i) {
    desc.sizes[i] = PyLong_AsLongLong(sizes[i].ptr());
    desc.strides[i] = PyLong_AsLongLong(strides[i].ptr());
  }
}

void set_memory(TensorDesc& desc, const py::object& address, const py::object& bytes, const py::object& offset) {
  desc.address = address.cast<uint64_t>();
  desc.storage_bytes = bytes.cast<int64_t>();
  desc.storage_offset = offset.cast<int64_t>();
}

// (dtype, sizes, strides, device type, device index, address), for a tensor that does not exist.
TensorDesc tensor_from_tuple(const py::tuple& fields) {
  if (fields.size() != 6) throw std::invalid_argument("a tensor descriptor has six fields");
  TensorDesc desc;
  desc.dtype = dtype_from_name(fields[0].cast<std::string>());
  set_sizes(desc, fields[1].cast<py::tuple>(), fields[2].cast<py::tuple>());
  desc.device = device_from_name(fields[3].cast<std::string>());
  desc.device_index = fields[4].cast<int>();
  desc.address = fields[5].cast<uint64_t>();
  return desc;
}

// Types of tensors without memory of their own, which must not be asked for it. Set by `set_fake_types`.
std::vector<PyObject*> fake_tensor_types;

bool is_fake(const py::handle& tensor) {
  return std::any_of(fake_tensor_types.begin(), fake_tensor_types.end(),
                     [&](PyObject* type) { return PyObject_IsInstance(tensor.ptr(), type) == 1; });
}

TensorDesc tensor_from_object(const py::handle& tensor) {
  // Interned once: these look-ups are most of the cost of a check.
  static PyObject* const dtype = PyUnicode_InternFromString("dtype");
  static PyObject* const shape = PyUnicode_InternFromString("shape");
  static PyObject* const stride = PyUnicode_InternFromString("stride");
  static PyObject* const is_cpu = PyUnicode_InternFromString("is_cpu");
  static PyObject* const device = PyUnicode_InternFromString("device");
  static PyObject* const type = PyUnicode_InternFromString("type");
  static PyObject* const index = PyUnicode_InternFromString("index");
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  static PyObject* const untyped_storage = PyUnicode_InternFromString("untyped_storage");
  static PyObject* const nbytes = PyUnicode_InternFromString("nbytes");
  static PyObject* const storage_offset = PyUnicode_InternFromString("storage_offset");
  const auto get = [](const py::handle& object, PyObject* name) {
    PyObject* value = PyObject_GetAttr(object.ptr(), name);
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  };
  const auto call = [](const py::handle& object, PyObject* name) {
    PyObject* value = PyObject_CallMethodNoArgs(object.ptr(), name);
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  };
  TensorDesc desc;
  desc.dtype = dtype_from_object(get(tensor, dtype));
  set_sizes(desc, get(tensor, shape), call(tensor, stride));
  if (get(tensor, is_cpu).ptr() != Py_True) {  // making a device and its name costs more than all the rest
    const py::object place = get(tensor, device), number = get(place, index);
    desc.device = device_from_name(get(place, type).cast<std::string>());
    desc.device_index = number.is_none() ? 0 : number.cast<int>();
  }
  if (!is_fake(tensor))
    set_memory(desc, call(tensor, data_ptr), call(call(tensor, untyped_storage), nbytes), call(tensor, storage_offset));
  return desc;
}

void set_fake_types(const py::args& types) {
  fake_tensor_types.clear();
  for (const auto& type : types) fake_tensor_types.push_back(type.inc_ref().ptr());
}

Argument argument_from_object(const py::handle& object) {
  if (object.is_none()) return std::monostate{};
  if (py::isinstance<py::tuple>(object)) return tensor_from_tuple(py::reinterpret_borrow<py::tuple>(object));
  if (py::isinstance<py::int_>(object)) return object.cast<int64_t>();
  if (py::isinstance<py::float_>(object)) return object.cast<double>();
  if (py::isinstance<py::str>(object)) return object.cast<std::string>();
  return tensor_from_object(object);
}

std::vector<Argument> arguments_from_objects(const py::args& objects) {
  std::vector<Argument> arguments;
  arguments.reserve(objects.size());
  for (const auto& object : objects) arguments.push_back(argument_from_object(object));
  return arguments;
}

// ("", "", "") when legal, else (code, reason, fix).
py::tuple check_call(const std::string& op, const py::args& objects) {
  try {
    check(op, arguments_from_objects(objects));
  } catch (const CheckError& error) {
    return py::make_tuple(check_code_name(error.code), error.reason, error.fix);
  }
  return py::make_tuple("", "", "");
}

py::list list_of(const std::vector<Candidate>& candidates) {
  py::list out;
  for (const auto& candidate : candidates) {
    const ProductCounts& c = candidate.counts;
    out.append(py::make_tuple(
        candidate.config.tile_rows, candidate.config.max_tokens, candidate.config.paired, candidate.config.stages,
        round_smem(static_cast<int>(candidate.config.smem_bytes)), candidate.config.grid, candidate.tiles,
        candidate.waves, candidate.chosen, candidate.reason,
        py::make_tuple(c.memory_bytes, c.l2_bytes, c.l2_shared, c.sm_bytes, c.sm_flops, c.sm_smem_bytes)));
  }
  return out;
}

py::dict explain_call(const std::string& op, const py::args& objects) {
  const Explanation found = explain(op, arguments_from_objects(objects));
  py::list launches;
  for (const auto& one : found.launches)
    launches.append(py::make_tuple(one.kernel, one.blocks, one.threads, one.smem_bytes));
  py::dict out;
  out["candidates"] = list_of(found.candidates);
  out["launches"] = launches;
  out["bytes_read"] = found.bytes_read;
  out["bytes_written"] = found.bytes_written;
  out["flops"] = found.flops;
  out["assumes"] = found.assumes;
  return out;
}

std::vector<std::string> op_names() {
  std::vector<std::string> names;
  for (const OpRow& row : all_ops()) names.emplace_back(row.schema.op);
  return names;
}

py::list product_tiles(int64_t groups, int64_t rows, int64_t n, int64_t k, std::optional<int64_t> max_rows,
                       int64_t split_k, bool swiglu, int sms) {
  MoeGemmProblem problem;
  problem.groups = groups;
  problem.rows = problem.group_rows = rows;
  problem.n = n;
  problem.k = k;
  problem.max_rows = max_rows.value_or(-1);
  problem.split_k = split_k;
  problem.swiglu = swiglu;
  problem.sms = sms;
  return list_of(moe_gemm_candidates(problem));
}

// collective: its number in comm::Collective. Python checks the values.
py::dict comm_config(int collective, int ranks, int64_t bytes, std::optional<int64_t> largest_part, bool has_multicast,
                     bool deterministic, bool staged, std::optional<int> blocks, std::optional<int> threads,
                     std::optional<int64_t> ll_bytes) {
  const comm::CommConfig config = comm::choose_comm_config(
      {static_cast<comm::Collective>(collective), ranks, bytes, largest_part.value_or(-1), has_multicast, deterministic,
       staged, blocks.value_or(0), threads.value_or(0), ll_bytes.value_or(-1)});
  py::dict out;
  out["form"] = static_cast<int>(config.form);
  out["policy"] = static_cast<int>(config.policy);
  out["blocks"] = config.blocks;
  out["threads"] = config.threads;
  out["packs"] = config.packs;
  out["shard_packs"] = config.shard_packs;
  out["scratch_bytes"] = config.scratch_bytes;
  return out;
}

py::dict build_info() {
  py::dict info;
  info["version"] = LC_VERSION;
  info["compiler"] = LC_COMPILER;
  info["torch_built_with"] = LC_TORCH_BUILT_WITH;
  info["cpu_isas"] = cpu::available_isas();
#ifdef LONGCAT_WITH_CUDA
  info["cuda"] = true;
  info["arch"] = "sm_90a";
  info["nvcc"] = LC_NVCC;
  info["kernels"] = lc_build_info();
#else
  info["cuda"] = false;
  info["arch"] = py::none();
  info["nvcc"] = py::none();
  info["kernels"] = py::none();
#endif
  return info;
}

py::tuple device_supported(int device) {
#ifdef LONGCAT_WITH_CUDA
  const bool supported = lc_device_supported(device) == LC_OK;
  return py::make_tuple(supported, std::string(lc_last_error()));
#else
  (void)device;
  return py::make_tuple(false, "this build of longcat_ops has no CUDA kernels; rebuild it where nvcc is on PATH");
#endif
}

py::tuple judge(int driver_version, int runtime_version, int num_devices, int index, const std::string& name, int major,
                int minor) {
  const DeviceVerdict verdict = judge_device({driver_version, runtime_version, num_devices, index, name, major, minor});
  return py::make_tuple(verdict.problem == DeviceProblem::kNone, verdict.reason);
}

}  // namespace
}  // namespace longcat_ops

PYBIND11_MODULE(_C, m) {
  using namespace longcat_ops;
  m.doc() = "Native part of longcat_ops; use the functions of the longcat_ops package instead.";
  m.def("check", &check_call, "check(op, *arguments) -> (code, reason, fix), all empty when the call is legal");
  m.def("explain", &explain_call, "explain(op, *arguments) -> bytes, flops and launches of a call, outputs included");
  m.def("product_tiles", &product_tiles, py::arg("groups"), py::arg("rows"), py::arg("n"), py::arg("k"),
        py::arg("max_rows"), py::arg("split_k"), py::arg("swiglu"), py::arg("sms"),
        "Tiles of an FP8 product of these sizes, with counts.");
  m.def("comm_config", &comm_config, py::arg("collective"), py::arg("ranks"), py::arg("bytes"), py::arg("largest_part"),
        py::arg("has_multicast"), py::arg("deterministic"), py::arg("staged"), py::arg("blocks"), py::arg("threads"),
        py::arg("ll_bytes"), "How a collective of these sizes runs; longcat_ops.perf.comm names the numbers.");
  m.def("set_fake_types", &set_fake_types, "Tensor types that have no memory; of all others it is checked.");
  m.def("checked_ops", &op_names, "Names of the ops that `check` knows.");
  m.def("build_info", &build_info, "Version, compiler, CUDA architecture and torch of this build.");
  m.def("device_supported", &device_supported, py::arg("device") = 0, "(supported, text) for a CUDA device.");
  m.def("judge_device", &judge, py::arg("driver_version"), py::arg("runtime_version"), py::arg("num_devices"),
        py::arg("index"), py::arg("name"), py::arg("major"), py::arg("minor"),
        "The rule behind `device_supported`, from facts: (supported, text).");
  m.def("judge_registers", &judge_registers, py::arg("op"), py::arg("registers"), py::arg("fewest"),
        "Why a kernel with so many registers a thread must not be launched; empty if it may.");
  add_direct_calls(m);
  m.def("cpu_isa", [] { return std::string(cpu::isa_name(cpu::active_isa())); }, "Instruction set in use.");
}
