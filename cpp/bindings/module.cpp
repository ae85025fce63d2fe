// _C, the door from Python: importing it loads liblongcat_torch (so registers the torch ops), and it hands out checks
// and build facts. It includes no torch header, so only CPython's version ties it down.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/check.h"
#include "base/version.h"
#include "config/checks.h"
#include "config/device_check.h"
#include "cpu/isa.h"
#ifdef LONGCAT_WITH_CUDA
#include "longcat_ops.h"
#endif

namespace py = pybind11;

namespace longcat_ops {
namespace {

// (dtype, sizes, strides, device type, device index, alignment), the form of longcat_ops._library.describe.
TensorDesc tensor_from_tuple(const py::tuple& fields) {
  if (fields.size() != 6) throw std::invalid_argument("a tensor descriptor has six fields");
  TensorDesc desc;
  desc.dtype = dtype_from_name(fields[0].cast<std::string>());
  const auto sizes = fields[1].cast<std::vector<int64_t>>(), strides = fields[2].cast<std::vector<int64_t>>();
  if (sizes.size() != strides.size()) throw std::invalid_argument("sizes and strides differ in length");
  desc.dim = static_cast<int>(sizes.size());
  for (int i = 0; i < std::min(desc.dim, kMaxDims); ++i) {
    desc.sizes[i] = sizes[i];
    desc.strides[i] = strides[i];
  }
  desc.device = device_from_name(fields[3].cast<std::string>());
  desc.device_index = fields[4].cast<int>();
  desc.alignment = fields[5].cast<int64_t>();
  return desc;
}

Argument argument_from_object(const py::handle& object) {
  if (object.is_none()) return std::monostate{};
  if (py::isinstance<py::tuple>(object)) return tensor_from_tuple(py::reinterpret_borrow<py::tuple>(object));
  if (py::isinstance<py::int_>(object)) return object.cast<int64_t>();
  if (py::isinstance<py::float_>(object)) return object.cast<double>();
  if (py::isinstance<py::str>(object)) return object.cast<std::string>();
  throw std::invalid_argument("an argument must be None, a descriptor tuple, an int, a float or a str");
}

// ("", "", "") when legal, else (code, reason, fix).
py::tuple check_call(const std::string& op, const py::args& objects) {
  std::vector<Argument> arguments;
  for (const auto& object : objects) arguments.push_back(argument_from_object(object));
  try {
    check(op, arguments);
  } catch (const CheckError& error) {
    return py::make_tuple(check_code_name(error.code), error.reason, error.fix);
  }
  return py::make_tuple("", "", "");
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
  m.def("checked_ops", &checked_ops, "Names of the ops that `check` knows.");
  m.def("build_info", &build_info, "Version, compiler, CUDA architecture and torch of this build.");
  m.def("device_supported", &device_supported, py::arg("device") = 0, "(supported, text) for a CUDA device.");
  m.def("judge_device", &judge, py::arg("driver_version"), py::arg("runtime_version"), py::arg("num_devices"),
        py::arg("index"), py::arg("name"), py::arg("major"), py::arg("minor"),
        "The rule behind `device_supported`, from facts: (supported, text).");
  m.def("cpu_isa", [] { return std::string(cpu::isa_name(cpu::active_isa())); }, "Instruction set in use.");
}
