// Linear blend skinning on the CPU: one fused pass forward, one pass over grad_vertices backward.
//
// Both matrix products keep a block of accumulators in registers. Forward: 3 coordinates x max_group elements, fed by 3 loads and
// one broadcast per element; a lane is a vertex. Backward: 3 features x max_group elements, fed by 3 loads and one per element;
// lanes are added at the end, a block of tiles at a time, which is rare enough to cost little. So both read the same directions,
// and half as many bytes compete for the caches.
#pragma once

#include "../skinning.h"
#include "lbs_model.h"
#include "mesh_landmarks.h"
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

// One row of memory for each element of a group.
template <class T>
struct Rows {
    T* first;
    index_t pitch;
    RN_HOST_DEVICE T* operator[](index_t b) const { return first + b * pitch; }
};

// What a sum brings nearer while it is computed: `lines` of memory every features_per_step features.
template <class T>
struct Later {
    const T* first;
    index_t lines;
};

// Features that a loop takes in one go: what is to be asked and fetched meanwhile costs as many instructions as one of them, and where
// two threads share a core, or the core is narrow, instructions are what it is bound by.
constexpr index_t features_per_step = RN_VECTOR_BYTES > 16 || registers > 16 ? 4 : 1;

// out[t][b] = sum over k of directions[t][k] * features[k][b], for `tiles` neighbouring tiles of the block, from its tile `first` on, and
// `group` elements. vertices and kept (null for none) are where the results will be written.
template <class T, int group, int tiles>
RN_KERNEL void blend_tiles(const Directions<T> (&parts)[2], index_t first, const T* features, Rows<T> vertices, Rows<T> kept,
                           const Later<T> (&later)[2], vec<T> (&out)[tiles][group][3]) {
    constexpr int W = lanes<T>;
    constexpr bool spare = 3 * group * tiles + 4 < registers;
    constexpr index_t line = 64 / sizeof(T), size = tiles * 3 * W;
    vec<T> acc[tiles][group][3] = {};
    const auto add_feature = [&](const T* d0, index_t tile_pitch, const T* x) __attribute__((always_inline)) {
        RN_UNROLL for (int t = 0; t < tiles; ++t) {
            const T* d = d0 + t * tile_pitch;
            const vec<T> dx = load_shared<T, spare>(d), dy = load_shared<T, spare>(d + W), dz = load_shared<T, spare>(d + 2 * W);
            RN_UNROLL for (int b = 0; b < group; ++b) {
                const factor<T> f = make_factor(x[b]);
                multiply_add<T>(acc[t][b][0], dx, f);
                multiply_add<T>(acc[t][b][1], dy, f);
                multiply_add<T>(acc[t][b][2], dz, f);
            }
        }
    };
    // Where the results will be is fetched a row a step, as all at once would be more misses than a core can have in flight; late
    // enough to be there still, early enough for memory to answer.
    constexpr index_t step = tiles > 1 ? 1 : features_per_step, lead = 96;
    index_t wait = (parts[0].count + parts[1].count - lead) / step - group, rows = group;
    for (int part = 0; part < 2; ++part) {
        const index_t count = parts[part].count, tile_pitch = parts[part].tile_pitch();
        const std::int32_t* places = parts[part].places;
        const T *directions = parts[part].values + first * tile_pitch, *x = features + parts[part].first * group;
        const T* next = later[part].first;
        const index_t next_lines = later[part].lines;
        const auto of = [&](index_t k)
                            __attribute__((always_inline)) { return x + static_cast<std::uint32_t>(places[k]) * group / max_group; };
        index_t k = 0;
        for (; k + step <= count; k += step) {
            // Not for one element, which is bound by the loads that it has.
            if (group > 1 && --wait < 0 && --rows >= 0) {
                RN_UNROLL for (index_t i = 0; i < size + line - 1; i += line) {
                    const index_t at = min_of(i, size - 1);  // the last line too, whatever the first one's place
                    __builtin_prefetch(vertices.first + at, 1);
                    if (kept.first && i < size) __builtin_prefetch(kept.first + at, 1);
                }
                vertices.first += vertices.pitch;
                kept.first += kept.pitch;
            }
            if (group > 1 && tiles == 1)
                for (index_t i = 0; i < next_lines; ++i, next += line) __builtin_prefetch(next);
            RN_UNROLL for (int i = 0; i < step; ++i) add_feature(directions + i * 3 * W, tile_pitch, of(k + i));
            directions += step * 3 * W;
        }
        for (; k < count; ++k, directions += 3 * W) add_feature(directions, tile_pitch, of(k));
    }
    RN_UNROLL for (int t = 0; t < tiles; ++t) {
        RN_UNROLL for (int b = 0; b < group; ++b) { RN_UNROLL for (int c = 0; c < 3; ++c) out[t][b][c] = acc[t][b][c]; }
    }
}

