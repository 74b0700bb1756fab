// Products on tensor cores to float32 accuracy: 3xTF32, sm_80 on. Tensor cores multiply numbers of 11 bits: x = high + low, two such numbers,
// and x y = low high + high low + high high, without the smallest product. And they cut off what they add up: so 16 terms are a sum of
// their own, which a float32 addition adds to the others.
//
// In an mma of 16 rows, 8 columns and 8 terms a lane gives terms `quarter` and `quarter` + 4 of rows `group` and `group` + 8 and of column `group`,
// and receives columns 2 quarter and 2 quarter + 1 of its rows. Which of 16 terms these are in which of two steps is ours to choose: terms
// 4 quarter to 4 quarter + 3, which lie side by side in memory.
#pragma once

#include "device.cuh"

namespace ringnet::cuda {

constexpr int mma_rows = 16, mma_columns = 8, mma_steps = 2, mma_terms = 8 * mma_steps;

// high is rounded to the nearest, so low has the least to hold; tensor cores don't look at the 13 bits below their 11.
__device__ __forceinline__ void split(float x, std::uint32_t& high, std::uint32_t& low) {
    high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    low = __float_as_uint(x - __uint_as_float(high));
}

// A lane's share of 16 rows: four terms of its two.
struct MmaRows {
    std::uint32_t high[mma_steps][4], low[mma_steps][4];
    __device__ __forceinline__ void set(int below, const Vec<float>& terms) {  // 0: row `group`; 1: 8 rows below
#pragma unroll
        for (int n = 0; n < 4; ++n) split(terms.v[n], high[n / 2][n % 2 * 2 + below], low[n / 2][n % 2 * 2 + below]);
    }
};

// A lane's share of 8 columns: four terms of its one.
struct MmaColumn {
    std::uint32_t high[mma_steps][2], low[mma_steps][2];
    __device__ __forceinline__ void set(const float (&terms)[4]) {
#pragma unroll
        for (int n = 0; n < 4; ++n) split(terms[n], high[n / 2][n % 2], low[n / 2][n % 2]);
    }
};

// acc += the product of 16 terms: two columns of row `group`, then of the row 8 below.
__device__ __forceinline__ void add_product(float (&acc)[4], const MmaRows& a, const MmaColumn& b) {
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int step = 0; step < mma_steps; ++step) {  // the small ones first: they lose least among themselves
        mma_tf32(sum, a.low[step], b.high[step]);
        mma_tf32(sum, a.high[step], b.low[step]);
    }
#pragma unroll
    for (int step = 0; step < mma_steps; ++step) mma_tf32(sum, a.high[step], b.high[step]);
#pragma unroll
    for (int n = 0; n < 4; ++n) acc[n] += sum[n];
}

}  // namespace ringnet::cuda
