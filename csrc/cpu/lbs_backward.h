// Linear blend skinning on the CPU, backward: one pass over grad_vertices.
//
// The matrix product keeps a block of accumulators in registers: 3 features x max_group elements, fed by 3 loads and one an element.
// Lanes are added at the end, a block of tiles at a time, which is rare enough to cost little. So it reads the directions that the
// forward pass reads, and half as many bytes compete for the caches as with a transposed copy.
#pragma once

#include "lbs_model.h"
#include "mesh_landmarks.h"
#include "pose.h"
#include "simd.h"
#include "threads.h"

namespace ringnet {
namespace {

// W points from v on, any strides, as [xyz][lane]; zero beyond the last one. Out of line: its sixteen addresses would cost the
// usual gradient, which lies as vertices do, more than it takes to read.
template <class T>
RN_KERNEL void gather_points(const T* g, const index_t stride[3], index_t v, index_t V, T* planar) {
    constexpr int W = lanes<T>;
    for (int c = 0; c < 3; ++c)
        for (int l = 0; l < W; ++l) planar[c * W + l] = v + l < V ? g[(v + l) * stride[1] + c * stride[2]] : T(0);
}

// out[feature k][b] += sum over `tiles` tiles of gradient[b] . directions[k], for `group` elements and `features` features.
template <class T, int group, int features>
RN_KERNEL void project_features(index_t tiles, index_t tile_pitch, const T* gradient, index_t gradient_pitch, const T* directions,
                                const std::int32_t* places, T* out, index_t out_pitch) {
    constexpr int W = lanes<T>;
    constexpr bool spare = group * features + features + 1 < registers;
    vec<T> acc[group * features] = {};
    for (index_t t = 0; t < tiles; ++t, directions += tile_pitch, gradient += 3 * W) {
        // The next call's: more pieces than the hardware foresees.
        if (group > LbsLayout<T>::small_batch)
            RN_UNROLL for (index_t i = 0; i < 3 * features * W; i += 64 / sizeof(T)) __builtin_prefetch(directions + 3 * features * W + i);
        RN_UNROLL for (int c = 0; c < 3; ++c) {
            vec<T> d[features];
            RN_UNROLL for (int k = 0; k < features; ++k) d[k] = load_shared<T, spare>(directions + (3 * k + c) * W);
            RN_UNROLL for (int b = 0; b < group; ++b) {
                const vec<T> g = load_shared<T, spare>(gradient + b * gradient_pitch + c * W);
                RN_UNROLL for (int k = 0; k < features; ++k) multiply_add<T>(acc[k * group + b], d[k], g);
            }
        }
    }
    T total[round_up(group * features, W)];
    sums<T>(acc, total);
    RN_UNROLL for (int k = 0; k < features; ++k) add<group>(total + k * group, out + places[k] / max_group * out_pitch);
}

// Tiles [t0, t1), a block, of one element: rows = the gradient of the blended vertices, [tile][xyz][lane]; adds that of the
// transforms to d_transforms, and where wanted the first to template_sum. Fetches what the next element will read, where there is
// one: pieces too short and too far apart for the hardware to foresee. posed_rows is scratch.
//
// First the tiles one by one, then the joints one by one: a joint's twelve sums stay in registers over all of its tiles.
template <class T>
RN_KERNEL void unskin(const LbsBackward<T>& p, const LbsLayout<T>& lay, index_t t0, index_t t1, index_t b, bool next, T* posed_rows,
                      T* rows, T* template_sum, T* d_transforms) {
    constexpr int W = lanes<T>;
    // Local: the compiler must believe that any store changes what p and lay refer to.
    const index_t V = lay.V, J = lay.J, *const s = p.grad_vertices_stride, stride[] = {s[0], s[1], s[2]};
    const index_t next_g = next ? stride[0] : 0, next_v = next ? lay.blended_pitch : 0;
    const T *A = p.state + lay.transforms(p.B, b), *g_rows = p.grad_vertices + b * stride[0];
    const T *v_rows = p.state + lay.blended(p.B, b) + t0 * 3 * W, *weights = p.model.packed + lay.weights(t0);
    const std::int32_t *ids = p.model.index + lay.joints(t0), *list = p.model.index + lay.joint_tiles(t0 / lay.tiles_per_block);
    // The usual tile needs no call, for which all vectors would be put aside: what isn't usual is done before or after.
    const auto unskin_tiles = [&](index_t first, index_t last, bool gathered) {
        for (index_t tile = first; tile < last; ++tile, ids += 1 + J) {
            const index_t row = (tile - t0) * 3 * W;
            vec<T> g[3], dv[3] = {};
            if (gathered) {
                for (int c = 0; c < 3; ++c) g[c] = load(posed_rows + row + c * W);
            } else {
                split_points(g_rows + 3 * tile * W, g);
                for (int c = 0; c < 3; ++c) store(posed_rows + row + c * W, g[c]);
            }
            for (int c = 0; c < 3; ++c) {
                __builtin_prefetch(g_rows + next_g + (tile * W + c * (W / 3)) * stride[1]);
                __builtin_prefetch(v_rows + next_v + row + c * W);
            }
            for (std::int32_t slot = 0; slot < ids[0]; ++slot) {
                const vec<T> w = load(weights + ((tile - t0) * J + slot) * W);
                const vec<T> weighted[3] = {w * g[0], w * g[1], w * g[2]};
                vec<T> turned[3];
                transform_point_vjp(A + 12 * ids[1 + slot], weighted, turned);
                for (int c = 0; c < 3; ++c) dv[c] += turned[c];
            }
            for (int c = 0; c < 3; ++c) store(rows + row + c * W, dv[c]);
        }
    };
    const index_t whole = stride[1] == 3 && stride[2] == 1 ? min_of(t1, V / W) : t0;
    unskin_tiles(t0, whole, false);
    for (index_t tile = whole; tile < t1; ++tile) gather_points(g_rows, stride, tile * W, V, posed_rows + (tile - t0) * 3 * W);
    unskin_tiles(whole, t1, true);
    if (p.grad_landmarks) unskin_landmarks(p, lay, t0, t1, b, posed_rows, rows);
    if (p.grad_v_template && !p.grad_v_template_shared)
        for (index_t tile = t0; tile < t1; ++tile) {
            const T* row = rows + (tile - t0) * 3 * W;
            const vec<T> dv[3] = {load(row), load(row + W), load(row + 2 * W)};
            store_points(p.grad_v_template + (b * V + tile * W) * 3, V - tile * W, dv);
        }
    if (template_sum)
        for (index_t i = 0; i < (t1 - t0) * 3 * W; ++i) template_sum[t0 * 3 * W + i] += rows[i];
    std::int32_t joints = *list++;
    for (; joints > 0; --joints) {
        T* d_transform = d_transforms + 12 * *list++;
        vec<T> acc[12] = {};
        for (std::int32_t n = *list++; n > 0; --n, list += 2) {
            const T *g = posed_rows + list[0] * 3 * W, *v = v_rows + list[0] * 3 * W;
            const vec<T> w = load(weights + list[1] * W);
            const vec<T> weighted[3] = {w * load(g), w * load(g + W), w * load(g + 2 * W)};
            const vec<T> blended[3] = {load(v), load(v + W), load(v + 2 * W)};
            vec<T> dA[12];
            transform_vjp(blended, weighted, dA);
            for (int i = 0; i < 12; ++i) acc[i] += dA[i];
        }
        T total[round_up(12, W)];
        sums<T>(acc, total);
        for (int i = 0; i < 12; i += 4) add<4>(total + i, d_transform + i);
    }
}

// d_features[feature][b] += the sums over the rows of a block of tiles, for the block's features of `B` elements. A slice of the
// features at a time, so that its directions stay in L2 from one group of elements to the next. A small batch is bound by reading
// the directions, maybe from memory, and takes a run of tiles at once.
template <class T>
void project_block(const Directions<T>& d, index_t B, index_t tiles, const T* rows, T* d_features) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const index_t step = B <= Layout::small_batch ? Layout::tiles_per_run : Layout::tiles_per_block;
    for (index_t t = 0; t < tiles; t += step, rows += step * 3 * W) {
        const T* values = d.values + t * d.tile_pitch();
        for (index_t k0 = 0; k0 < d.count; k0 += Layout::features_per_slice) {
            const index_t k1 = min_of(k0 + Layout::features_per_slice, d.count);
            index_t b = 0;
            const auto groups = [&](auto group, auto features) {
                for (; b + group() <= B; b += group()) {
                    index_t k = k0;
                    const auto project = [&](auto features) {
                        for (; k + features() <= k1; k += features())
                            project_features<T, group(), features()>(min_of(step, tiles - t), d.tile_pitch(),
                                                                     rows + b * Layout::rows_per_block, Layout::rows_per_block,
                                                                     values + k * 3 * W, d.places + k, d_features + b, B);
                    };
                    project(features);
                    project(std::integral_constant<int, 1>{});
                }
            };
            if constexpr (max_group == 8) groups(std::integral_constant<int, 8>{}, std::integral_constant<int, 3>{});
            groups(std::integral_constant<int, 4>{}, std::integral_constant<int, max_group == 8 ? 6 : 3>{});
            groups(std::integral_constant<int, 2>{}, std::integral_constant<int, max_group == 8 ? 6 : 3>{});
            groups(std::integral_constant<int, 1>{}, std::integral_constant<int, 6>{});
        }
    }
}

// The blocks [first, last) for batch elements [b0, b1): their part of partial, a chunk's sums, and of template_sum where it isn't null.
template <class T>
void backward_chunk(const LbsBackward<T>& p, const LbsLayout<T>& lay, index_t first, index_t last, index_t b0, index_t b1, T* partial,
                    T* template_sum, DirectionsReader<T>& reader, T* scratch) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const index_t per_block = Layout::tiles_per_block;
    T *rows = scratch, *posed_rows = rows + Layout::batch_block * Layout::rows_per_block;  // [b][row of the block], [row]
    T *d_features = partial + b0 * lay.F, *d_transforms = partial + lay.feature_sums(p.B);
    fill_zero(d_features, partial + (b1 == p.B ? lay.feature_sums(p.B) : b1 * lay.F));
    fill_zero(d_transforms + b0 * 12 * lay.J, d_transforms + b1 * 12 * lay.J);
    if (template_sum) fill_zero(template_sum + first * per_block * 3 * W, template_sum + min_of(last * per_block, lay.tiles) * 3 * W);
    for (index_t block = first; block < last; ++block) {
        const index_t t0 = block * per_block, t1 = min_of(t0 + per_block, lay.tiles);
        for (index_t b = b0; b < b1; ++b)
            unskin(p, lay, t0, t1, b, b + 1 < b1, posed_rows, rows + (b - b0) * Layout::rows_per_block, template_sum,
                   d_transforms + b * 12 * lay.J);
        Directions<T> directions[2];
        reader.read(block, directions);
        for (const Directions<T>& d : directions) project_block(d, b1 - b0, t1 - t0, rows, d_features + d.first * (b1 - b0));
    }
}

