// The mesh for large batches with the product on tensor cores.
#pragma once

#include "mesh_forward.cuh"
#include "tensor_cores.cuh"

namespace ringnet::cuda {

// A block's 64 elements x 32 vertices are four warps of 32 elements x 16 vertices, all coordinates each. Which vertex a column is, is ours to
// choose too: such that a lane reads two vertices at once and ends with four in a row.
constexpr int tensor_forward_elements = 64;

template <class T>  // float
__global__ void __launch_bounds__(mesh_forward_threads, 3) mesh_forward_tensor_kernel(MeshForward<T> p) {
    constexpr int W = Vec<T>::size, elements = tensor_forward_elements, depth = feature_multiple, columns = tile_columns;
    constexpr int sums_row = columns + 16;  // padded: a warp's stores of rows spread over the banks
    constexpr int m_tiles = 2, halves = 2, parts = elements / 4;
    static_assert(depth == mma_terms);
    // Directions and features, double-buffered; after the product its result.
    __shared__ __align__(16) T memory[elements * sums_row];
    T* directions = memory;                          // (2, 16, 96)
    T* features = directions + 2 * depth * columns;  // (2, 64, 16)
    static_assert(2 * depth * (columns + elements) <= elements * sums_row);

    const TileModel<T>& m = p.model;
    const int t = static_cast<int>(threadIdx.x), warp = t / lanes, lane = t % lanes, group = lane / 4, quarter = lane % 4;
    const index_t tile = blockIdx.x % m.tiles, b0 = blockIdx.x / m.tiles * elements;

    // 16 bytes of row k go to another place in the row, turned by 2 (k / 4), so that the rows of four quarters fall into different banks.
    const auto copy = [&](int chunk, int buffer) {
        constexpr int row_vecs = columns / W, feature_vecs = depth / W;
        const T* from = m.tile_directions(tile) + static_cast<index_t>(chunk) * depth * columns;
        T* to = directions + buffer * depth * columns;
#pragma unroll
        for (int i = 0; i < depth * row_vecs / mesh_forward_threads; ++i) {
            const int n = t + i * mesh_forward_threads, k = n / row_vecs, place = n % row_vecs ^ 2 * (k / 4);
            copy_async(reinterpret_cast<Vec<T>*>(to + k * columns + place * W), reinterpret_cast<const Vec<T>*>(from + n * W));
        }
#pragma unroll
        for (int i = 0; i < elements * feature_vecs / mesh_forward_threads; ++i) {
            const int n = t + i * mesh_forward_threads;
            const index_t b = min_of(b0 + n / feature_vecs, p.B - 1);  // beyond the batch: computed like the last element, never stored
            copy_async(reinterpret_cast<Vec<T>*>(features + buffer * elements * depth + n * W),
                       reinterpret_cast<const Vec<T>*>(p.state.features + b * m.Fp + chunk * depth + n % feature_vecs * W));
        }
    };

    const int first_row = warp / 2 * mma_rows * m_tiles, first_vertex = warp % 2 * 16;  // of the warp, in the block
    T acc[m_tiles][3][halves][4] = {};  // of a tile of 16 elements, coordinate, half: vertices 2 column + half

    const int chunks = static_cast<int>(m.Fp / depth);
    if (chunks > 0) copy(0, 0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_copies();
        __syncthreads();  // this chunk is here, and nobody reads the other buffer any more
        if (chunk + 1 < chunks) copy(chunk + 1, (chunk + 1) % 2);

        const T* x = features + chunk % 2 * elements * depth + (first_row + group) * depth + 4 * quarter;
        MmaRows rows[m_tiles];
#pragma unroll
        for (int i = 0; i < m_tiles; ++i)
#pragma unroll
            for (int below = 0; below < 2; ++below) rows[i].set(below, load_vec(x + (mma_rows * i + 8 * below) * depth));
        const T* d = directions + chunk % 2 * depth * columns + 4 * quarter * columns + ((first_vertex + 2 * group) ^ 8 * quarter);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            T terms[halves][4];
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const float2 two = *reinterpret_cast<const float2*>(d + n * columns + c * lanes);
                terms[0][n] = two.x, terms[1][n] = two.y;
            }
#pragma unroll
            for (int half = 0; half < halves; ++half) {
                MmaColumn column;
                column.set(terms[half]);
#pragma unroll
                for (int i = 0; i < m_tiles; ++i) add_product(acc[i][c][half], rows[i], column);
            }
        }
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < m_tiles; ++i)
#pragma unroll
        for (int below = 0; below < 2; ++below)
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const auto& of = acc[i][c];
                const Vec<T> four{{of[0][2 * below], of[1][2 * below], of[0][2 * below + 1], of[1][2 * below + 1]}};
                store_vec(memory + (first_row + mma_rows * i + 8 * below + group) * sums_row + c * lanes + first_vertex + 4 * quarter,
                          four);
            }
    __syncthreads();
    T* sums = memory + warp * parts * sums_row;
    finish_elements<parts, 4, false>(
        p, tile, b0 + warp * parts, lane, [&](int i, int c) { return sums[i * sums_row + c * lanes + lane]; },
        [&](int i) { return sums + i * sums_row; });
}

// elements: per thread of the kernel without tensor cores; 16 with them.
template <class T>
void launch_mesh_forward(const char* name, const MeshForward<T>& p, int elements, bool tensor_cores, stream_t stream) {
    auto kernel = mesh_forward_kernel<T, 8>;
    if constexpr (sizeof(T) == 4) {
        if (elements == 4) kernel = mesh_forward_kernel<T, 4>;
        if (elements == 16) kernel = tensor_cores ? mesh_forward_tensor_kernel<T> : mesh_forward_kernel<T, 16>;
    }
    const index_t per_block = mesh_forward_threads / lanes * elements;
    launch(name, kernel, p.model.tiles * ceil_div(p.B, per_block), mesh_forward_threads, 0, stream, p);
}

}  // namespace ringnet::cuda
