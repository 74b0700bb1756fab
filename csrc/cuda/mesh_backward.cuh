// The mesh's gradients for large batches, in one pass over grad_vertices: a block takes 8 NB batch elements and a chunk of tiles,
// un-skins a tile into shared memory and multiplies it with the tile's directions.
#pragma once

#include "skin.cuh"
#include "tensor_cores.cuh"

namespace ringnet::cuda {

constexpr int mesh_backward_threads = 256;

template <class T>
struct MeshBackward {
    TileModel<T> model;
    State<T> state;
    Workspace<T> workspace;
    index_t B, V, chunks, tiles_per_chunk, slices;
    const T* grad;
    index_t grad_stride[3];
    T* grad_v_template;        // (B, V, 3) or null
    bool sum_grad_v_template;  // into the workspace
};

constexpr int backward_depth = 16;  // columns of a tile that pass through shared memory at a time

// The product of a block's 8 NB rows of un-skinned gradient with a slice of directions, a kernel's choice:
// in float32. A warp's rows are those of its own NB batch elements; a lane holds NF features, 32 apart, of each of them.
template <class T, int NB_>
struct Float32Product {
    static constexpr int NB = NB_, NF = backward_features<T>, W = Vec<T>::size;
    static constexpr int row = backward_depth + W, gradient_row = tile_columns + W;  // padded: lanes' rows fall into different banks
    T acc[NB][NF] = {};

    // Until what may still be read of the gradient's rows has been.
    static __device__ void wait_for_readers() { __syncwarp(); }
    __device__ __forceinline__ void add_columns(const T* directions, const T* gradient, int warp, int lane) {
        const T* d = directions + lane * row;
        const T* g = gradient + warp * NB * gradient_row;
#pragma unroll 1
        for (int n = 0; n < backward_depth; n += W) {
            Vec<T> dn[NF];
#pragma unroll
            for (int f = 0; f < NF; ++f) dn[f] = load_vec(d + f * lanes * row + n);
#pragma unroll
            for (int i = 0; i < NB; ++i) {
                const Vec<T> gn = load_vec(g + i * gradient_row + n);
#pragma unroll
                for (int f = 0; f < NF; ++f)
#pragma unroll
                    for (int c = 0; c < W; ++c) acc[i][f] += gn.v[c] * dn[f].v[c];
            }
        }
    }
    template <class Store>  // (element of the block, feature of the slice, value)
    __device__ __forceinline__ void each(int warp, int lane, Store store) const {
#pragma unroll
        for (int i = 0; i < NB; ++i)
#pragma unroll
            for (int f = 0; f < NF; ++f) store(warp * NB + i, f * lanes + lane, acc[i][f]);
    }
};

// On tensor cores. Pairs of warps share 16 elements; each has half of the slice's features.
struct TensorProduct {
    static constexpr int NB = 8, NF = backward_features<float>, tiles = lanes * NF / 2 / mma_columns;
    static constexpr int row = backward_depth, gradient_row = tile_columns + 16;  // rows of a warp's reads fall into different banks
    static_assert(backward_depth == mma_terms);
    float acc[tiles][4] = {};

