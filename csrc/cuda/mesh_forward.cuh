// The mesh for large batches: a block computes a group of batch elements x 32 vertices x 3 coordinates as a matrix product of features and
// directions, adds the template and skins. Two kernels differ in how they multiply.
#pragma once

#include "skin.cuh"

namespace ringnet::cuda {

constexpr int mesh_forward_threads = 128;

template <class T>
struct MeshForward {
    TileModel<T> model;
    State<T> state;
    index_t B, V;
    const T* v_template;
    index_t v_template_stride;
    bool keep;
    T* vertices;
};

// What follows the product: the template, the blended vertex kept, skinning. For the NB elements from `first` on, by one warp; blended(i, c)
// is coordinate c of the lane's vertex of element first + i, staged(i) 96 values of shared memory of this warp, which may be where
// element i's sums were.
template <int NB, class T, class Blended, class Staged>
__device__ __forceinline__ void finish_elements(const MeshForward<T>& p, index_t tile, index_t first, int lane, Blended blended, Staged staged) {
    const TileModel<T>& m = p.model;
    const T* weights = m.tile_weights(tile);
    const std::int32_t* joints = m.tile_joints(tile);
    const index_t v = tile * tile_vertices + lane;
#pragma unroll
    for (int i = 0; i < NB; ++i) {
        const index_t b = first + i;
        if (b >= p.B) break;
        const T* rest = p.v_template + b * p.v_template_stride + 3 * v;
        T point[3], out[3], M[12];
#pragma unroll
        for (int c = 0; c < 3; ++c) point[c] = blended(i, c) + (v < p.V ? rest[c] : T(0));
        if (p.keep) {
            T* kept = p.state.blended + (b * m.tiles + tile) * tile_columns + lane;
#pragma unroll
            for (int c = 0; c < 3; ++c) kept[c * lanes] = point[c];
        }
        blend_transforms(weights, joints, p.state.transforms + b * transform_pitch(m.J), lane, M);
        transform_point(M, point, out);
        store_vertices(p.vertices, p.V, b, tile, lane, out, staged(i));
    }
}

// A lane holds x, y and z of one vertex for NB batch elements; a warp holds 32 vertices; four warps, four times NB elements. 16
// features at a time come through shared memory, double-buffered.
template <class T, int NB>
__global__ void __launch_bounds__(mesh_forward_threads, sizeof(T) == 4 ? 4 : 2) mesh_forward_kernel(MeshForward<T> p) {
    constexpr int W = Vec<T>::size, warps = mesh_forward_threads / lanes, elements = warps * NB, depth = feature_multiple;
    constexpr int row = elements + W;  // padded: the transposing copies spread over the banks
    __shared__ __align__(16) T directions[2][depth * tile_columns];
    __shared__ __align__(16) T features[2][depth * row];

    const TileModel<T>& m = p.model;
    const int t = static_cast<int>(threadIdx.x), warp = t / lanes, lane = t % lanes;
    const index_t tile = blockIdx.x % m.tiles, b0 = blockIdx.x / m.tiles * elements;

    const auto copy = [&](int chunk, int buffer) {
        const Vec<T>* from = reinterpret_cast<const Vec<T>*>(m.tile_directions(tile) + static_cast<index_t>(chunk) * depth * tile_columns);
        Vec<T>* to = reinterpret_cast<Vec<T>*>(directions[buffer]);
#pragma unroll
        for (int i = 0; i < depth * tile_columns / W / mesh_forward_threads; ++i)
            copy_async(to + t + i * mesh_forward_threads, from + t + i * mesh_forward_threads);
        const int k = t % depth;
#pragma unroll
        for (int i = 0; i < elements * depth / mesh_forward_threads; ++i) {
            const int e = t / depth + i * (mesh_forward_threads / depth);
            const index_t b = min_of(b0 + e, p.B - 1);  // beyond the batch: computed like the last element, never stored
            copy_async(&features[buffer][k * row + e], p.state.features + b * m.Fp + chunk * depth + k);
        }
    };

    T acc[NB][3];
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
        for (int c = 0; c < 3; ++c) acc[i][c] = T(0);

    const int chunks = static_cast<int>(m.Fp / depth);
    if (chunks > 0) copy(0, 0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_copies();
        __syncthreads();  // this chunk is here, and nobody reads the other buffer any more
        if (chunk + 1 < chunks) copy(chunk + 1, (chunk + 1) % 2);
        const T* d = directions[chunk % 2] + lane;
        const T* x = features[chunk % 2] + warp * NB;
#pragma unroll
        for (int k = 0; k < depth; ++k) {
            const T dx = d[k * tile_columns], dy = d[k * tile_columns + lanes], dz = d[k * tile_columns + 2 * lanes];
#pragma unroll
            for (int i = 0; i < NB; i += W) {
                const Vec<T> xs = load_vec(x + k * row + i);
#pragma unroll
                for (int c = 0; c < W; ++c) {
                    acc[i + c][0] += xs.v[c] * dx;
                    acc[i + c][1] += xs.v[c] * dy;
                    acc[i + c][2] += xs.v[c] * dz;
                }
            }
        }
    }
    __syncthreads();

    T* staged = directions[0] + warp * tile_columns;
    finish_elements<NB>(p, tile, b0 + warp * NB, lane, [&](int i, int c) { return acc[i][c]; }, [&](int) { return staged; });
}

}  // namespace ringnet::cuda