// What is left to do with a tile: template and offsets are added up, kept if wanted (kept.first not null), and skinned.
template <class T, int group>
RN_KERNEL void skin_tile(const TileSkin<T>& skin, const vec<T> (&offsets)[group][3], Rows<const T> templates, Rows<const T> transforms,
                         Rows<T> vertices, Rows<T> kept) {
    constexpr int W = lanes<T>;
    vec<T> v_template[3];
    split_points(templates.first, v_template);
    for (int b = 0; b < group; ++b) {
        if (b > 0 && templates.pitch != 0) split_points(templates[b], v_template);
        vec<T> blended[3], posed[3];
        for (int c = 0; c < 3; ++c) blended[c] = v_template[c] + offsets[b][c];  // last: it is large, the sum small
        skin.apply(transforms[b], blended, posed);
        merge_points(posed, vertices[b]);
        if (kept.first)
            for (int c = 0; c < 3; ++c) store(kept[b] + c * W, blended[c]);
    }
}

// The same where only the first `count` vertices of the tile exist, by way of memory that has room for all.
template <class T, int group>
RN_KERNEL void skin_last_tile(const TileSkin<T>& skin, const vec<T> (&offsets)[group][3], Rows<const T> templates, Rows<const T> transforms,
                              Rows<T> vertices, Rows<T> kept, index_t count) {
    constexpr index_t row = 3 * lanes<T>;
    T padded_templates[group * row] = {}, padded_vertices[group * row];
    for (int b = 0; b < group; ++b)
        for (index_t i = 0; i < 3 * count; ++i) padded_templates[b * row + i] = templates[b][i];
    skin_tile<T, group>(skin, offsets, {padded_templates, row}, transforms, {padded_vertices, row}, kept);
    for (int b = 0; b < group; ++b)
        for (index_t i = 0; i < 3 * count; ++i) vertices[b][i] = padded_vertices[b * row + i];
}

template <class T, int group, int tiles>
void forward_tiles(const LbsForward<T>& p, const LbsLayout<T>& lay, const Directions<T> (&directions)[2], index_t tile, index_t b,
                   const Later<T> (&later)[2]) {
    constexpr int W = lanes<T>;
    Rows<const T> templates{p.v_template + b * p.v_template_stride + tile * 3 * W, p.v_template_stride};
    Rows<T> vertices{p.vertices + (b * lay.V + tile * W) * 3, 3 * lay.V}, kept{nullptr, 0};
    if (p.keep) kept = {p.state + lay.blended(p.B, b) + tile * 3 * W, lay.blended_pitch};
    vec<T> offsets[tiles][group][3];
    blend_tiles<T, group, tiles>(directions, tile % LbsLayout<T>::tiles_per_block, p.state + lay.features(b), vertices, kept, later,
                                 offsets);
    const Rows<const T> transforms{p.state + lay.transforms(p.B, b), lay.transform_pitch};
    for (int t = 0; t < tiles; ++t, ++tile) {
        const std::int32_t* joints = p.model.index + lay.joints(tile);
        const TileSkin<T> skin{joints[0], joints + 1, p.model.packed + lay.weights(tile)};
        const index_t left = lay.V - tile * W;
        if (left >= W)
            skin_tile<T, group>(skin, offsets[t], templates, transforms, vertices, kept);
        else
            skin_last_tile<T, group>(skin, offsets[t], templates, transforms, vertices, kept, left);
        templates.first += 3 * W;
        vertices.first += 3 * W;
        if (p.keep) kept.first += 3 * W;
    }
}

