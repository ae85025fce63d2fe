# Finds nvcc according to LONGCAT_CUDA; sets LONGCAT_WITH_CUDA, LONGCAT_NVCC_VERSION and LONGCAT_NVCC_FLAGS.
set(LONGCAT_WITH_CUDA OFF)
set(LONGCAT_NVCC_VERSION "")
if(LONGCAT_CUDA STREQUAL "OFF")
  message(STATUS "LONGCAT_CUDA=OFF: CPU-only build")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES OFF)  # spelled out below: sm_90a machine code only, no PTX
# Looked for on every configuration, so that a CUDA toolkit installed later is noticed.
if(DEFINED ENV{CUDACXX})
  set(LONGCAT_NVCC $ENV{CUDACXX})
else()
  unset(LONGCAT_NVCC CACHE)
  find_program(LONGCAT_NVCC nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
endif()
if(LONGCAT_NVCC AND NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)
  set(ENV{CUDACXX} ${LONGCAT_NVCC})
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(NOT LONGCAT_NVCC OR NOT CMAKE_CUDA_COMPILER)
  set(reason "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda")
  if(LONGCAT_NVCC)
    set(reason "${LONGCAT_NVCC} cannot compile a CUDA program (see CMakeFiles/CMakeConfigureLog.yaml)")
  endif()
  if(LONGCAT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LONGCAT_CUDA=ON, but ${reason}")
  endif()
  message(STATUS "${reason}: CPU-only build (no sm_90a kernels)")
  return()
endif()

enable_language(CUDA)
# The first release with PTX ISA 8.6 (fence.sync_restrict).
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER}) is too old: longcat_ops needs "
                      ">= 12.8; set CUDACXX to a newer one, or LONGCAT_CUDA=OFF")
endif()
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows no C++20 for nvcc 13
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(LONGCAT_WITH_CUDA ON)
set(LONGCAT_NVCC_VERSION ${CMAKE_CUDA_COMPILER_VERSION})
set(LONGCAT_NVCC_FLAGS -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -fmad=false -lineinfo
                       -Xptxas=--warn-on-spills -Xcompiler=-fvisibility=hidden,-Wall,-Wextra)
message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: kernels for sm_90a")