template <class T>
void lbs_backward(const LbsBackward<T>& p, int threads) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const LbsModel<T>& m = p.model;
    const Layout lay(m.V, m.K, m.J);
    const bool sum_template = p.grad_v_template && p.grad_v_template_shared;
    if (p.B == 0) {
        if (sum_template) fill_zero(p.grad_v_template, p.grad_v_template + 3 * m.V);
        return;
    }
    const index_t chunks = p.grad_vertices ? lay.chunks(p.B) : 0, chunk_blocks = lay.chunk_blocks(p.B);
    const index_t batch_blocks = ceil_div(p.B, Layout::batch_block), pitch = lay.chunk_sums(p.B);
    T *partials = p.workspace, *template_sums = partials + lay.chunks(p.B) * pitch;
    Team team(threads, double(p.B) * m.V * 3 * (lay.F + 30));
    Shares shares(chunks * batch_blocks, team.size());
    Scratch<T> scratch((Layout::batch_block + 1) * Layout::rows_per_block + lay.F, team.size());
    Scratch<double> pose_scratch(PoseScratch::size(m.J), team.size());
    Scratch<T> directions(DirectionsReader<T>::values_size(m), team.size());
    Scratch<std::int32_t> places(DirectionsReader<T>::places_size(m), team.size());
    team.run([&](Member& member) {
        const FlushSubnormals flush;
        const PoseScratch s(pose_scratch.data(member.number), m.J);
        DirectionsReader<T> reader(m, directions.data(member.number), places.data(member.number));
        shares.run(member, [&](index_t piece) {
            const index_t chunk = piece % chunks, block = piece / chunks, b0 = block * Layout::batch_block;
            backward_chunk(p, lay, chunk * chunk_blocks, min_of((chunk + 1) * chunk_blocks, lay.blocks()), b0,
                           min_of(b0 + Layout::batch_block, p.B), partials + chunk * pitch,
                           sum_template ? template_sums + block * lay.tiles * 3 * W : nullptr, reader, scratch.data(member.number));
        });
        member.barrier();
        member.each(lay.feature_sums(p.B) / W, [&](index_t i) {  // into the first chunk's
            vec<T> total{};
            for (index_t c = 0; c < chunks; ++c) total += load(partials + c * pitch + i * W);
            store(partials + i * W, total);
        });
        member.barrier();
        member.each(p.B, [&](index_t b) {
            const index_t b0 = b / Layout::batch_block * Layout::batch_block, row = min_of(Layout::batch_block, p.B - b0);
            T* d_features = scratch.data(member.number);
            for (index_t k = 0; k < lay.F; ++k) d_features[k] = partials[b0 * lay.F + k * row + b - b0];
            for (index_t i = 0; i < 12 * m.J; ++i) s.d_transforms[i] = 0;
            for (index_t c = 0; c < chunks; ++c) {
                const T* d_transforms = partials + c * pitch + lay.feature_sums(p.B) + b * 12 * m.J;
                for (index_t i = 0; i < 12 * m.J; ++i) s.d_transforms[i] += d_transforms[i];
            }
            const index_t pose_size = (p.axis_angle ? 3 : 9) * m.J;
            pose_backward(pose_input(m, p.betas + b * p.betas_stride, p.pose + b * p.pose_stride,
                                     p.joint_template + b * p.joint_template_stride, p.axis_angle),
                          s, d_features, p.grad_joints ? p.grad_joints + b * 3 * m.J : nullptr,
                          p.grad_betas ? p.grad_betas + b * m.K : nullptr, p.grad_pose ? p.grad_pose + b * pose_size : nullptr,
                          p.grad_joint_template ? p.grad_joint_template + b * 3 * m.J : nullptr);
        });
        if (sum_template) {
            member.each(m.V, [&](index_t v) {
                for (int c = 0; c < 3; ++c) {
                    T total = T(0);
                    if (p.grad_vertices)
                        for (index_t block = 0; block < batch_blocks; ++block)
                            total += template_sums[block * lay.tiles * 3 * W + (v / W * 3 + c) * W + v % W];
                    p.grad_v_template[3 * v + c] = total;
                }
            });
        }
        if (p.grad_v_template && !p.grad_v_template_shared && !p.grad_vertices)
            member.each(p.B * 3 * m.V, [&](index_t i) { p.grad_v_template[i] = T(0); });
    });
}

}  // namespace
}  // namespace ringnet
