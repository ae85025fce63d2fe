// Runs CPU kernels without torch's dispatcher, which costs more than a small op: it parses a call from Python, looks up
// kernels, boxes arguments. Only plain tensors are taken, and only while nothing in torch watches or changes calls.
// Whatever is not taken, or fails, goes back to Python. That makes torch's own call, which raises the error if any.
#include "bindings/direct_call.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/cpu_kernels.h"

namespace py = pybind11;

namespace longcat_ops {
namespace {

using bindings::CpuKernel;
using bindings::PassedArgument;

// A name of a module, and its value while nothing watches calls.
using Idle = std::tuple<py::dict, py::str, py::object>;

// What direct calls ask of torch; ops/direct.py names the functions.
struct Torch {
  py::tuple types;     // of plain tensors
  py::tuple watchers;  // functions without arguments; where one gives something true, torch must see the call
  std::vector<Idle> idle;
  py::tuple oddities;  // methods of a tensor; where one gives True, torch must read it
  py::object is_grad_enabled;
  py::object empty_strided;  // (sizes, strides, dtype) -> a tensor on the CPU
};
const Torch* torch = nullptr;  // never freed: Python may be gone before static objects are
bool enabled = false;

struct Passed {
  std::array<PassedArgument, kMaxArguments> arguments;
  std::array<PyObject*, kMaxArguments> tensors;  // those that are given, in order
  size_t num_tensors = 0;
};

// A size of a result: that of a dimension of an argument.
struct Place {
  size_t argument;
  int dimension;
};

// An op that makes its first output itself, contiguous [rows, columns], and has no other.
struct Maker {
  const CpuKernel& kernel;
  const Place rows, columns;
  const py::object dtype;  // or the place of an argument that has it
};

py::object steal(PyObject* object) { return py::reinterpret_steal<py::object>(object); }

// Takes a new reference. An error counts as true: torch's own call shall raise it.
bool is_true(PyObject* result) {
  const py::object object = steal(result);
  return !object || PyObject_IsTrue(result) != 0;
}

// A tensor's Python object has the tensor behind its head; `begins_with_tensor` has made sure.
void* handle_of(PyObject* object) { return object + 1; }

bool is_plain(PyObject* object) {
  for (const auto& type : torch->types)
    if (type.ptr() == reinterpret_cast<PyObject*>(Py_TYPE(object))) return true;
  return false;
}

bool is_idle(const Idle& entry) {
  const auto& [names, name, idle] = entry;
  PyObject* value = PyDict_GetItemWithError(names.ptr(), name.ptr());
  return value && PyObject_RichCompareBool(value, idle.ptr(), Py_EQ) == 1;
}

bool is_watched() {
  for (const Idle& entry : torch->idle)
    if (!is_idle(entry)) return true;
  for (const auto& watcher : torch->watchers)
    if (is_true(PyObject_CallNoArgs(watcher.ptr()))) return true;
  return false;
}

// Whether torch must see to a tensor: to its gradient, or to what its memory means.
bool has_odd_tensor(const Passed& passed) {
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  const bool grad_enabled = is_true(PyObject_CallNoArgs(torch->is_grad_enabled.ptr()));
  for (size_t i = 0; i < passed.num_tensors; ++i) {
    if (grad_enabled && is_true(PyObject_GetAttr(passed.tensors[i], requires_grad))) return true;
    for (const auto& oddity : torch->oddities)
      if (is_true(PyObject_CallOneArg(oddity.ptr(), passed.tensors[i]))) return true;
  }
  return false;
}

bool read_integer(PyObject* object, int64_t& value) {
  int overflow = 0;
  if (!PyLong_CheckExact(object)) return false;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

// False: the object is not of exactly the type that its parameter has.
bool read_argument(Kind kind, PyObject* object, Passed& passed, PassedArgument& argument) {
  if (object == Py_None) return kind == Kind::kOptionalTensor || kind == Kind::kOptionalInt;
  argument.given = true;
  switch (kind) {
    case Kind::kTensor:
    case Kind::kOptionalTensor:
      argument.tensor = handle_of(object);
      passed.tensors[passed.num_tensors++] = object;
      return is_plain(object);
    case Kind::kInt:
    case Kind::kOptionalInt: return read_integer(object, argument.integer);
    case Kind::kFloat:
      if (!PyFloat_CheckExact(object)) return false;
      argument.number = PyFloat_AS_DOUBLE(object);
      return true;
    case Kind::kBool: argument.integer = object == Py_True; return PyBool_Check(object);
  }
  return false;
}

// Reads the first `count` arguments of a call; false: one is not of exactly the type that its parameter has.
bool read_arguments(const Schema& schema, PyObject* const* objects, size_t count, Passed& passed) {
  for (size_t i = 0; i < count; ++i)
    if (!read_argument(schema.parameters[i].kind, objects[i], passed, passed.arguments[i])) return false;
  return true;
}

// The same; false: torch must make the call.
bool read_call(const Schema& schema, PyObject* const* objects, size_t count, Passed& passed) {
  return read_arguments(schema, objects, count, passed) && passed.num_tensors > 0 &&
         bindings::is_on_cpu(handle_of(passed.tensors[0])) && !is_watched() && !has_odd_tensor(passed);
}

bool run(const CpuKernel& kernel, const Passed& passed) {
  PyThreadState* const thread = PyEval_SaveThread();  // NOTE: pybind11's guard costs twice as much
  const bool done = bindings::run_cpu_kernel(kernel, passed.arguments.data());
  PyEval_RestoreThread(thread);
  return done;
}

template <class T>
const T& state_of(PyObject* function_self) {
  return *static_cast<const T*>(PyCapsule_GetPointer(function_self, nullptr));
}

// The arguments of the schema -> whether the op has run.
PyObject* call(PyObject* self, PyObject* const* objects, Py_ssize_t count) {
  const CpuKernel& kernel = state_of<CpuKernel>(self);
  const Schema& schema = bindings::schema_of(kernel);
  Passed passed;
  const bool done = enabled && static_cast<size_t>(count) == schema.size &&
                    read_call(schema, objects, schema.size, passed) && run(kernel, passed);
  if (!done) PyErr_Clear();
  return PyBool_FromLong(done);
}

int64_t size_at(const Place& place, const Passed& passed) {
  void* tensor = passed.arguments[place.argument].tensor;
  return tensor ? bindings::size_of(tensor, place.dimension) : -1;
}

py::object dtype_of(const Maker& maker, PyObject* const* objects) {
  static PyObject* const name = PyUnicode_InternFromString("dtype");
  if (!PyLong_CheckExact(maker.dtype.ptr())) return maker.dtype;
  return steal(PyObject_GetAttr(objects[PyLong_AsSize_t(maker.dtype.ptr())], name));
}

// Null: torch must make it.
py::object new_output(const Maker& maker, PyObject* const* objects, const Passed& passed) {
  const int64_t rows = size_at(maker.rows, passed), columns = size_at(maker.columns, passed);
  if (rows < 0 || columns < 0) return {};
  const py::object sizes = steal(Py_BuildValue("LL", rows, columns)),
                   strides = steal(Py_BuildValue("Li", std::max<int64_t>(columns, 1), 1)),
                   dtype = dtype_of(maker, objects);
  if (!sizes || !strides || !dtype) return {};
  PyObject* arguments[] = {sizes.ptr(), strides.ptr(), dtype.ptr()};
  return steal(PyObject_Vectorcall(torch->empty_strided.ptr(), arguments, std::size(arguments), nullptr));
}

// The inputs of the schema -> the output, or None if the op has not run.
PyObject* make(PyObject* self, PyObject* const* objects, Py_ssize_t count) {
  const Maker& maker = state_of<Maker>(self);
  const Schema& schema = bindings::schema_of(maker.kernel);
  Passed passed;
  if (enabled && static_cast<size_t>(count) == schema.first_output &&
      read_call(schema, objects, schema.first_output, passed)) {
    if (py::object out = new_output(maker, objects, passed)) {
      passed.arguments[schema.first_output] = {.given = true, .tensor = handle_of(out.ptr())};
      if (run(maker.kernel, passed)) return out.release().ptr();
    }
  }
  PyErr_Clear();
  Py_RETURN_NONE;
}

// A function of Python over `state`, which lives as long as the process.
template <auto kFunction>
py::object function_over(const char* name, const void* state) {
  static PyMethodDef method = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(kFunction)), METH_FASTCALL,
                               nullptr};
  return steal(PyCFunction_New(&method, py::capsule(state).ptr()));
}

py::object direct_call(const std::string& op) {
  const CpuKernel* kernel = bindings::find_cpu_kernel(op);
  return kernel ? function_over<call>("direct_call", kernel) : py::none();
}

py::object direct_maker(const std::string& op, const std::pair<size_t, int>& rows,
                        const std::pair<size_t, int>& columns, const py::object& dtype) {
  const CpuKernel* kernel = bindings::find_cpu_kernel(op);
  if (!kernel) return py::none();
  const Schema& schema = bindings::schema_of(*kernel);
  for (size_t i = schema.first_output + 1; i < schema.size; ++i)
    if (schema.parameters[i].kind != Kind::kOptionalTensor) throw std::invalid_argument(op + " has several outputs");
  const auto place = [](const std::pair<size_t, int>& pair) { return Place{pair.first, pair.second}; };
  return function_over<make>("direct_maker", new Maker{*kernel, place(rows), place(columns), dtype});
}

// Whether direct calls find the tensor in its Python object. address: what torch says that begins there.
bool begins_with_tensor(const py::handle& tensor, uint64_t address) {
  uint64_t found = 0;
  if (Py_TYPE(tensor.ptr())->tp_basicsize < static_cast<Py_ssize_t>(sizeof(PyObject) + sizeof found)) return false;
  std::memcpy(&found, handle_of(tensor.ptr()), sizeof found);
  return found == address;
}

// Adds a call of the op to `recording`; false: it is not one of plain tensors on the CPU, or the op refuses it.
bool record(bindings::Recording& recording, const std::string& op, const py::args& objects) {
  const CpuKernel* kernel = bindings::find_cpu_kernel(op);
  Passed passed;
  if (!kernel || objects.size() != bindings::schema_of(*kernel).size) return false;
  return read_arguments(bindings::schema_of(*kernel), PySequence_Fast_ITEMS(objects.ptr()), objects.size(), passed) &&
         recording.add(*kernel, passed.arguments.data());
}

void set_torch(const py::tuple& types, const py::tuple& watchers, const std::vector<Idle>& idle,
               const py::tuple& oddities, const py::object& is_grad_enabled, const py::object& empty_strided) {
  torch = new Torch{types, watchers, idle, oddities, is_grad_enabled, empty_strided};
}

bool enable(bool on) { return std::exchange(enabled, on && torch); }

}  // namespace

void add_direct_calls(py::module_& m) {
  m.def("begins_with_tensor", &begins_with_tensor, "Whether direct calls find the tensor in this Python object.");
  m.def("set_torch", &set_torch, py::arg("types"), py::arg("watchers"), py::arg("idle"), py::arg("oddities"),
        py::arg("is_grad_enabled"), py::arg("empty_strided"), "What direct calls ask of torch.");
  py::class_<bindings::Recording>(m, "Recording", "Calls of CPU kernels in a row, checked once, run many times.")
      .def(py::init<>())
      .def("add", &record, "Adds a call; False: not of plain CPU tensors, or refused. Keep its tensors.")
      .def("run", &bindings::Recording::run, py::call_guard<py::gil_scoped_release>(), "False: a kernel failed.");
  m.def("enable_direct_calls", &enable, "Turns direct calls on or off; returns what they were.");
  m.def("direct_call", &direct_call, "A function that runs an op's CPU kernel; None if it has none.");
  m.def("direct_maker", &direct_maker, py::arg("op"), py::arg("rows"), py::arg("columns"), py::arg("dtype"),
        "The same, of an op that makes its output.");
}

}  // namespace longcat_ops
