# The host emulator of the kernels: longcat_emu_core. emu_tests, emu_numerics and emu_conformance are its tests
# (tests/emu/test_emulator.py, tests/conformance/test_conformance.py).
# Nothing here is part of the target all.
option(LONGCAT_EMU "Define the host emulator of the kernels" ON)
if(NOT LONGCAT_EMU)
  return()
endif()

get_filename_component(emu_root ${CMAKE_CURRENT_LIST_DIR}/.. ABSOLUTE)

file(GLOB emu_sources CONFIGURE_DEPENDS ${emu_root}/cpp/emu/*.cpp)
add_library(longcat_emu_core STATIC EXCLUDE_FROM_ALL ${emu_sources})
target_include_directories(longcat_emu_core PUBLIC ${emu_root}/cpp ${emu_root}/cuda)
# Kernels compiled for the emulator need the same flags: no contraction, or float results would depend on the host.
target_compile_definitions(longcat_emu_core PUBLIC LC_EMULATE)
target_compile_options(
  longcat_emu_core
  PUBLIC -O2 -ffp-contract=off -Wno-psabi -Wno-unknown-pragmas
  PRIVATE -Wall -Wextra)
target_precompile_headers(longcat_emu_core PRIVATE ${emu_root}/cpp/emu/engine.h)

file(GLOB emu_test_sources CONFIGURE_DEPENDS ${emu_root}/tests/emu/*.cpp)
add_executable(emu_tests EXCLUDE_FROM_ALL ${emu_test_sources} ${emu_root}/cuda/launch/launch.cpp
                                          ${emu_root}/cuda/launch/status.cpp)
target_include_directories(emu_tests PRIVATE ${emu_root}/cuda/include)
target_compile_options(emu_tests PRIVATE -Wall -Wextra)
target_link_libraries(emu_tests PRIVATE longcat_emu_core)
target_precompile_headers(emu_tests PRIVATE ${emu_root}/tests/emu/check.h)

add_library(emu_numerics SHARED EXCLUDE_FROM_ALL ${emu_root}/tests/emu/numerics/numerics.cpp)
target_compile_options(emu_numerics PRIVATE -Wall -Wextra)
target_link_libraries(emu_numerics PRIVATE longcat_emu_core)

# tests/conformance over the emulator; tools/conformance/library.py compiles the same cases for a GPU.
add_library(emu_conformance SHARED EXCLUDE_FROM_ALL ${emu_root}/tests/conformance/library.cpp)
target_compile_options(emu_conformance PRIVATE -Wall -Wextra)
# Long to compile and short to run.
set_source_files_properties(${emu_root}/tests/conformance/library.cpp PROPERTIES COMPILE_OPTIONS -O1)
target_link_libraries(emu_conformance PRIVATE longcat_emu_core)
