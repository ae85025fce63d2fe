# The host emulator of the kernels: longcat_emu_core, and emu_tests (not part of all).
option(LONGCAT_EMU "Build the host emulator of the kernels" ON)
if(NOT LONGCAT_EMU)
  return()
endif()

file(GLOB emu_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/cpp/emu/*.cpp)
add_library(longcat_emu_core STATIC EXCLUDE_FROM_ALL ${emu_sources})
target_include_directories(longcat_emu_core PUBLIC ${CMAKE_SOURCE_DIR}/cpp ${CMAKE_SOURCE_DIR}/cuda)
# Kernels compiled for the emulator need the same flags: no contraction, or float results would depend on the host.
target_compile_definitions(longcat_emu_core PUBLIC LC_EMULATE)
target_compile_options(longcat_emu_core PUBLIC -ffp-contract=off -Wno-psabi -Wno-unknown-pragmas PRIVATE -Wall -Wextra
                                               -O2)

file(GLOB emu_test_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/emu/*.cpp)
if(emu_test_sources)
  add_executable(emu_tests EXCLUDE_FROM_ALL ${emu_test_sources})
  target_compile_options(emu_tests PRIVATE -Wall -Wextra -O2)
  target_link_libraries(emu_tests PRIVATE longcat_emu_core)
endif()
