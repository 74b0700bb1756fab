// The kernels for small batches and for landmarks: a block per tile and up to four batch elements. The time is that of reading the
// directions once, so all threads read them, 16 bytes each.
#pragma once

#include "../contour.h"
#include "pose.cuh"
#include "problem.cuh"

namespace ringnet::cuda {

template <class T, class Problem>
struct SmallForward {
    Problem problem;
    TileModel<T> model;
    PoseInput<T> in;
    State<T> state;  // features and transforms: written where fused, else read; blended: written where kept
    index_t B;
    bool fused, keep;
    int workers;
    T* joints;           // fused: (B, J, 3) or null
    index_t neck_joint;  // fused, with a contour
};

// The values of NB batch elements for one feature, by one load where they are 16 bytes.
template <int NB, class T>
__device__ __forceinline__ void load_elements(const T* x, T (&values)[NB]) {
    if constexpr (NB == Vec<T>::size) {
        const Vec<T> all = load_vec(x);
#pragma unroll
        for (int b = 0; b < NB; ++b) values[b] = all.v[b];
    } else {
#pragma unroll
        for (int b = 0; b < NB; ++b) values[b] = x[b];
    }
}

// Threads: p.workers, and where fused a warp per element for the pose, while the others already sum the betas' part.
// Shared memory: small_forward_bytes.
template <class T, class Problem, int NB>
__global__ void __launch_bounds__(small_threads + NB * lanes, sizeof(T) == 4 ? 2 : 1) small_forward_kernel(SmallForward<T, Problem> p) {
    constexpr int W = Vec<T>::size, column_vecs = tile_columns / W;
    const Problem& problem = p.problem;
    const TileModel<T>& m = p.model;
    const int t = static_cast<int>(threadIdx.x), warp = t / lanes, lane = t % lanes;
    const int workers = p.workers, slots = workers / column_vecs;
    const bool worker = t < workers;
    const index_t slot = blockIdx.x % problem.slots(), b0 = blockIdx.x / problem.slots() * NB;
    const int nb = static_cast<int>(min_of(NB, p.B - b0));
    const index_t J = m.J;
    const int K = static_cast<int>(m.K), F = static_cast<int>(m.F), Fp = static_cast<int>(m.Fp);

    T* x = shared_memory<T>();                         // (Fp, NB) features
    T* partial = x + NB * Fp;                          // (NB, slots, 96) sums of a share of the features; later staging
    T* blended = partial + NB * slots * tile_columns;  // (NB, 96)
    T* scratch = blended + NB * tile_columns;          // (NB, 36 J), fused only
    __shared__ int rows[NB];                           // of the contour table

    for (int b = 0; b < NB; ++b)
        for (int k = t; k < Fp; k += static_cast<int>(blockDim.x))
            x[k * NB + b] = b >= nb    ? T(0)
                            : !p.fused ? p.state.features[(b0 + b) * Fp + k]
                            : k < K    ? p.in.betas[(b0 + b) * p.in.betas_stride + k]
                                       : T(0);
    if (t < NB) {
        const bool known = Problem::has_contour && !p.fused && t < nb;
        rows[t] = known ? static_cast<int>(p.state.transforms[(b0 + t) * transform_pitch(J) + 12 * J]) : 0;
    }
    __syncthreads();

    // Thread: 16 bytes of a tile's row of 96 columns, and every slots-th feature.
    const int first_column = t % column_vecs * W;
    const bool per_element = problem.per_element(slot);
    T acc[NB][W];
#pragma unroll
    for (int b = 0; b < NB; ++b)
#pragma unroll
        for (int c = 0; c < W; ++c) acc[b][c] = T(0);
    int k = t / column_vecs;
    const auto accumulate = [&](int end) {
        if (!per_element) {
            const T* directions = m.tile_directions(problem.tile(slot, 0)) + first_column;
#pragma unroll 4
            for (; k < end; k += slots) {
                const Vec<T> d = load_vec(directions + k * tile_columns);
                T xs[NB];
                load_elements<NB>(x + k * NB, xs);
#pragma unroll
                for (int b = 0; b < NB; ++b)
#pragma unroll
                    for (int c = 0; c < W; ++c) acc[b][c] += xs[b] * d.v[c];
            }
        } else {
#pragma unroll 1
            for (; k < end; k += slots) {
#pragma unroll
                for (int b = 0; b < NB; ++b) {
                    const Vec<T> d = load_vec(m.tile_directions(problem.tile(slot, rows[b])) + first_column + k * tile_columns);
#pragma unroll
                    for (int c = 0; c < W; ++c) acc[b][c] += x[k * NB + b] * d.v[c];
                }
            }
        }
    };

    if (p.fused) {
        if (worker) {
            if (!per_element) accumulate(K);
        } else {
            const int b = warp - workers / lanes;
            if (b < nb) {
                const PoseScratch<T> s(scratch + b * 36 * J, J);
                pose_of_element(p.in, b0 + b, s, Warp());
                for (int i = lane; i < F - K; i += lanes) x[(K + i) * NB + b] = pose_feature(s.local_r, i);
                if constexpr (Problem::has_contour)
                    if (lane == 0 && problem.C > 0) rows[b] = static_cast<int>(contour_row(s.world_r + 9 * p.neck_joint));
            }
        }
        __syncthreads();
    }
    if (worker) {
        accumulate(F);
#pragma unroll
        for (int b = 0; b < NB; ++b) {
            Vec<T> sum;
#pragma unroll
            for (int c = 0; c < W; ++c) sum.v[c] = acc[b][c];
            store_vec(partial + (b * slots + t / column_vecs) * tile_columns + first_column, sum);
        }
    }
    __syncthreads();
    for (int i = t; i < nb * tile_columns; i += static_cast<int>(blockDim.x)) {
        const int b = i / static_cast<int>(tile_columns), column = i % static_cast<int>(tile_columns);
        T sum = T(0);
#pragma unroll 4
        for (int s = 0; s < slots; ++s) sum += partial[(b * slots + s) * tile_columns + column];
        sum += problem.rest(m, b0 + b, problem.tile(slot, rows[b]), column);  // last: small numbers round less among themselves
        blended[b * tile_columns + column] = sum;
        if (p.keep) p.state.blended[((b0 + b) * problem.slots() + slot) * tile_columns + column] = sum;
    }
    __syncthreads();

    if (warp < nb) {
        const int b = warp;
        const index_t tile = problem.tile(slot, rows[b]);
        const T* transforms = p.fused ? scratch + b * 36 * J : p.state.transforms + (b0 + b) * transform_pitch(J);
        T M[1][12], out[3];
        const T* v = blended + b * tile_columns;
        const T point[3] = {v[lane], v[lanes + lane], v[2 * lanes + lane]};
        blend_transforms(TileJoints<T>(m, tile), {transforms}, lane, M);
        transform_point(M[0], point, out);
        problem.store(m, b0 + b, slot, tile, lane, out, partial + b * tile_columns);
    }

    if (p.fused && slot == 0) {  // one block of several that know
        for (int b = 0; b < nb; ++b) {
            const PoseScratch<T> s(scratch + b * 36 * J, J);
            if (p.joints)
                for (index_t i = t; i < 3 * J; i += blockDim.x) p.joints[(b0 + b) * 3 * J + i] = s.posed[i];
            for (int i = t; i < Fp; i += static_cast<int>(blockDim.x)) p.state.features[(b0 + b) * Fp + i] = x[i * NB + b];
            const index_t pitch = transform_pitch(J);
            for (index_t i = t; i < pitch; i += blockDim.x)
                p.state.transforms[(b0 + b) * pitch + i] = transform_value(s.transforms, J, rows[b], i);
        }
    }
}

template <class T, class Problem>
struct SmallBackward {
    Problem problem;
    TileModel<T> model;
    State<T> state;
    Workspace<T> workspace;
    index_t B;
};

template <class T, int N>
struct Sums {
    T v[N];
};

// Partial sums of one tile: its own chunk. Four warps or more.
template <class T, class Problem, int NB>
__global__ void __launch_bounds__(small_backward_threads, 2) small_backward_kernel(SmallBackward<T, Problem> p) {
    constexpr int W = Vec<T>::size, octet = 8, vecs = tile_columns / W / octet;
    const Problem& problem = p.problem;
    const TileModel<T>& m = p.model;
    const int t = static_cast<int>(threadIdx.x), warp = t / lanes, lane = t % lanes;
    const index_t slot = blockIdx.x % problem.slots(), group = blockIdx.x / problem.slots(), b0 = group * NB;
    const int nb = static_cast<int>(min_of(NB, p.B - b0));
    const index_t J = m.J;
    const int F = static_cast<int>(m.F);
    __shared__ __align__(16) T d_blended[NB * tile_columns];
    __shared__ __align__(16) T staging[NB * transform_staging];
    __shared__ int rows[NB];

    if (t < NB) {
        const bool known = Problem::has_contour && t < nb;
        rows[t] = known ? static_cast<int>(p.state.transforms[(b0 + t) * transform_pitch(J) + 12 * J]) : 0;
    }
    __syncthreads();
    if (warp < NB) {  // un-skin: a warp per element, a lane per vertex
        const int b = warp;
        T d[3] = {T(0), T(0), T(0)};
        if (b < nb) {
            const index_t tile = problem.tile(slot, rows[b]);
            const TileJoints<T> of_tile(m, tile);
            const T* kept = p.state.blended + ((b0 + b) * problem.slots() + slot) * tile_columns;
            const T v[3] = {kept[lane], kept[lanes + lane], kept[2 * lanes + lane]};
            T g[3], M[1][12];
            problem.load_gradient(m, b0 + b, slot, tile, lane, g);
            const T* transforms = p.state.transforms + (b0 + b) * transform_pitch(J);
            blend_transforms(of_tile, {transforms}, lane, M);
            transform_point_vjp(M[0], g, d);
            T* d_transforms = p.workspace.transforms + (slot * p.B + b0 + b) * 12 * J;
            for (index_t i = lane; i < 12 * J; i += lanes) d_transforms[i] = T(0);
            stage_gradient(g, v, lane, staging + b * transform_staging);
            add_transform_gradients(of_tile, lane, staging + b * transform_staging, [&](int i, T value) { d_transforms[i] += value; });
            problem.store_rest_gradient(b0 + b, slot, lane, d, staging + b * transform_staging);
        }
        for (int c = 0; c < 3; ++c) d_blended[b * tile_columns + c * lanes + lane] = d[c];
    }
    __syncthreads();
    if (problem.sums_rest_gradient() && t < tile_columns) {
        T sum = T(0);
        for (int b = 0; b < NB; ++b) sum += d_blended[b * tile_columns + t];
        p.workspace.rest[(group * problem.slots() + slot) * tile_columns + t] = sum;
    }

    // d(features): eight lanes share a row of 96 columns. fill(k): a lane's share of the
    // products of row k with some elements.
    const int part = lane % octet;
    const auto load = [&](const T* row, Vec<T>(&values)[vecs]) {
#pragma unroll
        for (int i = 0; i < vecs; ++i) values[i] = load_vec(row + (part + octet * i) * W);
    };
    const auto dot = [&](const Vec<T>(&x)[vecs], const Vec<T>(&y)[vecs]) {
        T sum = T(0);
#pragma unroll
        for (int i = 0; i < vecs; ++i)
#pragma unroll
            for (int c = 0; c < W; ++c) sum += x[i].v[c] * y[i].v[c];
        return sum;
    };
    const auto row_of = [&](int k, int b) {
        const int number = static_cast<int>(problem.tile(slot, rows[b])) * static_cast<int>(m.Fp) + k;
        return m.directions + static_cast<index_t>(number) * static_cast<int>(tile_columns);
    };
    const auto each_row = [&](int first_element, auto fill) {
#pragma unroll 1
        for (int first = warp * (lanes / octet); first < F; first += static_cast<int>(blockDim.x) / octet) {
            const int k = first + lane / octet;  // below Fp: rows F to Fp are zeros
            auto sum = fill(k);
            // The eight lanes add up. Each gives away half of the elements that it has, down to one.
            constexpr int of_elements = sizeof(sum.v) / sizeof(T);
            int element = first_element, have = of_elements;
#pragma unroll
            for (int step = octet / 2; step > 0; step /= 2) {
                if (have > 1) {
                    have /= 2;
                    const bool upper = part & step;
#pragma unroll
                    for (int b = 0; b < have; ++b)
                        sum.v[b] =
                            (upper ? sum.v[have + b] : sum.v[b]) + __shfl_xor_sync(0xffffffffu, upper ? sum.v[b] : sum.v[have + b], step);
                    element += upper ? have : 0;
                } else {
                    sum.v[0] += __shfl_xor_sync(0xffffffffu, sum.v[0], step);
                }
            }
            if (part % (octet / of_elements) == 0 && k < F && element < nb)
                p.workspace.features[(slot * p.B + b0 + element) * m.Fp + k] = sum.v[0];
        }
    };
    if (!problem.per_element(slot)) {
        Vec<T> g[NB][vecs];
#pragma unroll
        for (int b = 0; b < NB; ++b) load(d_blended + b * tile_columns, g[b]);
        each_row(0, [&](int k) {
            Vec<T> d[vecs];
            load(row_of(k, 0), d);
            Sums<T, NB> sum;
#pragma unroll
            for (int b = 0; b < NB; ++b) sum.v[b] = dot(d, g[b]);
            return sum;
        });
    } else {
#pragma unroll 1
        for (int b = 0; b < nb; ++b) {
            Vec<T> g[vecs];
            load(d_blended + b * tile_columns, g);
            each_row(b, [&](int k) {
                Vec<T> d[vecs];
                load(row_of(k, b), d);
                return Sums<T, 1>{{dot(d, g)}};
            });
        }
    }
}

template <class T, class Problem>
void launch_small_forward(const char* name, const SmallForward<T, Problem>& p, const ForwardPlan& plan, stream_t stream) {
    const index_t blocks = p.problem.slots() * ceil_div(p.B, plan.elements);
    const int threads = plan.workers + (plan.fused ? lanes * plan.elements : 0);
    const auto bytes = static_cast<std::size_t>(small_forward_bytes<T>(p.model.K, p.model.J, plan.elements, plan.fused, plan.workers));
    auto kernel = small_forward_kernel<T, Problem, 1>;
    if (plan.elements > 1) kernel = small_forward_kernel<T, Problem, small_elements<T>>;
    launch(name, kernel, blocks, threads, bytes, stream, p);
}

template <class T, class Problem>
void launch_small_backward(const char* name, const SmallBackward<T, Problem>& p, const BackwardPlan& plan, stream_t stream) {
    auto kernel = small_backward_kernel<T, Problem, 1>;
    if (plan.elements > 1) kernel = small_backward_kernel<T, Problem, small_elements<T>>;
    launch(name, kernel, p.problem.slots() * plan.groups, plan.threads, 0, stream, p);
}

}  // namespace ringnet::cuda
