// Linear blend skinning on the CPU: one fused pass forward, one pass over grad_vertices backward.
//
// Vertices come in tiles of one vector (W lanes). Packed constants, in this order:
//   directions    [tile][feature][xyz][lane]           forward: read along the features, one load per coordinate; backward of
//                                                      small batches too
//   weights       [tile][slot][lane]                   skinning weights of the joints that touch the tile, most J slots
//   directions_t  [block of tiles][panel][row][feature of the panel]   backward: row = (tile, xyz, lane), a panel is 3 vectors
//                                                      of features
// index: [tile][1 + J]: number of joints that touch the tile, then their ids.
// state: features [b][F], transforms [b][12 J], and if kept the blended vertices [b][tile][xyz][lane], rows padded to 64 bytes.
//
// Both matrix products keep a block of accumulators in registers that 3 loads and one broadcast per batch element feed:
// forward 3 coordinates x max_group elements, backward 3 vectors of features x max_group elements. The constants' block stays
// in L1 meanwhile; what is broadcast comes from L2, one group fetched ahead while the one before is worked on: each of its
// rows is too short for the hardware to catch on.
#pragma once

#include "../ops.h"
#include "../skinning.h"
#include "pose.h"
#include "simd.h"
#include "threads.h"

namespace ringnet {
namespace {

template <class T>
struct LbsLayout {
    static constexpr int W = lanes<T>;
    // A panel of 3 vectors by rows_per_block rows is 18 kB: it stays in L1 while the batch runs past it.
    static constexpr index_t rows_per_block = 18432 / (3 * RN_VECTOR_BYTES);
    static constexpr index_t tiles_per_block = rows_per_block / (3 * W);
    static constexpr index_t batch_block = 64;
    // Up to here the time is that of reading the constants, and the backward pass reads the forward's: they are still in cache.
    static constexpr index_t small_batch = max_group / 2;

    LbsLayout(index_t V_, index_t K, index_t J_)
        : V(V_), J(J_), F(K + 9 * (J_ - 1)), tiles(ceil_div(V_, W)), feature_vectors(ceil_div(F, W)),
          feature_pitch(round_up(F, 16)), transform_pitch(round_up(12 * J, 16)), blended_pitch(round_up(tiles * 3 * W, 16)) {}

    index_t V, J, F, tiles;
    index_t feature_vectors;                              // vectors that hold F features
    index_t feature_pitch, transform_pitch, blended_pitch;  // elements per batch element in each part of state

    index_t weights() const { return tiles * F * 3 * W; }
    index_t directions_t() const { return weights() + tiles * J * W; }
    index_t packed_size() const { return directions_t() + tiles * 3 * W * feature_vectors * W; }
    index_t index_size() const { return tiles * (1 + J); }
    index_t state_size(bool keep) const { return feature_pitch + transform_pitch + (keep ? blended_pitch : 0); }
    index_t features(index_t b) const { return b * feature_pitch; }
    index_t transforms(index_t B, index_t b) const { return B * feature_pitch + b * transform_pitch; }
    index_t blended(index_t B, index_t b) const { return B * (feature_pitch + transform_pitch) + b * blended_pitch; }

