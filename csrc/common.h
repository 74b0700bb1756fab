// What every file of the core shares. The core knows neither Python nor torch: raw pointers, sizes, a stream.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RN_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels are compiled once per instruction set, and an out-of-line copy of a shared function
// could be picked by the linker from the translation unit with the newest instructions.
#define RN_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace ringnet {

using index_t = std::int64_t;

RN_HOST_DEVICE constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
RN_HOST_DEVICE constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }
RN_HOST_DEVICE constexpr index_t min_of(index_t a, index_t b) { return a < b ? a : b; }
RN_HOST_DEVICE constexpr index_t max_of(index_t a, index_t b) { return a > b ? a : b; }

}  // namespace ringnet
