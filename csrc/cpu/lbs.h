// Linear blend skinning on the CPU: one fused pass forward, one pass over grad_vertices backward.
//
// Both matrix products keep a block of accumulators in registers. Forward: 3 coordinates x max_group elements, fed by 3 loads and
// one broadcast per element; a lane is a vertex. Backward: 3 features x max_group elements, fed by 3 loads and one per element;
// lanes are added at the end, a block of tiles at a time, which is rare enough to cost little. So both read the same directions,
// and half as many bytes compete for the caches.
#pragma once

#include "../skinning.h"
#include "lbs_model.h"
#include "pose.h"
#include "simd.h"
#include "threads.h"

namespace ringnet {
namespace {

// The joints that touch a tile, with one weight per lane.
template <class T>
struct TileSkin {
    std::int32_t count;
    const std::int32_t* joints;
    const T* weights;

    // out = sum over the joints of w A [v; 1]: cheaper than mixing the transforms first, 12 products a weight against 12 and 9.
    RN_HOST_DEVICE void apply(const T* transforms, const vec<T> v[3], vec<T> out[3]) const {
        for (int c = 0; c < 3; ++c) out[c] = vec<T>{};
        for (std::int32_t s = 0; s < count; ++s) {
            const vec<T> w = load(weights + s * lanes<T>);
            vec<T> moved[3];
            transform_point(transforms + 12 * joints[s], v, moved);
            for (int c = 0; c < 3; ++c) out[c] += w * moved[c];
        }
    }
};

// What will be written: the same few lines of `group` rows of vertices and of kept vertices. Fetched a line at a time while
// something else is computed: all at once they would be more misses than a core can have in flight, and it would wait.
template <class T, int group>
struct Ahead {
    static constexpr index_t line = 64 / sizeof(T);
    const T *vertices, *kept;  // kept: null where they aren't
    index_t vertices_pitch, kept_pitch, steps;
    int row = 0;