    // Backward: the vertices are cut in chunks of whole blocks, whose partial sums are added in order. How many depends
    // on sizes alone, so that the sums do too: about 32 pieces of work, counting blocks of the batch.
    index_t blocks() const { return ceil_div(tiles, tiles_per_block); }
    index_t chunk_blocks(index_t B) const {
        const index_t chunks = ceil_div(32, ceil_div(B + (B == 0), batch_block));
        return ceil_div(blocks(), chunks);
    }
    index_t chunks(index_t B) const { return ceil_div(blocks(), chunk_blocks(B)); }
    index_t partial_size() const { return round_up(feature_vectors * W + 12 * J, 16); }
    index_t workspace_size(index_t B, bool template_sum) const {
        return chunks(B) * B * partial_size() + (template_sum ? ceil_div(B, batch_block) * tiles * 3 * W : 0);
    }
};

template <class T>
void pack_lbs(const LbsConstants<T>& c, T* packed, std::int32_t* index, [[maybe_unused]] int threads) {
    constexpr int W = lanes<T>;
    const LbsLayout<T> lay(c.V, c.K, c.J);
    const index_t F = lay.F;
    const auto direction = [&](index_t v, int xyz, index_t k) -> T {
        if (v >= c.V || k >= F) return T(0);
        return k < c.K ? c.shapedirs[(3 * v + xyz) * c.K + k] : c.posedirs[(k - c.K) * 3 * c.V + 3 * v + xyz];
    };
#pragma omp parallel for schedule(static) num_threads(threads)
    for (index_t tile = 0; tile < lay.tiles; ++tile) {
        T* d = packed + tile * F * 3 * W;
        for (index_t k = 0; k < F; ++k)
            for (int xyz = 0; xyz < 3; ++xyz)
                for (int l = 0; l < W; ++l) *d++ = direction(tile * W + l, xyz, k);

        T* weights = packed + lay.weights() + tile * c.J * W;
        std::int32_t* ids = index + tile * (1 + c.J);
        std::int32_t used = 0;
        for (index_t j = 0; j < c.J; ++j) {
            bool any = false;
            for (index_t v = tile * W; v < min_of(tile * W + W, c.V); ++v) any |= c.lbs_weights[v * c.J + j] != T(0);
            if (!any) continue;
            for (int l = 0; l < W; ++l)
                weights[used * W + l] = tile * W + l < c.V ? c.lbs_weights[(tile * W + l) * c.J + j] : T(0);
            ids[1 + used++] = static_cast<std::int32_t>(j);
        }
        ids[0] = used;
        for (index_t slot = used; slot < c.J; ++slot) {
            for (int l = 0; l < W; ++l) weights[slot * W + l] = T(0);
            ids[1 + slot] = 0;
        }
    }
    const index_t features = lay.feature_vectors * W;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (index_t block = 0; block < lay.blocks(); ++block) {
        const index_t first_tile = block * lay.tiles_per_block, last_tile = min_of(first_tile + lay.tiles_per_block, lay.tiles);
        T* d = packed + lay.directions_t() + first_tile * 3 * W * features;
        for (index_t first = 0; first < features; first += 3 * W)
            for (index_t tile = first_tile; tile < last_tile; ++tile)
                for (int xyz = 0; xyz < 3; ++xyz)
                    for (int l = 0; l < W; ++l)
                        for (index_t k = first; k < min_of(first + 3 * W, features); ++k) *d++ = direction(tile * W + l, xyz, k);
    }
}

// The joints that touch a tile, with one weight per lane.
template <class T>
struct TileSkin {
    std::int32_t count;
    const std::int32_t* joints;
    const T* weights;

