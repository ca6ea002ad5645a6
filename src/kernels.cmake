# The C core as the library `fastrnn_core`; included by the extension's CMakeLists.txt and by tests/c's.

if(MSVC)
  message(FATAL_ERROR "The kernels are GNU C with POSIX threads: build them with MinGW-w64's GCC or Clang")
endif()
find_package(Threads REQUIRED)

# The cells that are compiled in are written from their equations.
find_package(Python REQUIRED COMPONENTS Interpreter)
set(EQUATIONS ${CMAKE_CURRENT_LIST_DIR}/../fastrnn/cells)
set(CELLS_FOLDER ${CMAKE_CURRENT_BINARY_DIR}/cells)
execute_process(COMMAND ${Python_EXECUTABLE} ${EQUATIONS}/generate.py ${CELLS_FOLDER} COMMAND_ERROR_IS_FATAL ANY)
file(GLOB CELLS ${CELLS_FOLDER}/cell_*.c)
file(GLOB EQUATIONS ${EQUATIONS}/*.py)
list(APPEND EQUATIONS ${CMAKE_CURRENT_LIST_DIR}/../fastrnn/catalogue.py)
foreach(header lanes activation softmax mean normalize single int8 single_int8) # the extension contains their text
  list(APPEND EQUATIONS ${CMAKE_CURRENT_LIST_DIR}/${header}.h)
endforeach()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${EQUATIONS})

# These sources are compiled once per (dtype, instruction set).
set(KERNELS
  pack.c
  matmul.c
  matmul_bf16.c
  matmul_int8.c
  weights.c
  plan.c
  forward.c
  together.c
  backward.c
  gradients.c
  dense.c
  roofline.c
  table.c)
list(TRANSFORM KERNELS PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

# The gates of a cell are independent chains: GCC interleaves them only when told to (a tenth of the cells' time).
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  set_source_files_properties(${CELLS} PROPERTIES COMPILE_OPTIONS "-fschedule-insns;-fsched-pressure")
endif()

# Products are fused only where the source says FMA: the bits must not depend on the optimiser.
set(KERNEL_OPTIONS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi)

set(CORE_PROPERTIES C_STANDARD 11 C_EXTENSIONS ON C_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
set(CORE_OBJECTS "")
set(BUILT "")
macro(kernel_objects name sources) # and definitions; `options` are the compiler's
  add_library(${name} OBJECT ${sources})
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_LIST_DIR} ${CELLS_FOLDER})
  target_compile_definitions(${name} PRIVATE ${ARGN})
  target_compile_options(${name} PRIVATE ${KERNEL_OPTIONS} ${options})
  set_target_properties(${name} PROPERTIES ${CORE_PROPERTIES})
  list(APPEND CORE_OBJECTS $<TARGET_OBJECTS:${name}>)
endmacro()
function(fastrnn_isa suffix)
  cmake_parse_arguments(PARSE_ARGV 1 isa UNFUSED "" "")
  set(options ${isa_UNPARSED_ARGUMENTS})
  set(unfused ${suffix})
  if(NOT isa_UNFUSED) # cells that give the bits of instruction sets without fused multiply-add
    string(APPEND unfused _unfused)
    kernel_objects(${unfused} "${CELLS}" FRNN_BITS=32 FRNN_ISA=${unfused} FRNN_UNFUSED)
  endif()
  foreach(bits 32 64)
    kernel_objects(kernels_${suffix}_${bits} "${KERNELS};${CELLS}" FRNN_BITS=${bits} FRNN_ISA=${suffix}
      FRNN_UNFUSED_ISA=${unfused})
  endforeach()
  set(CORE_OBJECTS ${CORE_OBJECTS} PARENT_SCOPE)
  set(BUILT "${BUILT} ISA(${suffix}, ${suffix}, FRNN_BFLOAT16)" PARENT_SCOPE)
endfunction()

# A new instruction set is one line here and one in dispatch.c.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  fastrnn_isa(base UNFUSED)
  set(V3 -mavx2 -mfma)
  include(CheckCSourceCompiles) # older assemblers and compilers do not support it
  check_c_source_compiles([[
    int main(void) { __asm__("{vex} vpdpbusd %ymm0, %ymm0, %ymm0"); return __builtin_cpu_supports("avxvnni"); }
  ]] FRNN_AVX_VNNI)
  if(FRNN_AVX_VNNI)
    list(APPEND V3 -DFRNN_AVX_VNNI)
  endif()
  fastrnn_isa(v3 ${V3})
  set(V4 -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512)
  fastrnn_isa(v4 ${V4})
  # v4_bf16 has the kernels of v4, and its own products of bfloat16 weights.
  set(options ${V4} -mavx512bf16)
  kernel_objects(kernels_v4_bf16 ${CMAKE_CURRENT_LIST_DIR}/matmul_bf16.c FRNN_BITS=32 FRNN_ISA=v4)
  string(APPEND BUILT " ISA(v4_bf16, v4, FRNN_BFLOAT16_PAIRS)")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  fastrnn_isa(neon)
else()
  fastrnn_isa(base UNFUSED)
endif()

set(ONCE dispatch.c team.c xla.c)
list(TRANSFORM ONCE PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
add_library(fastrnn_core STATIC ${ONCE} ${CORE_OBJECTS})
target_compile_definitions(fastrnn_core PRIVATE "FRNN_BUILT=${BUILT}")
target_compile_options(fastrnn_core PRIVATE -O2 -Wall -Wextra)
target_include_directories(fastrnn_core PUBLIC ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(fastrnn_core PUBLIC Threads::Threads)
set_target_properties(fastrnn_core PROPERTIES ${CORE_PROPERTIES})
