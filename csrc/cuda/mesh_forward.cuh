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

// What follows the product: the template, the blended vertex kept, skinning. For the NB elements from `first` on, by one warp, `together` at a
// time; blended(i, c) is coordinate c of the lane's vertex of element first + i, staged(i) 96 values of shared memory of this warp, other
// ones for elements that are together; they may be where element i's sums were. unrolled: blended needs to know i when it is compiled.
template <int NB, int together, bool unrolled, class T, class Blended, class Staged>
__device__ __forceinline__ void finish_elements(const MeshForward<T>& p, index_t tile, index_t first, int lane, Blended blended,
                                                Staged staged) {
    const TileModel<T>& m = p.model;
    if (first >= p.B) return;
    const int valid = static_cast<int>(min_of(NB, p.B - first)), pitch = static_cast<int>(transform_pitch(m.J));
    const int values = tile_values(p.V, tile), row = static_cast<int>(3 * p.V), kept_row = static_cast<int>(m.tiles * tile_columns);
    const TileJoints<T> of_tile(m, tile);
    const T* v_template = p.v_template + first * p.v_template_stride + tile * tile_columns + 3 * lane;
    const T* transforms = p.state.transforms + first * pitch;
    T* kept = p.keep ? p.state.blended + first * kept_row + tile * tile_columns + lane : nullptr;
    T* vertices = p.vertices + first * row + tile * tile_columns;

    T rest[together][3] = {};
    const auto load_rest = [&](int i) {
#pragma unroll
        for (int e = 0; e < together; ++e)
#pragma unroll
            for (int c = 0; c < 3; ++c)
                if (3 * lane < values) rest[e][c] = v_template[min(i + e, valid - 1) * p.v_template_stride + c];
    };
    if (p.v_template_stride == 0) load_rest(0);
    const auto finish = [&](int i) {
        if (p.v_template_stride != 0) load_rest(i);
        T point[together][3], out[together][3], M[together][12];
#pragma unroll
        for (int e = 0; e < together; ++e)
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                point[e][c] = blended(i + e, c) + rest[e][c];
                if (p.keep && i + e < valid) (kept + (i + e) * kept_row)[c * lanes] = point[e][c];
            }
        const T* of_elements[together];
#pragma unroll
        for (int e = 0; e < together; ++e) of_elements[e] = transforms + min(i + e, valid - 1) * pitch;
        blend_transforms(of_tile, of_elements, lane, M);
#pragma unroll
        for (int e = 0; e < together; ++e) transform_point(M[e], point[e], out[e]);
        store_vertices<together>(
            valid - i, values, lane, out, [&](int e) { return vertices + (i + e) * row; }, [&](int e) { return staged(i + e); });
    };
    if constexpr (unrolled) {
#pragma unroll
        for (int i = 0; i < NB; i += together)
            if (i < valid) finish(i);
    } else {
#pragma unroll 1
        for (int i = 0; i < valid; i += together) finish(i);
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

    constexpr int together = NB * sizeof(T) <= 32 ? 2 : 1;
    static_assert(warps * together <= depth);
    T* staged = directions[0] + warp * together * tile_columns;
    finish_elements<NB, together, true>(
        p, tile, b0 + warp * NB, lane, [&](int i, int c) { return acc[i][c]; },
        [&](int i) { return staged + i % together * tile_columns; });
}

}  // namespace ringnet::cuda
