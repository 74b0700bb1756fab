// The mesh's gradients for large batches, in one pass over grad_vertices: a block takes 8 NB batch elements and a chunk of tiles,
// un-skins a tile into shared memory and multiplies it with the tile's directions.
#pragma once

#include "skin.cuh"
#include "tensor_cores.cuh"

namespace ringnet::cuda {

template <class T>
struct MeshBackward {
    TileModel<T> model;
    State<T> state;
    Workspace<T> workspace;
    BackwardPlan plan;
    index_t B, V;
    const T* grad;
    index_t grad_stride[3];
    T* grad_v_template;        // (B, V, 3) or null
    bool sum_grad_v_template;  // into the workspace
    bool on_chip = false;      // d(transforms) add up in shared memory, else in the workspace; the launch decides
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
constexpr index_t mesh_backward_bytes(index_t on_chip_sums) {
    constexpr index_t warps = mesh_backward_threads / lanes;
    return static_cast<index_t>(sizeof(T)) * (2 * lanes * Product::NF * Product::row         // directions, double-buffered
                                              + warps * Product::NB * Product::gradient_row  // un-skinned gradient
                                              + warps * transform_staging                    //
                                              + warps * Product::NB * on_chip_sums);         // d(transforms)
}

// The chunk and group of a block, and the batch elements of a warp: from `first` on, `valid` of them in the batch. Computed anew at each use,
// so that nothing of it takes registers during the product.
struct OwnElements {
    int chunk, group, warp, lane, valid;
    index_t first;
};
template <int NB, class T>
__device__ __forceinline__ OwnElements own_elements(const MeshBackward<T>& p) {
    const unsigned t = fresh_thread_index(), block = fresh_block_index(), chunks = static_cast<unsigned>(p.plan.chunks);
    const int group = static_cast<int>(block / chunks), warp = static_cast<int>(t / lanes);
    const index_t first = (static_cast<index_t>(group) * (mesh_backward_threads / lanes) + warp) * NB;
    return {static_cast<int>(block % chunks),
            group,
            warp,
            static_cast<int>(t % lanes),
            static_cast<int>(max_of(0, min_of(NB, p.B - first))),
            first};
}

// The n-th tile that a block walks to: its chunk, once for every slice of features. tile < 0: no more.
struct Place {
    int tile, slice;
};
template <class T>
__device__ __forceinline__ Place place_of(const MeshBackward<T>& p, int n) {
    const int per_chunk = static_cast<int>(p.plan.tiles_per_chunk),
              first = static_cast<int>(fresh_block_index() % static_cast<unsigned>(p.plan.chunks)) * per_chunk;
    const int count = min(per_chunk, static_cast<int>(p.model.tiles) - first), slice = n / count;
    return {slice < p.plan.slices ? first + n % count : -1, slice};
}

// Where a warp's sums of d(transforms) are, (NB, J, 12): on the chip and in the workspace.
template <int NB, class T>
__device__ __forceinline__ T* sums_on_chip(const MeshBackward<T>& p, const OwnElements& own, T* all_staging) {
    return all_staging + mesh_backward_threads / lanes * transform_staging + own.warp * NB * 12 * static_cast<int>(p.model.J);
}
template <class T>
__device__ __forceinline__ T* sums_in_workspace(const MeshBackward<T>& p, const OwnElements& own) {
    return p.workspace.transforms + (own.chunk * p.B + own.first) * 12 * p.model.J;
}

// A tile's gradient, a warp's own elements: un-skinned into `gradient`, d(transforms) added up.
template <class T, class Product>
__device__ __forceinline__ void unskin_tile(const MeshBackward<T>& p, int tile, T* all_gradient, T* all_staging) {
    constexpr int NB = Product::NB, gradient_row = Product::gradient_row, warps = mesh_backward_threads / lanes;
    const TileModel<T>& m = p.model;
    const OwnElements own = own_elements<NB>(p);
    const int lane = own.lane, valid = own.valid, sums = 12 * static_cast<int>(m.J), pitch = static_cast<int>(transform_pitch(m.J));
    const int values = tile_values(p.V, tile), kept_row = static_cast<int>(m.tiles * tile_columns);
    T* gradient = all_gradient + own.warp * NB * gradient_row;
    T* staging = all_staging + own.warp * transform_staging;
    T* on_chip = sums_on_chip<NB>(p, own, all_staging);

    const TileJoints<T> of_tile(m, tile);
    const T* from = p.grad + (own.first * p.grad_stride[0] + (static_cast<index_t>(tile) * tile_vertices + lane) * p.grad_stride[1]);
    const T* kept = p.state.blended + (own.first * m.tiles + tile) * tile_columns + lane;
    const T* transforms = p.state.transforms + own.first * pitch;
    T g[3], point[3];
    const auto fetch = [&] {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            g[c] = 3 * lane < values ? from[c * p.grad_stride[2]] : T(0);
            point[c] = kept[c * lanes];
        }
    };
    if (valid > 0) fetch();
    Product::wait_for_readers();  // of the last tile's gradient
#pragma unroll 1
    for (int left = valid; left > 0; --left) {
        T M[1][12], d[3];
        blend_transforms(of_tile, {transforms}, lane, M);
        transform_point_vjp(M[0], g, d);
        stage_gradient(g, point, lane, staging);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            (gradient + lane)[c * lanes] = d[c];
            if (p.plan.kept_tiles > 0) (p.workspace.blended + (kept - p.state.blended))[c * lanes] = d[c];
        }
        from += p.grad_stride[0], kept += kept_row, transforms += pitch, gradient += gradient_row;
        if (left > 1) fetch();  // the next element's, while this one's sums are added up
        const int i = valid - left;
        add_transform_gradients(of_tile, lane, staging, [&](int n, T value) {
            if (p.on_chip)
                (on_chip + i * sums)[n] += value;
            else
                (sums_in_workspace(p, own_elements<NB>(p)) + i * sums)[n] += value;
        });
        if (p.grad_v_template && !p.sum_grad_v_template)
            store_vertices(p.grad_v_template, p.V, own_elements<NB>(p).first + i, tile, lane, d, staging);
    }
    if (p.sum_grad_v_template) {
        __syncthreads();
        const int column = own.warp * lanes + lane;
        if (column < tile_columns) {
            T total = T(0);
#pragma unroll 4
            for (int i = 0; i < warps * NB; ++i) total += all_gradient[i * gradient_row + column];
            p.workspace.rest[(own_elements<NB>(p).group * m.tiles + tile) * tile_columns + column] = total;
        }
        __syncthreads();
    }
}

