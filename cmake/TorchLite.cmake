# Headers and CPU-side libraries of the torch that Python imports. Not find_package(Torch): with a CUDA torch that one
# pulls in the whole toolkit and its own -gencode list, and it fails where nvcc is behind a wrapper.
execute_process(
  COMMAND
    "${Python_EXECUTABLE}" -c
    "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, int(torch._C._GLIBCXX_USE_CXX11_ABI), sep=';')"
  OUTPUT_VARIABLE torch_facts
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE torch_status)
if(NOT torch_status EQUAL 0)
  message(FATAL_ERROR "`import torch` failed in ${Python_EXECUTABLE}: install torch >= 2.11 there, then build with "
                      "pip install --no-build-isolation .")
endif()
list(GET torch_facts 0 TORCH_ROOT)
list(GET torch_facts 1 TORCH_VERSION)
list(GET torch_facts 2 TORCH_CXX11_ABI)
if(TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "torch ${TORCH_VERSION} in ${Python_EXECUTABLE} is too old: longcat_ops needs torch >= 2.11")
endif()
message(STATUS "torch ${TORCH_VERSION} at ${TORCH_ROOT}")

add_library(torch_lite INTERFACE)
target_include_directories(torch_lite SYSTEM INTERFACE ${TORCH_ROOT}/include)
target_compile_definitions(
  torch_lite INTERFACE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI} TORCH_TARGET_VERSION=0x020a000000000000)
# libtorch.so itself must be a dependency (not only libtorch_cpu.so): on a CUDA torch it is what reaches the CUDA half.
target_link_libraries(torch_lite INTERFACE -Wl,--no-as-needed ${TORCH_ROOT}/lib/libtorch.so
                                           ${TORCH_ROOT}/lib/libtorch_cpu.so -Wl,--as-needed)
target_link_options(torch_lite INTERFACE -Wl,--allow-shlib-undefined)
