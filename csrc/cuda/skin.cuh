// Skinning of a tile by one warp: a lane per vertex. The joints that move any vertex of the tile are a list, the same for all lanes,
// so transforms are read by broadcast and weights in full lines.
#pragma once

#include "../skinning.h"
#include "device.cuh"
#include "layout.h"

namespace ringnet::cuda {

// M: the blended transform of the lane's vertex. weights and joints are the tile's, transforms the element's (16-byte aligned).
template <class T>
__device__ __forceinline__ void blend_transforms(const T* weights, const std::int32_t* joints, const T* transforms, int lane, T M[12]) {
#pragma unroll
    for (int i = 0; i < 12; ++i) M[i] = T(0);
    const int count = joints[0];
#pragma unroll 1
    for (int n = 0; n < count; ++n) {
        const T* A = transforms + 12 * static_cast<index_t>(joints[1 + n]);
        T a[12];
#pragma unroll
        for (int i = 0; i < 12; i += Vec<T>::size) {
            const Vec<T> part = load_vec(A + i);
#pragma unroll
            for (int c = 0; c < Vec<T>::size; ++c) a[i + c] = part.v[c];
        }
        add_transform(M, weights[n * lanes + lane], a);
    }
}

// Rows of (B, V, 3) from a lane per vertex, in full lines. staged: 96 values of shared memory of this warp.
template <class T>
__device__ __forceinline__ void store_vertices(T* rows, index_t V, index_t b, index_t tile, int lane, const T value[3], T* staged) {
    __syncwarp();
    for (int c = 0; c < 3; ++c) staged[3 * lane + c] = value[c];
    __syncwarp();
    const index_t begin = tile * tile_columns;
    for (int i = lane; i < tile_columns; i += lanes)
        if (begin + i < 3 * V) rows[b * 3 * V + begin + i] = staged[i];
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
