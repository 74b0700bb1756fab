// Skinning of a tile by one warp: a lane per vertex. The joints that move any vertex of the tile are a list, the same for all lanes,
// so transforms are read by broadcast and weights in full lines.
#pragma once

#include "../skinning.h"
#include "device.cuh"
#include "layout.h"

namespace ringnet::cuda {

// The joints that move any vertex of a tile, and their weights.
template <class T>
struct TileJoints {
    int count;
    const std::int32_t* joints;
    const T* weights;  // (count, 32)
    __device__ __forceinline__ TileJoints(const TileModel<T>& m, index_t tile)
        : count(m.tile_joints(tile)[0]), joints(m.tile_joints(tile) + 1), weights(m.tile_weights(tile)) {}
};

// M: the blended transforms of the lane's vertex for NB batch elements, which share the reads of weights and joints. transforms[i] are the i-th
// element's (16-byte aligned).
template <int NB, class T>
__device__ __forceinline__ void blend_transforms(const TileJoints<T>& of_tile, const T* const (&transforms)[NB], int lane, T (&M)[NB][12]) {
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
        for (int c = 0; c < 12; ++c) M[i][c] = T(0);
    const auto add = [&](int i, int joint, T w) {
        T a[12];
#pragma unroll
        for (int c = 0; c < 12; c += Vec<T>::size) {
            const Vec<T> part = load_vec(transforms[i] + joint + c);
#pragma unroll
            for (int k = 0; k < Vec<T>::size; ++k) a[c + k] = part.v[k];
        }
        add_transform(M[i], w, a);
    };
#pragma unroll 1
    for (int n = 0; n < of_tile.count; ++n) {
        const int joint = 12 * of_tile.joints[n];
        const T w = (of_tile.weights + lane)[n * lanes];
        if constexpr (NB == 1) {
            add(0, joint, w);
        } else {  // not around a single element: the compiler would take its pragma for the loop's outside
#pragma unroll
            for (int i = 0; i < NB; ++i) add(i, joint, w);
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
    store_vertices<1>(1, tile_values(V, tile), lane, &value, [&](int) { return row; }, [&](int) { return staged; });
}

// Gradient of the transforms of one element, d_transforms[j] += sum over the tile's vertices of w_j g [v; 1]^T, in two steps: every lane
// leaves its vertex's g and v in shared memory of this warp; then four lanes share a row of one joint's transform, eight rows at a
// time, a quarter of the vertices each, and end with one value of the row each, which goes to add(place in (J, 12), value).
constexpr int staging_stride = 40;  // parts of a warp's reads fall into different banks
constexpr int transform_staging = 6 * staging_stride;

template <class T>
__device__ __forceinline__ void stage_gradient(const T g[3], const T v[3], int lane, T* staged) {
    __syncwarp();  // nobody reads the last element's any more
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        (staged + lane)[c * staging_stride] = g[c];
        (staged + lane)[(3 + c) * staging_stride] = v[c];
    }
    __syncwarp();
}

template <class T, class Add>
__device__ __forceinline__ void add_transform_gradients(const TileJoints<T>& of_tile, int lane, const T* staged, Add add) {
    constexpr int shares = 4, W = Vec<T>::size;
    const int share = lane & (shares - 1), rows = 3 * of_tile.count;
    const T* points = staged + 3 * staging_stride + share * W;
    const bool upper = share & 1, right = share & 2;
#pragma unroll 1
    for (int first = 0; first < rows; first += lanes / shares) {  // the same number of rounds for every lane
        const unsigned row = static_cast<unsigned>(first + lane / shares);
        const int i = static_cast<int>(row % 3), n = min(static_cast<int>(row / 3), of_tile.count - 1);
        const T* w = of_tile.weights + share * W + n * lanes;
        const T* g = staged + share * W + i * staging_stride;
        T sum[4] = {T(0), T(0), T(0), T(0)};
#pragma unroll
        for (int u = 0; u < lanes; u += shares * W) {
            if (u > 0) finish_reads();
            const Vec<T> wu = load_vec(w + u), gu = load_vec(g + u);
            const Vec<T> x = load_vec(points + u), y = load_vec(points + staging_stride + u), z = load_vec(points + 2 * staging_stride + u);
#pragma unroll
            for (int k = 0; k < W; ++k) {
                const T wg = wu.v[k] * gu.v[k];
                sum[0] += wg * x.v[k];
                sum[1] += wg * y.v[k];
                sum[2] += wg * z.v[k];
                sum[3] += wg;
            }
        }
        // Each lane gives away half of what it has, twice.
        T pair[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) pair[c] = (right ? sum[2 + c] : sum[c]) + __shfl_xor_sync(0xffffffffu, right ? sum[c] : sum[2 + c], 2);
        const T total = (upper ? pair[1] : pair[0]) + __shfl_xor_sync(0xffffffffu, upper ? pair[0] : pair[1], 1);
        if (row < static_cast<unsigned>(rows)) add(12 * of_tile.joints[n] + 4 * i + share, total);
    }
}

}  // namespace ringnet::cuda
