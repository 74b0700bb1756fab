// Skinning of a tile by one warp: a lane per vertex. The joints that move any vertex of the tile are a list, the same for all lanes,
// so transforms are read by broadcast and weights in full lines.
#pragma once

#include "../skinning.h"
#include "device.cuh"
#include "layout.h"

namespace ringnet::cuda {

// M: the blended transforms of the lane's vertex for NB batch elements, which share the reads of weights and joints. These are the tile's,
// transforms[i] the i-th element's (16-byte aligned).
template <int NB, class T>
__device__ __forceinline__ void blend_transforms(const T* weights, const std::int32_t* joints, const T* const (&transforms)[NB], int lane,
                                                 T (&M)[NB][12]) {
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
        for (int c = 0; c < 12; ++c) M[i][c] = T(0);
    const int count = joints[0];
    weights += lane;
#pragma unroll 1
    for (int n = 0; n < count; ++n) {
        const int joint = 12 * joints[1 + n];
        const T w = weights[n * lanes];
#pragma unroll
        for (int i = 0; i < NB; ++i) {
            T a[12];
#pragma unroll
            for (int c = 0; c < 12; c += Vec<T>::size) {
                const Vec<T> part = load_vec(transforms[i] + joint + c);
#pragma unroll
                for (int k = 0; k < Vec<T>::size; ++k) a[c + k] = part.v[k];
            }
            add_transform(M[i], w, a);
        }
    }
}

// A tile's share of a row of (V, 3): how many values it has.
__device__ __forceinline__ int tile_values(index_t V, index_t tile) {
    return static_cast<int>(min_of(tile_columns, 3 * V - tile * tile_columns));
}

// A tile's share of `count` rows of (V, 3), at most NB, from a lane per vertex, in full lines. Where the i-th element's share begins are row(i)
// and staged(i), 96 values of shared memory of this warp.
template <int NB, class T, class Row, class Staged>
__device__ __forceinline__ void store_vertices(int count, int values, int lane, const T value[NB][3], Row row, Staged staged) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
        for (int c = 0; c < 3; ++c) staged(i)[3 * lane + c] = value[i][c];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
        for (int c = 0; c < 3; ++c)
            if (i < count && c * lanes + lane < values) (row(i) + lane)[c * lanes] = (staged(i) + lane)[c * lanes];
}

template <class T>
__device__ __forceinline__ void store_vertices(T* rows, index_t V, index_t b, index_t tile, int lane, const T (&value)[3], T* staged) {
    T* row = rows + b * 3 * V + tile * tile_columns;
    store_vertices<1>(1, tile_values(V, tile), lane, &value, [&](int) { return row; },
                      [&](int) { return staged; });
}

// Gradient of the transforms of one element, d_transforms[j] += sum over the tile's vertices of w_j g [v; 1]^T. A lane sums a row of one
// joint's transform over a share of the vertices; the shares of a row are in neighbouring lanes. staged: transform_staging
// values of shared memory of this warp. d_transforms is touched by this warp only.
constexpr int staging_stride = 40;  // shares and rows of a warp's reads fall into different banks
constexpr int transform_staging = 6 * staging_stride;

template <class T>
__device__ __forceinline__ void add_transform_gradients(const T* weights, const std::int32_t* joints, const T g[3], const T v[3], int lane,
                                                        T* staged, T* d_transforms) {
    __syncwarp();
    for (int c = 0; c < 3; ++c) {
        staged[c * staging_stride + lane] = g[c];
        staged[(3 + c) * staging_stride + lane] = v[c];
    }
    __syncwarp();
    const int rows = 3 * joints[0];
    int shares = 1;
    while (shares < 8 && 2 * shares * rows <= lanes) shares *= 2;
    const int share = lane % shares;
#pragma unroll 1
    for (int first = 0; first < rows; first += lanes / shares) {  // the same number of rounds for every lane
        const int row = first + lane / shares;
        T sum[4] = {T(0), T(0), T(0), T(0)};
        const int n = row / 3, i = row % 3;
        if (row < rows) {
#pragma unroll 4
            for (int u = share; u < lanes; u += shares) {
                const T wg = weights[n * lanes + u] * staged[i * staging_stride + u];
                for (int c = 0; c < 3; ++c) sum[c] += wg * staged[(3 + c) * staging_stride + u];
                sum[3] += wg;
            }
        }
        for (int step = shares / 2; step > 0; step /= 2)
            for (int c = 0; c < 4; ++c) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], step);
        if (row < rows && share == 0) {
            T* out = d_transforms + 12 * static_cast<index_t>(joints[1 + n]) + 4 * i;
            for (int c = 0; c < 4; ++c) out[c] += sum[c];
        }
    }
}

}  // namespace ringnet::cuda
