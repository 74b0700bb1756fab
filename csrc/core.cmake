# The target ringnet_core: a static library that knows neither Python nor torch. For a project that has enabled C++, and CUDA where
# ringnet_cuda is on.
option(RINGNET_WERROR "Treat warnings in our own sources as errors" OFF)
set(RINGNET_OPENMP AUTO CACHE STRING "Several threads on the CPU: ON, OFF, or AUTO (where the compiler finds OpenMP)")
set_property(CACHE RINGNET_OPENMP PROPERTY STRINGS AUTO ON OFF)

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

if(RINGNET_OPENMP STREQUAL "AUTO")
  find_package(OpenMP COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    message(STATUS "RINGNET_OPENMP=AUTO: the CPU kernels run on as many threads as PyTorch's")
  else()
    message(STATUS "RINGNET_OPENMP=AUTO: ${CMAKE_CXX_COMPILER_ID} finds no OpenMP, the CPU kernels run on one thread")
  endif()
elseif(RINGNET_OPENMP)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
endif()

# A build with sanitizers takes a third of the time at -O1.
set(RINGNET_OPTIMIZATION -O3 CACHE STRING "How the compiler is told to optimise the CPU kernels")

# Contracting a * b + c is part of the kernels' contract; floating-point exceptions and errno aren't. No fast-math.
set(ringnet_math_flags ${RINGNET_OPTIMIZATION} -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(ringnet_warnings -Wall -Wextra $<$<BOOL:${RINGNET_WERROR}>:-Werror>)

set(ringnet_csrc ${CMAKE_CURRENT_LIST_DIR})
add_library(ringnet_core STATIC
  ${ringnet_csrc}/cpu/dispatch.cpp ${ringnet_csrc}/cpu/joints.cpp ${ringnet_csrc}/cpu/mesh.cpp ${ringnet_csrc}/cpu/points.cpp ${ringnet_csrc}/cpu/threads.cpp)
target_include_directories(ringnet_core PUBLIC ${ringnet_csrc})
target_compile_options(ringnet_core PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${ringnet_math_flags};${ringnet_warnings}>)
set_source_files_properties(${ringnet_csrc}/cpu/mesh.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
if(RINGNET_OPENMP AND OpenMP_CXX_FOUND)
  target_link_libraries(ringnet_core PUBLIC OpenMP::OpenMP_CXX)
endif()

# One translation unit, compiled once per instruction set and chosen at run time.
function(ringnet_add_kernels level)
  add_library(ringnet_kernels_${level} OBJECT ${ringnet_csrc}/cpu/kernels.cpp)
  target_compile_definitions(ringnet_kernels_${level} PRIVATE RN_LEVEL=${level})
  target_compile_options(ringnet_kernels_${level} PRIVATE ${ringnet_math_flags} ${ringnet_warnings} ${ARGN})
  target_sources(ringnet_core PRIVATE $<TARGET_OBJECTS:ringnet_kernels_${level}>)
endfunction()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  add_compile_definitions(RN_X86)
  target_compile_definitions(ringnet_core PRIVATE RN_X86)
  ringnet_add_kernels(avx2 -mavx2 -mfma)
  ringnet_add_kernels(avx512 -mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma)
endif()
set(ringnet_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # The scheduler before register allocation, which is off on x86, loads early, until there are more values than registers: not in
  # these kernels (tests/core/loops.py).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(ringnet_baseline -fno-schedule-insns)
  else()
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_FLAGS "-mllvm -enable-misched=false")
    check_cxx_source_compiles("int main() {}" RINGNET_HAS_MISCHED)
    unset(CMAKE_REQUIRED_FLAGS)
    if(RINGNET_HAS_MISCHED)
      set(ringnet_baseline "SHELL:-mllvm -enable-misched=false")
    endif()
  endif()
endif()
ringnet_add_kernels(baseline ${ringnet_baseline})

if(ringnet_cuda)
  file(GLOB ringnet_cuda_sources CONFIGURE_DEPENDS ${ringnet_csrc}/cuda/*.cu)
  if(NOT ringnet_cuda_sources)
    message(FATAL_ERROR "RINGNET_CUDA=ON: no sources in csrc/cuda")
  endif()
  target_sources(ringnet_core PRIVATE ${ringnet_cuda_sources})
  target_compile_definitions(ringnet_core PUBLIC RN_WITH_CUDA)
  target_compile_options(ringnet_core PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>"
    # In CI, warnings are errors and ptxas reports each kernel's registers and spills.
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${RINGNET_WERROR}>>:-Xcompiler=-Werror;--Werror=all-warnings;-Xptxas=-v>")
endif()