    RN_HOST_DEVICE void fetch() {
        __builtin_prefetch(vertices, 1);
        vertices += vertices_pitch;
        if (kept) __builtin_prefetch(kept, 1);
        if (kept) kept += kept_pitch;
        if (++row < group) return;
        row = 0;
        vertices += line - group * vertices_pitch;
        if (kept) kept += line - group * kept_pitch;
    }
};

// out[t][b] = sum over k of directions[t][k] * features[b][ids[k]], for `tiles` neighbouring tiles and `group` elements. `later`:
// what to bring nearer meanwhile, a line a feature; null for nothing.
template <class T, int group, int tiles>
RN_KERNEL void blend_tiles(index_t count, const std::int32_t* ids, const T* directions, const T* features, index_t pitch,
                           Ahead<T, group> ahead, const T* later, vec<T> (&out)[tiles][group][3]) {
    constexpr int W = lanes<T>;
    vec<T> acc[tiles][group][3] = {};
    const T* x[group];
    RN_UNROLL for (int b = 0; b < group; ++b) x[b] = features + b * pitch;
    const index_t later_step = later ? index_t(64 / sizeof(T)) : group;
    if (!later) later = features + group * pitch;  // the next group's features: rows too short to start a hardware stream
    // Late enough to be there still, early enough for memory to answer.
    const index_t first_ahead = count > ahead.steps + 24 ? count - ahead.steps - 24 : 0, last_ahead = first_ahead + ahead.steps;
    for (index_t k = 0; k < count; ++k) {
        const index_t id = ids[k];
        // Not for one element, which is bound by the loads that it has.
        if (group > 1 && k >= first_ahead && k < last_ahead) ahead.fetch();
        if (group > 1 && tiles == 1) __builtin_prefetch(later + k * later_step);
        RN_UNROLL for (int t = 0; t < tiles; ++t) {
            const T* d = directions + (t * count + k) * 3 * W;
            vec<T> dx = load(d), dy = load(d + W), dz = load(d + 2 * W);
            RN_KEEP(dx);
            RN_KEEP(dy);
            RN_KEEP(dz);
            RN_UNROLL for (int b = 0; b < group; ++b) {
                const vec<T> f = broadcast(x[b][id]);
                acc[t][b][0] += dx * f;
                acc[t][b][1] += dy * f;
                acc[t][b][2] += dz * f;
            }
        }
    }
    RN_UNROLL for (int t = 0; t < tiles; ++t) {
        RN_UNROLL for (int b = 0; b < group; ++b) {
            RN_UNROLL for (int c = 0; c < 3; ++c) out[t][b][c] = acc[t][b][c];
        }
    }
}

template <class T, int group, int tiles>
void forward_tiles(const LbsForward<T>& p, const LbsLayout<T>& lay, const Directions<T>& directions, index_t first_tile,
                   index_t first_b, const T* later = nullptr) {
    constexpr int W = lanes<T>;
    // Local: the compiler must believe that any store changes what p and lay refer to.
    const index_t J = lay.J, V = lay.V, template_pitch = p.v_template_stride, transform_pitch = lay.transform_pitch;
    const index_t kept_pitch = lay.blended_pitch, first_v = first_tile * W;
    const bool keep = p.keep;
    const T* templates = p.v_template + first_b * template_pitch + 3 * first_v;
    const T* transforms = p.state + lay.transforms(p.B, first_b);
    const T* weights = p.model.packed + lay.weights() + first_tile * J * W;
    const std::int32_t* joints = p.model.index + lay.joints(first_tile);
    T* vertices = p.vertices + (first_b * V + first_v) * 3;
    T* kept = p.state + lay.blended(p.B, first_b) + first_tile * 3 * W;

    vec<T> offsets[tiles][group][3];
    const Ahead<T, group> ahead{vertices, keep ? kept : nullptr, 3 * V, kept_pitch,
                                group * ceil_div(tiles * 3 * W, Ahead<T, group>::line)};
    const index_t tile_of_block = first_tile % LbsLayout<T>::tiles_per_block;
    blend_tiles<T, group, tiles>(directions.count, directions.features, directions.values + tile_of_block * directions.tile_pitch(),
                                 p.state + lay.features(first_b), lay.feature_pitch, ahead, later, offsets);
    for (int t = 0; t < tiles; ++t) {
        const TileSkin<T> skin{joints[0], joints + 1, weights};
        const index_t left = V - first_v - t * W;
        vec<T> v_template[3];
        load_points(templates, left, v_template);
        for (int b = 0; b < group; ++b) {
            if (b > 0 && template_pitch != 0) load_points(templates + b * template_pitch, left, v_template);
            vec<T> blended[3], posed[3];
            for (int c = 0; c < 3; ++c) blended[c] = v_template[c] + offsets[t][b][c];  // last: it is large, the sum small
            skin.apply(transforms + b * transform_pitch, blended, posed);
            store_points(vertices + b * 3 * V, left, posed);
            if (keep)
                for (int c = 0; c < 3; ++c) store(kept + b * kept_pitch + c * W, blended[c]);
        }
        templates += 3 * W;
        vertices += 3 * W;
        kept += 3 * W;
        weights += J * W;
        joints += 1 + J;
    }
}

// A block of tiles for batch elements [b0, b1). Full groups go tile by tile, so that a tile's directions stay in L1 from one
// group to the next. What is left over takes several tiles at once instead: as many accumulators, to hide the latency.
template <class T>
void forward_block(const LbsForward<T>& p, const LbsLayout<T>& lay, index_t block, index_t b0, index_t b1) {
    const Directions<T> directions(p.model, lay, block);
    const index_t t0 = block * LbsLayout<T>::tiles_per_block, t1 = min_of(t0 + LbsLayout<T>::tiles_per_block, lay.tiles);
    const index_t full = b0 + (b1 - b0) / max_group * max_group;
    if (full > b0)
        for (index_t t = t0; t < t1; ++t) {
            // The first groups bring the next tile's directions into L2, where they are enough to bring all.
            const T* later = directions.values + (t + 1 - t0) * directions.tile_pitch();
            const T* const end = t + 1 < t1 && full - b0 >= 4 * max_group ? later + directions.tile_pitch() : later;
            for (index_t b = b0; b < full; b += max_group, later += directions.count * index_t(64 / sizeof(T)))
                forward_tiles<T, max_group, 1>(p, lay, directions, t, b, later < end ? later : nullptr);
        }
    index_t b = full;
    const auto rest = [&](auto group, auto tiles) {
        if (b1 - b < group()) return;
        index_t t = t0;
        for (; t + tiles() <= t1; t += tiles()) forward_tiles<T, group(), tiles()>(p, lay, directions, t, b);
        for (; t < t1; ++t) forward_tiles<T, group(), 1>(p, lay, directions, t, b);
        b += group();
    };
    if constexpr (max_group == 8) rest(std::integral_constant<int, 4>{}, std::integral_constant<int, 2>{});
    rest(std::integral_constant<int, 2>{}, std::integral_constant<int, 2>{});
    rest(std::integral_constant<int, 1>{}, std::integral_constant<int, max_group == 8 ? 5 : 4>{});
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
    const index_t batch_block = LbsLayout<T>::batch_block, work = lay.blocks() * ceil_div(p.B, batch_block);
    const int n = useful_threads(threads, double(p.B) * m.V * 3 * (lay.F + 12));
    Shares shares(work, n);
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
        shares.run([&](index_t piece) {
            const index_t b0 = piece / lay.blocks() * batch_block;
            forward_block(p, lay, piece % lay.blocks(), b0, min_of(b0 + batch_block, p.B));
        });
    }
}

// W points from v on, any strides, as [xyz][lane]; zero beyond the last one. Out of line: its sixteen addresses would cost the
// usual gradient, which lies as vertices do, more than it takes to read.
template <class T>
RN_KERNEL void gather_points(const T* g, const index_t stride[3], index_t v, index_t V, T* planar) {
    constexpr int W = lanes<T>;
    for (int c = 0; c < 3; ++c)
        for (int l = 0; l < W; ++l) planar[c * W + l] = v + l < V ? g[(v + l) * stride[1] + c * stride[2]] : T(0);
}

// out[ids[k]][b] += sum over `tiles` tiles of gradient[b] . directions[k], for `group` elements and `features` features.
template <class T, int group, int features>
RN_KERNEL void project_features(index_t tiles, index_t tile_pitch, const T* gradient, index_t gradient_pitch,
                                const T* directions, const std::int32_t* ids, T* out, index_t out_pitch) {
    constexpr int W = lanes<T>;
    vec<T> acc[group * features] = {};
    for (index_t t = 0; t < tiles; ++t, directions += tile_pitch, gradient += 3 * W) {
        RN_ROLL for (int c = 0; c < 3; ++c) {
            vec<T> d[features];
            RN_UNROLL for (int k = 0; k < features; ++k) {
                const T* p = directions + (3 * k + c) * W;
                // The next call's: more pieces than the hardware foresees.
                if (group > LbsLayout<T>::small_batch) __builtin_prefetch(p + 3 * features * W);
                d[k] = load(p);
                RN_KEEP(d[k]);
            }
            RN_UNROLL for (int b = 0; b < group; ++b) {
                vec<T> g = load(gradient + b * gradient_pitch + c * W);
                RN_KEEP(g);
                RN_UNROLL for (int k = 0; k < features; ++k) acc[k * group + b] += d[k] * g;
            }
        }
    }
    T total[round_up(group * features, W)];
    sums<T>(acc, total);
    RN_UNROLL for (int k = 0; k < features; ++k) add<group>(total + k * group, out + ids[k] * out_pitch);
}

// Tiles [t0, t1), a block, of one element: rows = the gradient of the blended vertices, [tile][xyz][lane]; adds that of the
// transforms to d_transforms, and where wanted the first to template_sum. Fetches what the next element will read, where there is
// one: pieces too short and too far apart for the hardware to foresee. posed_rows is scratch.
//
// First the tiles one by one, then the joints one by one: a joint's twelve sums stay in registers over all of its tiles.
template <class T>
RN_KERNEL void unskin(const LbsBackward<T>& p, const LbsLayout<T>& lay, index_t t0, index_t t1, index_t b, bool next,
                      T* posed_rows, T* rows, T* template_sum, T* d_transforms) {
    constexpr int W = lanes<T>;
    // Local: the compiler must believe that any store changes what p and lay refer to.
    const index_t V = lay.V, J = lay.J, *const s = p.grad_vertices_stride, stride[] = {s[0], s[1], s[2]};
    const index_t next_g = next ? stride[0] : 0, next_v = next ? lay.blended_pitch : 0;
    const T *A = p.state + lay.transforms(p.B, b), *g_rows = p.grad_vertices + b * stride[0];
    const T *v_rows = p.state + lay.blended(p.B, b) + t0 * 3 * W, *weights = p.model.packed + lay.weights() + t0 * J * W;
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
                            project_features<T, group(), features()>(
                                min_of(step, tiles - t), d.tile_pitch(), rows + b * Layout::rows_per_block,
                                Layout::rows_per_block, values + k * 3 * W, d.features + k, d_features + b, B);
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
void backward_chunk(const LbsBackward<T>& p, const LbsLayout<T>& lay, index_t first, index_t last, index_t b0, index_t b1,
                    T* partial, T* template_sum, T* scratch) {
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
        project_block(Directions<T>(p.model, lay, block), b1 - b0, t1 - t0, rows, d_features);
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
        if (sum_template)
            fill_zero(p.grad_v_template, p.grad_v_template + 3 * m.V);
        return;
    }
    const index_t chunks = p.grad_vertices ? lay.chunks(p.B) : 0, chunk_blocks = lay.chunk_blocks(p.B);
    const index_t batch_blocks = ceil_div(p.B, Layout::batch_block), pitch = lay.chunk_sums(p.B);
    T *partials = p.workspace, *template_sums = partials + lay.chunks(p.B) * pitch;
    const int n = useful_threads(threads, double(p.B) * m.V * 3 * (lay.F + 30));
    Shares shares(chunks * batch_blocks, n);
#pragma omp parallel num_threads(n)
    {
        Scratch<T> scratch((Layout::batch_block + 1) * Layout::rows_per_block + lay.F);
        Scratch<double> pose_scratch(PoseScratch::size(m.J));
        const PoseScratch s(pose_scratch.data(), m.J);
        shares.run([&](index_t piece) {
            const index_t chunk = piece % chunks, block = piece / chunks, b0 = block * Layout::batch_block;
            backward_chunk(p, lay, chunk * chunk_blocks, min_of((chunk + 1) * chunk_blocks, lay.blocks()), b0,
                           min_of(b0 + Layout::batch_block, p.B), partials + chunk * pitch,
                           sum_template ? template_sums + block * lay.tiles * 3 * W : nullptr, scratch.data());
        });
#pragma omp barrier
#pragma omp for schedule(static)
        for (index_t i = 0; i < lay.feature_sums(p.B); i += W) {  // into the first chunk's
            vec<T> total{};
            for (index_t c = 0; c < chunks; ++c) total += load(partials + c * pitch + i);
            store(partials + i, total);
        }
#pragma omp for schedule(static)
        for (index_t b = 0; b < p.B; ++b) {
            const index_t b0 = b / Layout::batch_block * Layout::batch_block, row = min_of(Layout::batch_block, p.B - b0);
            T* d_features = scratch.data();
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
