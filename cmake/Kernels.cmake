# What longcat_kernels is made of, and the same files over the host emulator: liblongcat_emu.so, not part of all.
# Each family of kernels has a folder of cuda/.
file(GLOB LONGCAT_KERNEL_SOURCES RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS cuda/*/*.cu)
set(LONGCAT_LAUNCH_SOURCES cuda/launch/launch.cpp cuda/launch/status.cpp cuda/launch/tensor_map.cpp)
# How kernels are launched, as functions of the sizes: for the launchers, and for `explain` without a GPU.
file(GLOB LONGCAT_CONFIG_SOURCES RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS cuda/*/config.cpp)

if(TARGET longcat_emu_core)
  # CMake knows one language per file and directory, so the C++ compiler gets each .cu through a file that includes it.
  set(emu_kernel_sources "")
  foreach(source ${LONGCAT_KERNEL_SOURCES})
    get_filename_component(name ${source} NAME_WE)
    set(wrapper ${CMAKE_BINARY_DIR}/generated/emu/${name}.cpp)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${CMAKE_SOURCE_DIR}/${source}\"\n" @ONLY)
    list(APPEND emu_kernel_sources ${wrapper})
  endforeach()
  # What stands in for the CUDA runtime. Not part of longcat_emu_core: what an archive has is not exported.
  file(GLOB emu_library_sources CONFIGURE_DEPENDS cpp/emu/library/*.cpp)
  add_library(longcat_emu SHARED EXCLUDE_FROM_ALL ${emu_kernel_sources} ${LONGCAT_LAUNCH_SOURCES}
                                                  ${LONGCAT_CONFIG_SOURCES} cuda/launch/trace.cpp
                                                  ${emu_library_sources})
  target_compile_definitions(longcat_emu PRIVATE LC_TRACE)
  target_include_directories(longcat_emu PUBLIC cuda/include PRIVATE ${CMAKE_BINARY_DIR}/generated)
  target_compile_options(longcat_emu PRIVATE -Wall -Wextra -O2)
  target_link_libraries(longcat_emu PRIVATE longcat_emu_core)
  target_link_options(longcat_emu PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,defs)
endif()