    RN_HOST_DEVICE void blend(const T* transforms, vec<T> M[12]) const {
        for (int i = 0; i < 12; ++i) M[i] = vec<T>{};
        for (std::int32_t s = 0; s < count; ++s)
            add_transform(M, load(weights + s * lanes<T>), transforms + 12 * joints[s]);
    }
};

// out[t][b] += sum over k of directions[t][k] * features[b][k], for `tiles` neighbouring tiles and `group` elements.
template <class T, int group, int tiles>
RN_KERNEL void blend_tiles(index_t F, const T* directions, const T* features, index_t pitch, vec<T> (&out)[tiles][group][3]) {
    constexpr int W = lanes<T>;
    vec<T> acc[tiles][group][3] = {};
    const T* x[group];
    RN_UNROLL for (int b = 0; b < group; ++b) x[b] = features + b * pitch;
    const T* next = features + group * pitch;
    for (index_t k = 0; k < F; ++k) {
        if (tiles == 1) __builtin_prefetch(next + k * group);
        RN_UNROLL for (int t = 0; t < tiles; ++t) {
            const T* d = directions + (t * F + k) * 3 * W;
            vec<T> dx = load(d), dy = load(d + W), dz = load(d + 2 * W);
            RN_KEEP(dx);
            RN_KEEP(dy);
            RN_KEEP(dz);
            RN_UNROLL for (int b = 0; b < group; ++b) {
                const vec<T> f = broadcast(x[b][k]);
                acc[t][b][0] += dx * f;
                acc[t][b][1] += dy * f;
                acc[t][b][2] += dz * f;
            }
        }
    }
    RN_UNROLL for (int t = 0; t < tiles; ++t) {
        RN_UNROLL for (int b = 0; b < group; ++b) {
            RN_UNROLL for (int c = 0; c < 3; ++c) out[t][b][c] += acc[t][b][c];  // last: the template is large, the sum small
        }
    }
}

template <class T, int group, int tiles>
void forward_tiles(const LbsForward<T>& p, const LbsLayout<T>& lay, index_t first_tile, index_t first_b) {
    constexpr int W = lanes<T>;
    vec<T> acc[tiles][group][3];
    for (int t = 0; t < tiles; ++t) {
        const index_t v = (first_tile + t) * W;
        for (int b = 0; b < group; ++b) {
            if (b == 0 || p.v_template_stride != 0)
                load_points(p.v_template + (first_b + b) * p.v_template_stride + 3 * v, lay.V - v, acc[t][b]);
            else
                for (int c = 0; c < 3; ++c) acc[t][b][c] = acc[t][0][c];
        }
    }
    blend_tiles<T, group, tiles>(lay.F, p.model.packed + first_tile * lay.F * 3 * W, p.state + lay.features(first_b),
                                 lay.feature_pitch, acc);
    for (int t = 0; t < tiles; ++t) {
        const index_t tile = first_tile + t;
        const std::int32_t* ids = p.model.index + tile * (1 + lay.J);
        const TileSkin<T> skin{ids[0], ids + 1, p.model.packed + lay.weights() + tile * lay.J * W};
        for (int b = 0; b < group; ++b) {
            vec<T> M[12], posed[3];
            skin.blend(p.state + lay.transforms(p.B, first_b + b), M);
            transform_point(M, acc[t][b], posed);
            store_points(p.vertices + ((first_b + b) * lay.V + tile * W) * 3, lay.V - tile * W, posed);
            if (p.keep)
                for (int c = 0; c < 3; ++c)
                    store(p.state + lay.blended(p.B, first_b + b) + (tile * 3 + c) * W, acc[t][b][c]);
        }
    }
}

// A few tiles for batch elements [b0, b1). Full groups go tile by tile, so that a tile's directions stay in L1 from one
// group to the next. What is left over takes several tiles at once instead: as many accumulators, to hide the latency.
template <class T>
void forward_block(const LbsForward<T>& p, const LbsLayout<T>& lay, index_t t0, index_t t1, index_t b0, index_t b1) {
    const index_t full = b0 + (b1 - b0) / max_group * max_group;
    if (full > b0)
        for (index_t t = t0; t < t1; ++t)
            for (index_t b = b0; b < full; b += max_group) forward_tiles<T, max_group, 1>(p, lay, t, b);
    index_t b = full;
    const auto rest = [&](auto group, auto tiles) {
        if (b1 - b < group()) return;
        index_t t = t0;
        for (; t + tiles() <= t1; t += tiles()) forward_tiles<T, group(), tiles()>(p, lay, t, b);
        for (; t < t1; ++t) forward_tiles<T, group(), 1>(p, lay, t, b);
        b += group();
    };
    if constexpr (max_group == 8) rest(std::integral_constant<int, 4>{}, std::integral_constant<int, 2>{});
    rest(std::integral_constant<int, 2>{}, std::integral_constant<int, 2>{});
    rest(std::integral_constant<int, 1>{}, std::integral_constant<int, 4>{});
}

template <class T>
PoseInput<T> pose_input(const LbsModel<T>& m, const T* betas, const T* pose, const T* joint_template, bool axis_angle) {
    return {m.K, m.J, m.parents, m.joint_dirs, joint_template, betas, pose, axis_angle};
}

template <class T>
void lbs_forward(const LbsForward<T>& p, int threads) {
    if (p.B == 0) return;
    const LbsModel<T>& m = p.model;
    const LbsLayout<T> lay(m.V, m.K, m.J);
    const index_t tile_block = 8, batch_block = LbsLayout<T>::batch_block;
    const index_t tile_blocks = ceil_div(lay.tiles, tile_block), work = tile_blocks * ceil_div(p.B, batch_block);
    [[maybe_unused]] const int n = useful_threads(threads, double(p.B) * m.V * 3 * (lay.F + 12));
#pragma omp parallel num_threads(n)
    {
        Scratch<double> scratch(PoseScratch::size(m.J));
        const PoseScratch s(scratch.data(), m.J);
#pragma omp for schedule(static)
        for (index_t b = 0; b < p.B; ++b) {
            T *features = p.state + lay.features(b), *transforms = p.state + lay.transforms(p.B, b);
            pose_forward(pose_input(m, p.betas + b * p.betas_stride, p.pose + b * p.pose_stride,
                                    p.joint_template + b * p.joint_template_stride, p.axis_angle),
                         s, features, transforms, p.joints + b * 3 * m.J);
            // All of state is written, padding too: it is an output of the operator.
            fill_zero(features + lay.F, features + lay.feature_pitch);
            fill_zero(transforms + 12 * m.J, transforms + lay.transform_pitch);
            if (p.keep) fill_zero(p.state + lay.blended(p.B, b) + lay.tiles * 3 * LbsLayout<T>::W, p.state + lay.blended(p.B, b + 1));
        }
#pragma omp for schedule(dynamic)
        for (index_t w = 0; w < work; ++w) {
            const index_t t0 = w % tile_blocks * tile_block, b0 = w / tile_blocks * batch_block;
            forward_block(p, lay, t0, min_of(t0 + tile_block, lay.tiles), b0, min_of(b0 + batch_block, p.B));
        }
    }
}

// W points of grad_vertices from v on, any strides; zero beyond the last vertex.
template <class T>
RN_HOST_DEVICE void load_gradient(const T* g, const index_t stride[3], index_t v, index_t V, vec<T> xyz[3]) {
    constexpr int W = lanes<T>;
    if (stride[1] == 3 && stride[2] == 1) {
        load_points(g + 3 * v, V - v, xyz);
        return;
    }
    T planar[3][W];
    for (int c = 0; c < 3; ++c)
        for (int l = 0; l < W; ++l) planar[c][l] = v + l < V ? g[(v + l) * stride[1] + c * stride[2]] : T(0);
    for (int c = 0; c < 3; ++c) xyz[c] = load(planar[c]);
}

// out[b][...] += sum over rows of gradient[b][row] * panel[row][...], `vectors` vectors of features wide.
template <class T, int group, int vectors, int phases>
RN_KERNEL void multiply_panel(index_t rows, index_t row_pitch, const T* gradient, const T* panel, T* out, index_t out_pitch,
                              const T* ahead, index_t ahead_step) {
    constexpr int W = lanes<T>;
    vec<T> acc[phases][group][vectors] = {};
    for (index_t n = 0; n < rows; n += phases) {
        if (phases == 1) __builtin_prefetch(gradient + group * (row_pitch + n));
        __builtin_prefetch(ahead + n * ahead_step);
        RN_UNROLL for (int u = 0; u < phases; ++u) {
            const T* d = panel + (n + u) * vectors * W;
            vec<T> dv[vectors];
            RN_UNROLL for (int i = 0; i < vectors; ++i) {
                dv[i] = load(d + i * W);
                RN_KEEP(dv[i]);
            }
            RN_UNROLL for (int b = 0; b < group; ++b) {
                const vec<T> g = broadcast(gradient[b * row_pitch + n + u]);
                RN_UNROLL for (int i = 0; i < vectors; ++i) acc[u][b][i] += dv[i] * g;
            }
        }
    }
    RN_UNROLL for (int b = 0; b < group; ++b) {
        RN_UNROLL for (int i = 0; i < vectors; ++i) {
            RN_UNROLL for (int u = 1; u < phases; ++u) acc[0][b][i] += acc[u][b][i];
            T* o = out + b * out_pitch + i * W;
            store(o, load(o) + acc[0][b][i]);
        }
    }
}

template <class T, int vectors>
void multiply_panel(index_t rows, index_t row_pitch, index_t B, const T* gradient, const T* panel, T* out, index_t out_pitch) {
    constexpr int W = lanes<T>;
    constexpr int many = W >= 4 ? 4 : 2;  // divides the rows of a tile, 3 W
    // The next panel follows this one in memory; each group fetches its share of it.
    const index_t size = rows * vectors * W, step = ceil_div(vectors * W * max_group, B);
    index_t b = 0;
    const auto groups = [&](auto group, auto phases) {
        for (; b + group() <= B; b += group())
            multiply_panel<T, group(), vectors, phases()>(rows, row_pitch, gradient + b * row_pitch, panel,
                                                          out + b * out_pitch, out_pitch,
                                                          panel + size + b / max_group * rows * step, step);
    };
    if constexpr (max_group == 8) groups(std::integral_constant<int, 8>{}, std::integral_constant<int, 1>{});
    groups(std::integral_constant<int, 4>{}, std::integral_constant<int, max_group == 8 ? 2 : 1>{});
    groups(std::integral_constant<int, 2>{}, std::integral_constant<int, 2>{});
    groups(std::integral_constant<int, 1>{}, std::integral_constant<int, many>{});
}

// The same product for a small batch, from the layout of the forward pass: sums[b][k], a vector of lanes each, += the features'
// directions times the gradients of `tiles` neighbouring tiles.
template <class T, int group, int tiles>
RN_KERNEL void multiply_lanes(index_t F, index_t row_pitch, const T* gradient, const T* directions, T* sums) {
    constexpr int W = lanes<T>;
    vec<T> g[group][tiles][3];
    RN_UNROLL for (int b = 0; b < group; ++b) {
        RN_UNROLL for (int t = 0; t < tiles; ++t) {
            RN_UNROLL for (int c = 0; c < 3; ++c) g[b][t][c] = load(gradient + b * row_pitch + (t * 3 + c) * W);
        }
    }
    for (index_t k = 0; k < F; ++k) {
        vec<T> acc[group];
        RN_UNROLL for (int b = 0; b < group; ++b) acc[b] = load(sums + (b * F + k) * W);
        RN_UNROLL for (int t = 0; t < tiles; ++t) {
            RN_UNROLL for (int c = 0; c < 3; ++c) {
                const vec<T> d = load(directions + ((t * F + k) * 3 + c) * W);
                RN_UNROLL for (int b = 0; b < group; ++b) acc[b] += d * g[b][t][c];
            }
        }
        RN_UNROLL for (int b = 0; b < group; ++b) store(sums + (b * F + k) * W, acc[b]);
    }
}

template <class T, int tiles>
void multiply_lanes(index_t F, index_t row_pitch, index_t B, const T* gradient, const T* directions, T* sums) {
    index_t b = 0;
    const auto groups = [&](auto group) {
        for (; b + group() <= B; b += group())
            multiply_lanes<T, group(), tiles>(F, row_pitch, gradient + b * row_pitch, directions, sums + b * F * lanes<T>);
    };
    if constexpr (max_group == 8) groups(std::integral_constant<int, 4>{});
    groups(std::integral_constant<int, 2>{});
    groups(std::integral_constant<int, 1>{});
}

// Accumulates the gradient of one element's transforms over tiles, lane by lane.
template <class T>
class TransformGradient {
  public:
    static index_t size(index_t J) { return 13 * J * lanes<T>; }  // one vector per joint holds its flag
    TransformGradient(T* memory, index_t J) : sums_(memory), touched_(memory + 12 * J * lanes<T>), J_(J) { clear(); }

