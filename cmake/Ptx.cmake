# Writes generated/ptx/wgmma_shapes.inc, the part of the PTX layer that is too repetitive to type.
set(generate_wgmma ${CMAKE_SOURCE_DIR}/cmake/generate_wgmma.py)
execute_process(COMMAND ${Python_EXECUTABLE} ${generate_wgmma} ${CMAKE_BINARY_DIR}/generated/ptx/wgmma_shapes.inc
                        COMMAND_ERROR_IS_FATAL ANY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${generate_wgmma})
