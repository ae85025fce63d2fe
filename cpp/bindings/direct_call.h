// Adds to _C the functions of Python that run CPU kernels without torch's dispatcher.
#pragma once

#include <pybind11/pybind11.h>

namespace longcat_ops {

void add_direct_calls(pybind11::module_& m);

}  // namespace longcat_ops
