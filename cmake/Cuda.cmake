# Finds nvcc according to LONGCAT_CUDA; sets LONGCAT_WITH_CUDA, LONGCAT_NVCC_VERSION and LONGCAT_NVCC_FLAGS.
set(LONGCAT_WITH_CUDA OFF)
set(LONGCAT_NVCC_VERSION "")
if(LONGCAT_CUDA STREQUAL "OFF")
  message(STATUS "LONGCAT_CUDA=OFF: CPU-only build")
  return()
endif()

include(CheckLanguage)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # spelled out below: sm_90a machine code only, no PTX
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(LONGCAT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LONGCAT_CUDA=ON, but no working nvcc was found; put it on PATH or set CUDACXX")
  endif()
  message(STATUS "nvcc not found: CPU-only build (no sm_90a kernels)")
  return()
endif()

enable_language(CUDA)
# 12.5 is the first with cudaGetDriverEntryPointByVersion.
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.5)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER}) is too old: longcat_ops needs "
                      ">= 12.5; set CUDACXX to a newer one, or LONGCAT_CUDA=OFF")
endif()
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows no C++20 for nvcc 13
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(LONGCAT_WITH_CUDA ON)
set(LONGCAT_NVCC_VERSION ${CMAKE_CUDA_COMPILER_VERSION})
set(LONGCAT_NVCC_FLAGS -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -fmad=false -lineinfo
                       -Xptxas=--warn-on-spills -Xcompiler=-fvisibility=hidden,-Wall,-Wextra)
message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: kernels for sm_90a")