    RN_HOST_DEVICE void add(const TileSkin<T>& skin, const vec<T> v[3], const vec<T> g[3]) {
        constexpr int W = lanes<T>;
        vec<T> dM[12];
        transform_vjp(v, g, dM);
        for (std::int32_t s = 0; s < skin.count; ++s) {
            const std::int32_t j = skin.joints[s];
            const vec<T> w = load(skin.weights + s * W);
            T* sums = sums_ + j * 12 * W;
            if (touched_[j] != T(0)) {
                for (int i = 0; i < 12; ++i) store(sums + i * W, load(sums + i * W) + w * dM[i]);
            } else {
                for (int i = 0; i < 12; ++i) store(sums + i * W, w * dM[i]);
                touched_[j] = T(1);
            }
        }
    }

    // out (12 J) += what was accumulated; starts again from zero.
    RN_HOST_DEVICE void flush(T* out) {
        for (index_t j = 0; j < J_; ++j) {
            if (touched_[j] == T(0)) continue;
            for (int i = 0; i < 12; ++i) out[12 * j + i] += sum<T>(load(sums_ + (12 * j + i) * lanes<T>));
        }
        clear();
    }

  private:
    RN_HOST_DEVICE void clear() {
        for (index_t j = 0; j < J_; ++j) touched_[j] = T(0);
    }
    T *sums_, *touched_;
    index_t J_;
};

// One chunk of vertices for batch elements [b0, b1): adds to their rows of partial sums.
template <class T>
void backward_chunk(const LbsBackward<T>& p, const LbsLayout<T>& lay, index_t t0, index_t t1, index_t b0, index_t b1,
                    T* partial, T* template_sum, T* scratch) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const index_t partial_pitch = lay.partial_size();
    const index_t features = lay.feature_vectors * W;
    T* blended_gradient = scratch;  // [b][row of the block]
    T* lane_sums = scratch + Layout::batch_block * Layout::rows_per_block;  // small batches: [b][feature][lane]
    const bool small = p.B <= Layout::small_batch;
    TransformGradient<T> transforms(lane_sums + (small ? p.B * lay.F * W : 0), lay.J);