// The same tile for a further slice: what unskin_tile left in the workspace.
template <class T, class Product>
__device__ __forceinline__ void fetch_unskinned(const MeshBackward<T>& p, int tile, T* all_gradient) {
    constexpr int NB = Product::NB, gradient_row = Product::gradient_row, W = Vec<T>::size, vecs = tile_columns / W;
    const OwnElements own = own_elements<NB>(p);
    T* gradient = all_gradient + own.warp * NB * gradient_row;
    const T* from = p.workspace.blended + (own.first * p.model.tiles + tile) * tile_columns;
    Product::wait_for_readers();
#pragma unroll 1
    for (int n = own.lane; n < own.valid * vecs; n += lanes) {
        const int i = n / vecs, place = n % vecs * W;
        copy_async(reinterpret_cast<Vec<T>*>(gradient + i * gradient_row + place),
                   reinterpret_cast<const Vec<T>*>(from + i * static_cast<int>(p.model.tiles * tile_columns) + place));
    }
}

// Before the first tile: no sums yet, and nothing of elements beyond the batch.
template <class T, class Product>
__device__ __forceinline__ void begin_unskinning(const MeshBackward<T>& p, T* all_gradient, T* all_staging) {
    constexpr int NB = Product::NB, gradient_row = Product::gradient_row;
    const OwnElements own = own_elements<NB>(p);
    const int sums = 12 * static_cast<int>(p.model.J);
    T* d_transforms = p.on_chip ? sums_on_chip<NB>(p, own, all_staging) : sums_in_workspace(p, own);
#pragma unroll 1
    for (int n = own.lane; n < own.valid * sums; n += lanes) d_transforms[n] = T(0);
#pragma unroll 1
    for (int i = own.valid; i < NB; ++i)
        for (int c = 0; c < 3; ++c) all_gradient[(own.warp * NB + i) * gradient_row + c * lanes + own.lane] = T(0);
}

