// Linear blend skinning on the CPU, forward: one fused pass.
//
// The matrix product keeps a block of accumulators in registers: 3 coordinates x max_group elements, fed by 3 loads and one broadcast
// an element. A lane is a vertex.
#pragma once

#include "lbs_model.h"
#include "mesh_landmarks.h"
#include "pose.h"
#include "simd.h"
#include "threads.h"

namespace ringnet {
namespace {

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

}  // namespace
}  // namespace ringnet