    if (small) fill_zero(lane_sums, lane_sums + p.B * lay.F * W);
    fill_zero(partial + b0 * partial_pitch, partial + b1 * partial_pitch);
    for (index_t block = t0; block < t1; block += Layout::tiles_per_block) {
        const index_t end = min_of(block + Layout::tiles_per_block, t1);
        for (index_t b = b0; b < b1; ++b) {
            const T *A = p.state + lay.transforms(p.B, b), *blended = p.state + lay.blended(p.B, b);
            T* rows = blended_gradient + (b - b0) * Layout::rows_per_block;
            for (index_t tile = block; tile < end; ++tile) {
                const std::int32_t* ids = p.model.index + tile * (1 + lay.J);
                const TileSkin<T> skin{ids[0], ids + 1, p.model.packed + lay.weights() + tile * lay.J * W};
                vec<T> g[3], M[12], dv[3], v[3];
                // The next element's part of both big arrays: pieces too short and too far apart for the hardware to foresee.
                if (b + 1 < b1)
                    for (int c = 0; c < 3; ++c) {
                        __builtin_prefetch(p.grad_vertices + (b + 1) * p.grad_vertices_stride[0] +
                                           (tile * W + c * (W / 3)) * p.grad_vertices_stride[1]);
                        __builtin_prefetch(p.state + lay.blended(p.B, b + 1) + (tile * 3 + c) * W);
                    }
                load_gradient(p.grad_vertices + b * p.grad_vertices_stride[0], p.grad_vertices_stride, tile * W, lay.V, g);
                skin.blend(A, M);
                transform_point_vjp(M, g, dv);
                for (int c = 0; c < 3; ++c) v[c] = load(blended + (tile * 3 + c) * W);
                transforms.add(skin, v, g);
                for (int c = 0; c < 3; ++c) store(rows + ((tile - block) * 3 + c) * W, dv[c]);
                if (p.grad_v_template && !p.grad_v_template_shared)
                    store_points(p.grad_v_template + (b * lay.V + tile * W) * 3, lay.V - tile * W, dv);
                if (template_sum) {
                    T* total = template_sum + tile * 3 * W;
                    for (int c = 0; c < 3; ++c)
                        store(total + c * W, b == b0 ? dv[c] : load(total + c * W) + dv[c]);
                }
            }
            transforms.flush(partial + b * partial_pitch + features);
        }
        if (small) {
            index_t tile = block;
            const auto pass = [&](auto tiles) {
                for (; tile + tiles() <= end; tile += tiles())
                    multiply_lanes<T, tiles()>(lay.F, Layout::rows_per_block, p.B, blended_gradient + (tile - block) * 3 * W,
                                               p.model.packed + tile * lay.F * 3 * W, lane_sums);
            };
            pass(std::integral_constant<int, 2>{});
            pass(std::integral_constant<int, 1>{});
            continue;
        }
        const index_t rows = (end - block) * 3 * W;
        const T* panel = p.model.packed + lay.directions_t() + block * 3 * W * features;
        for (index_t first = 0; first < lay.feature_vectors; first += 3) {
            const index_t vectors = min_of(3, lay.feature_vectors - first);
            T* out = partial + b0 * partial_pitch + first * W;
            if (vectors == 3)
                multiply_panel<T, 3>(rows, Layout::rows_per_block, b1 - b0, blended_gradient, panel, out, partial_pitch);
            else if (vectors == 2)
                multiply_panel<T, 2>(rows, Layout::rows_per_block, b1 - b0, blended_gradient, panel, out, partial_pitch);
            else
                multiply_panel<T, 1>(rows, Layout::rows_per_block, b1 - b0, blended_gradient, panel, out, partial_pitch);
            panel += rows * vectors * W;
        }
    }
    if (small)
        for (index_t b = 0; b < p.B; ++b)
            for (index_t k = 0; k < lay.F; ++k)
                partial[b * partial_pitch + k] = sum<T>(load(lane_sums + (b * lay.F + k) * W));
}

template <class T>
void lbs_backward(const LbsBackward<T>& p, int threads) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const LbsModel<T>& m = p.model;
    const Layout lay(m.V, m.K, m.J);
    const bool sum_template = p.grad_v_template && p.grad_v_template_shared;
    if (p.B == 0) {
        if (sum_template)
            fill_zero(p.grad_v_template, p.grad_v_template + 3 * m.V);
        return;
    }
    const index_t chunks = p.grad_vertices ? lay.chunks(p.B) : 0, chunk_tiles = lay.chunk_blocks(p.B) * Layout::tiles_per_block;
    const index_t batch_blocks = ceil_div(p.B, Layout::batch_block), partial_pitch = lay.partial_size();
    T* template_sums = p.workspace + lay.chunks(p.B) * p.B * partial_pitch;
    [[maybe_unused]] const int n = useful_threads(threads, double(p.B) * m.V * 3 * (lay.F + 30));
#pragma omp parallel num_threads(n)
    {
        Scratch<T> scratch(Layout::batch_block * Layout::rows_per_block + TransformGradient<T>::size(m.J) +
                           lay.feature_vectors * W + (p.B <= Layout::small_batch ? p.B * lay.F * W : 0));
        Scratch<double> pose_scratch(PoseScratch::size(m.J));
        const PoseScratch s(pose_scratch.data(), m.J);
#pragma omp for schedule(dynamic)
        for (index_t w = 0; w < chunks * batch_blocks; ++w) {
            const index_t chunk = w % chunks, block = w / chunks, b0 = block * Layout::batch_block;
            backward_chunk(p, lay, chunk * chunk_tiles, min_of((chunk + 1) * chunk_tiles, lay.tiles), b0,
                           min_of(b0 + Layout::batch_block, p.B), p.workspace + chunk * p.B * partial_pitch,
                           sum_template ? template_sums + block * lay.tiles * 3 * W : nullptr, scratch.data());
        }
#pragma omp for schedule(static)
        for (index_t b = 0; b < p.B; ++b) {
            T* d_features = scratch.data();
            const index_t features = lay.feature_vectors * W;
            fill_zero(d_features, d_features + features);
            for (index_t i = 0; i < 12 * m.J; ++i) s.d_transforms[i] = 0;
            for (index_t c = 0; c < chunks; ++c) {
                const T* partial = p.workspace + (c * p.B + b) * partial_pitch;
                for (index_t k = 0; k < features; ++k) d_features[k] += partial[k];
                for (index_t i = 0; i < 12 * m.J; ++i) s.d_transforms[i] += partial[features + i];
            }
            const index_t pose_size = (p.axis_angle ? 3 : 9) * m.J;
            pose_backward(pose_input(m, p.betas + b * p.betas_stride, p.pose + b * p.pose_stride,
                                     p.joint_template + b * p.joint_template_stride, p.axis_angle),
                          s, d_features, p.grad_joints ? p.grad_joints + b * 3 * m.J : nullptr,
                          p.grad_betas ? p.grad_betas + b * m.K : nullptr,
                          p.grad_pose ? p.grad_pose + b * pose_size : nullptr,
                          p.grad_joint_template ? p.grad_joint_template + b * 3 * m.J : nullptr);
        }
        if (sum_template) {
#pragma omp for schedule(static)
            for (index_t v = 0; v < m.V; ++v)
                for (int c = 0; c < 3; ++c) {
                    T total = T(0);
                    if (p.grad_vertices)
                        for (index_t block = 0; block < batch_blocks; ++block)
                            total += template_sums[block * lay.tiles * 3 * W + (v / W * 3 + c) * W + v % W];
                    p.grad_v_template[3 * v + c] = total;
                }
        }
        if (p.grad_v_template && !p.grad_v_template_shared && !p.grad_vertices) {
#pragma omp for schedule(static)
            for (index_t i = 0; i < p.B * 3 * m.V; ++i) p.grad_v_template[i] = T(0);
        }
    }
}

}  // namespace
}  // namespace ringnet