// A warp un-skins the gradient of its own NB batch elements, a tile after the other, and all warps multiply it with a slice of the
// directions' features. For the other slices, where there are more features than one holds, the un-skinned gradient comes out of the workspace.
template <class T, class Product>
__global__ void __launch_bounds__(mesh_backward_threads, 2) mesh_backward_kernel(MeshBackward<T> p) {
    constexpr int W = Vec<T>::size, warps = mesh_backward_threads / lanes, NB = Product::NB;
    constexpr int slice_features = lanes * Product::NF, row = Product::row, gradient_row = Product::gradient_row;
    constexpr int steps = tile_columns / backward_depth, buffer_size = slice_features * row;

    const TileModel<T>& m = p.model;
    T* directions = shared_memory<T>();                 // (2, slice_features, row)
    T* gradient = directions + 2 * buffer_size;         // (warps, NB, gradient_row)
    T* staging = gradient + warps * NB * gradient_row;  // (warps, transform_staging)
    // Then, where p.on_chip, the sums of d(transforms) (warps, NB, J, 12).

    // 16 columns of a tile, from 16 `step` on, for the features of a slice; by thread t.
    const auto copy = [&](unsigned t, Place place, int step) {
        constexpr int vecs = backward_depth / W;
        const T* from = m.directions + static_cast<index_t>(place.tile) * static_cast<int>(m.Fp * tile_columns) +
                        (step * backward_depth + t % vecs * W);
        T* to = directions + (step % 2 * buffer_size + t % vecs * W);
#pragma unroll
        for (int i = 0; i < slice_features * vecs / mesh_backward_threads; ++i) {
            const unsigned f = t / vecs + i * (mesh_backward_threads / vecs);
            const unsigned k = min(place.slice * slice_features + f, static_cast<unsigned>(m.Fp) - 1);  // beyond the features: never stored
            copy_async(reinterpret_cast<Vec<T>*>(to + f * row),
                       reinterpret_cast<const Vec<T>*>(from + k * static_cast<unsigned>(tile_columns)));
        }
    };

    begin_unskinning<T, Product>(p, gradient, staging);
    Product product;
    if (m.Fp > 0) copy(fresh_thread_index(), place_of(p, 0), 0);
#pragma unroll 1
    for (int n = 0;; ++n) {
        const Place now = place_of(p, n);
        if (now.tile < 0) break;
        if (now.slice == 0)
            unskin_tile<T, Product>(p, now.tile, gradient, staging);
        else
            fetch_unskinned<T, Product>(p, now.tile, gradient);
        if (m.Fp == 0) continue;
        const Place here = place_of(p, n), next = place_of(p, n + 1);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            wait_copies();
            __syncthreads();  // this step's columns and the un-skinned gradient are here, and nobody reads the other buffer any more
            const unsigned t = fresh_thread_index();
            const bool last = step + 1 == steps;
            if (!last || next.tile >= 0) copy(t, last ? next : here, (step + 1) % steps);
            product.add_columns(directions + step % 2 * buffer_size, gradient + step * backward_depth, static_cast<int>(t / lanes),
                                static_cast<int>(t % lanes));
        }
        if (next.slice == here.slice) continue;
        const OwnElements own = own_elements<NB>(p);
        product.each(own.warp, own.lane, [&](int element, int feature, T value) {
            const index_t b = own.group * warps * NB + element;
            const int k = here.slice * slice_features + feature;
            if (b < p.B && k < m.F) p.workspace.features[(own.chunk * p.B + b) * m.Fp + k] = value;
        });
        product = Product();
    }
    if (p.on_chip) {
        __syncwarp();
        const OwnElements own = own_elements<NB>(p);
        const T* from = sums_on_chip<NB>(p, own, staging);
        T* to = sums_in_workspace(p, own);
#pragma unroll 1
        for (int n = own.lane; n < own.valid * 12 * static_cast<int>(m.J); n += lanes) to[n] = from[n];
    }
}

template <class T>
void launch_mesh_backward(const char* name, const MeshBackward<T>& p, bool tensor_cores, stream_t stream) {
    const index_t most = mesh_backward_shared_bytes(compute_capability(name));
    const auto run = [&](auto product) {
        using Product = decltype(product);
        MeshBackward<T> with = p;
        with.on_chip = mesh_backward_bytes<T, Product>(12 * p.model.J) <= most;
        launch(name, mesh_backward_kernel<T, Product>, p.plan.chunks * p.plan.groups, mesh_backward_threads,
               static_cast<std::size_t>(mesh_backward_bytes<T, Product>(with.on_chip ? 12 * p.model.J : 0)), stream, with);
    };
    if constexpr (sizeof(T) == 4) {
        if (p.plan.elements == 8 && tensor_cores) return run(TensorProduct());
        if (p.plan.elements == 8) return run(Float32Product<T, 8>());
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