// A block of tiles for batch elements [b0, b1). Full groups go tile by tile, so that a tile's directions stay in L1 from one
// group to the next. What is left over takes several tiles at once instead: as many accumulators, to hide the latency.
template <class T>
void forward_block(const LbsForward<T>& p, const LbsLayout<T>& lay, DirectionsReader<T>& reader, index_t block, index_t b0, index_t b1) {
    Directions<T> directions[2];
    reader.read(block, directions);
    const index_t t0 = block * LbsLayout<T>::tiles_per_block, t1 = min_of(t0 + LbsLayout<T>::tiles_per_block, lay.tiles);
    const index_t groups = (b1 - b0) / max_group, full = b0 + groups * max_group;
    // Meanwhile the next tile's directions are brought into L2, over as many of the groups as it takes with few lines a step: more
    // than memory keeps up with would hold up the sums. For a few groups the hardware foresees enough.
    constexpr index_t line = 64 / sizeof(T), most_lines = RN_VECTOR_BYTES == 64 ? 6 : 2;
    index_t steps[2], lines[2];
    for (int i = 0; i < 2; ++i) {
        steps[i] = directions[i].count / features_per_step;
        const index_t tile_lines = ceil_div(directions[i].tile_pitch(), line);
        lines[i] = groups * steps[i] > 0 && directions[i].packed ? ceil_div(tile_lines, groups * steps[i]) : 0;
        if (lines[i] > most_lines) lines[i] = 0;
    }
    for (index_t t = t0; groups > 0 && t < t1; ++t) {
        Later<T> later[2];
        const T* end[2];
        for (int i = 0; i < 2; ++i) {
            later[i] = {directions[i].values + (t + 1 - t0) * directions[i].tile_pitch(), lines[i]};
            end[i] = t + 1 < t1 ? later[i].first + directions[i].tile_pitch() : later[i].first;
        }
        for (index_t b = b0; b < full; b += max_group) {
            for (int i = 0; i < 2; ++i)
                if (later[i].first >= end[i]) later[i].lines = 0;
            forward_tiles<T, max_group, 1>(p, lay, directions, t, b, later);
            for (int i = 0; i < 2; ++i) later[i].first += lines[i] * steps[i] * line;
        }
    }
    index_t b = full;
    const auto rest = [&](auto group, auto tiles) {
        if (b1 - b < group()) return;
        index_t t = t0;
        for (; t + tiles() <= t1; t += tiles()) forward_tiles<T, group(), tiles()>(p, lay, directions, t, b, {});
        for (; t < t1; ++t) forward_tiles<T, group(), 1>(p, lay, directions, t, b, {});
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
    Team team(threads, double(p.B) * m.V * 3 * (lay.F + 12));
    Shares shares(work, team.size());
    Scratch<double> scratch(PoseScratch::size(m.J), team.size());
    Scratch<T> directions(DirectionsReader<T>::values_size(m), team.size());
    Scratch<std::int32_t> places(DirectionsReader<T>::places_size(m), team.size());
    team.run([&](Member& member) {
        const FlushSubnormals flush;
        const PoseScratch s(scratch.data(member.number), m.J);
        DirectionsReader<T> reader(m, directions.data(member.number), places.data(member.number));
        member.each(p.B, [&](index_t b) {
            const ElementGroup group(p.B, b);
            T *features = p.state + lay.features(group.first) + (b - group.first), *transforms = p.state + lay.transforms(p.B, b);
            pose_forward(pose_input(m, p.betas + b * p.betas_stride, p.pose + b * p.pose_stride,
                                    p.joint_template + b * p.joint_template_stride, p.axis_angle),
                         s, features, group.size, transforms, p.joints + b * 3 * m.J);
            // All of state is written, padding too: it is an output of the operator.
            for (index_t k = lay.F; k < lay.feature_pitch; ++k) features[k * group.size] = T(0);
            const bool contour = p.landmarks && p.mesh_landmarks.C > 0;
            transforms[12 * m.J] = contour ? static_cast<T>(contour_row(s.world_r + 9 * p.mesh_landmarks.neck_joint)) : T(0);
            fill_zero(transforms + 12 * m.J + 1, transforms + lay.transform_pitch);
            if (p.keep) fill_zero(p.state + lay.blended(p.B, b) + lay.tiles * 3 * LbsLayout<T>::W, p.state + lay.blended(p.B, b + 1));
        });
        member.barrier();
        shares.run(member, [&](index_t piece) {
            const index_t b0 = piece / lay.blocks() * batch_block;
            forward_block(p, lay, reader, piece % lay.blocks(), b0, min_of(b0 + batch_block, p.B));
        });
        if (p.landmarks) {
            const index_t points = p.mesh_landmarks.C + p.mesh_landmarks.L;
            member.barrier();
            member.each(p.B, [&](index_t b) {
                read_landmarks(p.mesh_landmarks, lay.contour_row(p.state + lay.transforms(p.B, b)), m.V, p.vertices + b * 3 * m.V,
                               p.landmarks + b * 3 * points);
            });
        }
    });
}

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