    static __device__ void wait_for_readers() { __syncthreads(); }
    __device__ __forceinline__ void add_columns(const float* directions, const float* gradient, int warp, int lane) {
        const float* g = gradient + (warp / 2 * mma_rows + lane / 4) * gradient_row + lane % 4 * 4;
        const float* d = directions + warp % 2 * tiles * mma_columns * row + lane * 4;  // row lane / 4, columns from 4 (lane % 4) on
        MmaRows rows;
        rows.set(0, load_vec(g));
        rows.set(1, load_vec(g + 8 * gradient_row));
#pragma unroll
        for (int n = 0; n < tiles; ++n) {
            MmaColumn column;
            column.set(load_vec(d + n * mma_columns * row).v);
            add_product(acc[n], rows, column);
        }
    }
    template <class Store>
    __device__ __forceinline__ void each(int warp, int lane, Store store) const {
#pragma unroll
        for (int n = 0; n < tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                store(warp / 2 * mma_rows + lane / 4 + i / 2 * 8, (warp % 2 * tiles + n) * mma_columns + lane % 4 * 2 + i % 2, acc[n][i]);
    }
};

template <class T, class Product>
constexpr index_t mesh_backward_bytes() {
    constexpr index_t warps = mesh_backward_threads / lanes;
    return static_cast<index_t>(sizeof(T)) * (2 * lanes * Product::NF * Product::row               // directions, double-buffered
                                              + warps * Product::NB * Product::gradient_row        // un-skinned gradient
                                              + warps * transform_staging);
}

// A warp un-skins the gradient of its own NB batch elements. Slices split the features between blocks; slice 0 also does what is not about
// features.
template <class T, class Product>
__global__ void __launch_bounds__(mesh_backward_threads, 2) mesh_backward_kernel(MeshBackward<T> p) {
    constexpr int W = Vec<T>::size, warps = mesh_backward_threads / lanes, NB = Product::NB;
    constexpr int slice_features = lanes * Product::NF, row = Product::row, gradient_row = Product::gradient_row;
    constexpr int steps = tile_columns / backward_depth, buffer_size = slice_features * row;

    const TileModel<T>& m = p.model;
    const int t = static_cast<int>(threadIdx.x), warp = t / lanes, lane = t % lanes;
    const index_t slice = blockIdx.x % p.slices, chunk = blockIdx.x / p.slices % p.chunks, group = blockIdx.x / p.slices / p.chunks;
    const index_t b0 = (group * warps + warp) * NB;  // of this warp
    const index_t first_tile = chunk * p.tiles_per_chunk, end_tile = min_of(first_tile + p.tiles_per_chunk, m.tiles);
    const int first_feature = static_cast<int>(slice) * slice_features;
    const index_t J = m.J;

    T* directions = shared_memory<T>();                   // (2, slice_features, row)
    T* all_gradient = directions + 2 * buffer_size;        // (warps, NB, gradient_row)
    T* gradient = all_gradient + warp * NB * gradient_row;  // this warp's
    T* all_staging = all_gradient + warps * NB * gradient_row;
    T* staging = all_staging + warp * transform_staging;

    // Step s of the block's walk: 16 columns of a tile, six steps to a tile.
    const auto copy = [&](int s) {
        constexpr int vecs = backward_depth / W;
        const T* from = m.tile_directions(first_tile + s / steps) + (s % steps * backward_depth + t % vecs * W);
        T* to = directions + (s % 2 * buffer_size + t % vecs * W);
#pragma unroll
        for (int i = 0; i < slice_features * vecs / mesh_backward_threads; ++i) {
            const int f = (t + i * mesh_backward_threads) / vecs;
            const int k = min(first_feature + f, static_cast<int>(m.Fp) - 1);  // beyond the features: never stored
            copy_async(reinterpret_cast<Vec<T>*>(to + f * row), reinterpret_cast<const Vec<T>*>(from + k * static_cast<int>(tile_columns)));
        }
    };

    const auto d_transforms = [&](int i) { return p.workspace.transforms + (chunk * p.B + b0 + i) * 12 * J; };
    if (slice == 0)
        for (int i = 0; i < NB; ++i)
            if (b0 + i < p.B)
                for (index_t n = lane; n < 12 * J; n += lanes) d_transforms(i)[n] = T(0);

    Product product;
    int s = 0;
    if (m.Fp > 0) copy(0);
    for (index_t tile = first_tile; tile < end_tile; ++tile) {
        const T* weights = m.tile_weights(tile);
        const std::int32_t* joints = m.tile_joints(tile);
        const index_t v = tile * tile_vertices + lane;
        T sum[3] = {T(0), T(0), T(0)};
        Product::wait_for_readers();  // of the last tile's gradient
#pragma unroll 1
        for (int i = 0; i < NB; ++i) {
            const index_t b = b0 + i;
            T d[3] = {T(0), T(0), T(0)};
            if (b < p.B) {
                T g[3], M[1][12];
                for (int c = 0; c < 3; ++c)
                    g[c] = v < p.V ? p.grad[b * p.grad_stride[0] + v * p.grad_stride[1] + c * p.grad_stride[2]] : T(0);
                const T* transforms = p.state.transforms + b * transform_pitch(J);
                blend_transforms(weights, joints, {transforms}, lane, M);
                transform_point_vjp(M[0], g, d);
                if (slice == 0) {
                    const T* kept = p.state.blended + (b * m.tiles + tile) * tile_columns + lane;
                    const T point[3] = {kept[0], kept[lanes], kept[2 * lanes]};
                    add_transform_gradients(weights, joints, g, point, lane, staging, d_transforms(i));
                    if (p.grad_v_template && !p.sum_grad_v_template) store_vertices(p.grad_v_template, p.V, b, tile, lane, d, staging);
                }
            }
            for (int c = 0; c < 3; ++c) {
                gradient[i * gradient_row + c * lanes + lane] = d[c];
                sum[c] += d[c];
            }
        }
        if (slice == 0 && p.sum_grad_v_template) {
            __syncwarp();  // the staging memory is no longer read
            for (int c = 0; c < 3; ++c) staging[c * lanes + lane] = sum[c];
            __syncthreads();
            if (t < tile_columns) {
                T total = T(0);
                for (int w = 0; w < warps; ++w) total += all_staging[w * transform_staging + t];
                p.workspace.rest[(group * m.tiles + tile) * tile_columns + t] = total;
            }
            __syncthreads();
        }
        if (m.Fp == 0) continue;
#pragma unroll 1
        for (int step = 0; step < steps; ++step, ++s) {
            wait_copies();
            __syncthreads();  // this step's columns and the un-skinned gradient are here, and nobody reads the other buffer any more
            if (step + 1 < steps || tile + 1 < end_tile) copy(s + 1);
            product.add_columns(directions + s % 2 * buffer_size, all_gradient + step * backward_depth, warp, lane);
        }
    }

    product.each(warp, lane, [&](int element, int feature, T value) {
        const index_t b = group * warps * NB + element;
        const int k = first_feature + feature;
        if (b < p.B && k < m.F) p.workspace.features[(chunk * p.B + b) * m.Fp + k] = value;
    });
}

// elements: 8 or 4; 8 on tensor cores.
template <class T>
void launch_mesh_backward(const char* name, const MeshBackward<T>& p, int elements, bool tensor_cores, index_t blocks, stream_t stream) {
    const auto run = [&](auto product) {
        using Product = decltype(product);
        launch(name, mesh_backward_kernel<T, Product>, blocks, mesh_backward_threads,
               static_cast<std::size_t>(mesh_backward_bytes<T, Product>()), stream, p);
    };
    if constexpr (sizeof(T) == 4) {
        if (elements == 8 && tensor_cores) return run(TensorProduct());
        if (elements == 8) return run(Float32Product<T, 8>());
    }
    run(Float32Product<T, 4>());
}

// grad_v_template (V, 3) from the groups' sums (groups, tiles, 3, 32), in order.
template <class T>
__global__ void __launch_bounds__(256) sum_rest_kernel(const T* sums, index_t groups, index_t tiles, index_t V, T* grad_v_template) {
    const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= 3 * V) return;
    const index_t v = i / 3, column = i % 3 * tile_vertices + v % tile_vertices;
    T sum = T(0);
#pragma unroll 4
    for (index_t g = 0; g < groups; ++g) sum += sums[(g * tiles + v / tile_vertices) * tile_columns + column];
    grad_v_template[i] = sum;
}

}  // namespace ringnet::cuda
