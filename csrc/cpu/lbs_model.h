// A model as the CPU kernels of linear blend skinning read it, and where things are in their private buffers.
//
// Vertices come in tiles of one vector (W lanes), tiles in blocks. Each constant is packed on its own:
//   directions (of the betas; of the pose)  [block][tile][feature][xyz][lane]: forward and backward; only features that move any vertex
//       of the block. Their index: [block][1 + features]: number of features that move the block, then their places in a whole
//       group's rows, number times max_group.
//   weights  [tile][slot][lane]: skinning weights of the joints that touch the tile, most J slots. Their index: [tile][1 + J]: number
//       of joints that touch the tile, then their ids; [block][joint_tiles_size]: number of joints that touch the block and, joint by
//       joint, id, number of tiles, and for each of them its number in the block and the place of its weights.
// Directions that are not packed are brought into the same order block by block as they are needed: the sums are the same, bit for bit.
//
// state: features [group][feature][element], [b]: transforms (12 J) and the row of the contour table, and if kept the blended
// vertices [b][tile][xyz][lane], padded to 64 bytes an element.
#pragma once

#include <cstring>

#include "../ops.h"
#include "../skinning.h"
#include "pose.h"
#include "simd.h"
#include "threads.h"

namespace ringnet {
namespace {

// Batch elements are taken max_group at a time, and what is left at the end as descending powers of two: the group of element b.
struct ElementGroup {
    index_t first, size;

    ElementGroup(index_t B, index_t b) : first(B / max_group * max_group), size(max_group) {
        if (b < first) {
            first = b / max_group * max_group;
            return;
        }
        for (size /= 2; b >= first + (B & size); size /= 2) first += B & size;
    }
};

template <class T>
struct LbsLayout {
    static constexpr int W = lanes<T>;
    // Backward: a group's rows of a block of tiles and, twice, three features' directions fit L1, the rows an odd number of lines
    // apart, or they would meet in the same sets; a slice of the features fits L2. A run is what a small batch takes at once: few
    // enough tiles for the hardware to foresee all reads.
    static constexpr index_t tiles_per_block = 704 / RN_VECTOR_BYTES;
    static constexpr index_t rows_per_block = tiles_per_block * 3 * W;
    static constexpr index_t features_per_slice = 48;
    static constexpr index_t tiles_per_run = 192 / RN_VECTOR_BYTES;
    static constexpr index_t batch_block = 64;
    static constexpr int small_batch = 3;

    LbsLayout(index_t V_, index_t K, index_t J_)
        : V(V_), J(J_), F(K + 9 * (J_ - 1)), tiles(ceil_div(V_, W)), feature_pitch(round_up(F, 16)),
          transform_pitch(round_up(12 * J + 1, 16)), blended_pitch(round_up(tiles * 3 * W, 16)) {}

    index_t V, J, F, tiles;
    index_t feature_pitch, transform_pitch, blended_pitch;  // elements per batch element in each part of state

    // Packed weights and their index.
    index_t weights(index_t tile) const { return tile * J * W; }
    index_t weights_size() const { return weights(tiles); }
    index_t joints(index_t tile) const { return tile * (1 + J); }
    index_t joint_tiles_size() const { return 1 + 2 * J * (1 + tiles_per_block); }
    index_t joint_tiles(index_t block) const { return joints(tiles) + block * joint_tiles_size(); }
    index_t weights_index_size() const { return joint_tiles(blocks()); }
    index_t state_size(bool keep) const { return feature_pitch + transform_pitch + (keep ? blended_pitch : 0); }
    index_t features(index_t b) const { return b * feature_pitch; }
    index_t transforms(index_t B, index_t b) const { return B * feature_pitch + b * transform_pitch; }
    index_t contour_row(const T* transforms) const { return static_cast<index_t>(transforms[12 * J]); }
    index_t blended(index_t B, index_t b) const { return B * (feature_pitch + transform_pitch) + b * blended_pitch; }

    // Backward: the vertices are cut in chunks of whole blocks, whose partial sums are added in order. How many depends
    // on sizes alone, so that the sums do too: enough for about 32 pieces of work, counting blocks of the batch, but at most 16,
    // since each leaves a kilobyte of sums an element to be written and read again (32 took a tenth longer from B = 1 to 64).
    index_t blocks() const { return ceil_div(tiles, tiles_per_block); }
    index_t chunk_blocks(index_t B) const {
        const index_t wanted = min_of(16, ceil_div(32, ceil_div(B + (B == 0), batch_block)));
        return ceil_div(blocks(), wanted);
    }
    index_t chunks(index_t B) const { return ceil_div(blocks(), chunk_blocks(B)); }
    // A chunk's sums: d(features) of a block of elements as [feature][element], so that a group's are neighbours, block after
    // block; then d(transforms) [b][12 J].
    index_t feature_sums(index_t B) const { return round_up(B * F, 16); }
    index_t chunk_sums(index_t B) const { return feature_sums(B) + round_up(B * 12 * J, 16); }
    index_t workspace_size(index_t B, bool template_sum) const {
        return chunks(B) * chunk_sums(B) + (template_sum ? ceil_div(B, batch_block) * tiles * 3 * W : 0);
    }
};

// Packed directions of `count` features. A block has room for all of them; where fewer move it, the rest stays unused.
template <class T>
struct DirectionsLayout {
    static constexpr int W = lanes<T>;
    static constexpr index_t tiles_per_block = LbsLayout<T>::tiles_per_block;

    DirectionsLayout(index_t V_, index_t count_) : V(V_), count(count_), tiles(ceil_div(V_, W)) {}

    index_t V, count, tiles;

    index_t blocks() const { return ceil_div(tiles, tiles_per_block); }
    index_t tiles_of(index_t block) const { return min_of(tiles_per_block, tiles - block * tiles_per_block); }
    index_t values(index_t block) const { return block * tiles_per_block * count * 3 * W; }
    index_t places(index_t block) const { return block * (1 + count); }
    index_t packed_size() const { return tiles * count * 3 * W; }
    index_t index_size() const { return places(blocks()); }
    index_t block_size() const { return tiles_per_block * count * 3 * W; }  // of one that holds all features
};

// Rows and columns of a square of vectors, exchanged: first neighbours, then neighbouring pairs, and so on.
template <int W, int m>
struct TransposeUpper {
    static constexpr int at(int l) { return l & m ? W + l - m : l; }
};
template <int W, int m>
struct TransposeLower {
    static constexpr int at(int l) { return l & m ? W + l : l + m; }
};
template <class T, int m = 1>
RN_HOST_DEVICE void transpose(vec<T> (&v)[lanes<T>]) {
    constexpr int W = lanes<T>;
    if constexpr (m < W) {
        RN_UNROLL for (int i = 0; i < W; ++i) {
            if (i & m) continue;
            const vec<T> a = v[i], b = v[i + m];
            v[i] = permute<T>(a, b, TransposeUpper<W, m>{});
            v[i + m] = permute<T>(a, b, TransposeLower<W, m>{});
        }
        transpose<T, 2 * m>(v);
    }
}

// A tile of directions as the user has them to [feature][xyz][lane], with zeros beyond the last vertex.
template <class T>
RN_KERNEL void read_tile(const DirectionsSource<T>& s, index_t tile, T* out) {
    constexpr int W = lanes<T>;
    const index_t v0 = tile * W, vertices = min_of(W, s.V - v0);
    const T* first = s.values + 3 * v0 * s.row_stride;
    index_t k = 0;
    if (vertices == W && s.row_stride == 1) {  // posedirs: a feature's rows lie one after the other
        for (; k < s.count; ++k, out += 3 * W) {
            vec<T> xyz[3];
            split_points(first + k * s.feature_stride, xyz);
            for (int c = 0; c < 3; ++c) store(out + c * W, xyz[c]);
        }
    } else if (vertices == W && s.feature_stride == 1) {  // shapedirs: a row's features do
        // Many rows at a time: more than the hardware foresees. Meanwhile the next tile, which lies behind this one, is fetched.
        constexpr index_t line = 64 / sizeof(T);
        const T* next = first + 3 * W * s.row_stride;
        for (; k + W <= s.count; k += W, out += 3 * W * W) {
            for (int c = 0; c < 3; ++c, next += W * W) {
                for (index_t i = 0; i < W * W; i += line) __builtin_prefetch(next + i);
                vec<T> v[W];
                RN_UNROLL for (int l = 0; l < W; ++l) v[l] = load(first + (3 * l + c) * s.row_stride + k);
                transpose<T>(v);
                RN_UNROLL for (int i = 0; i < W; ++i) store(out + (3 * i + c) * W, v[i]);
            }
        }
    }
    for (; k < s.count; ++k, out += 3 * W)
        for (int c = 0; c < 3; ++c)
            for (int l = 0; l < W; ++l) out[c * W + l] = l < vertices ? first[(3 * l + c) * s.row_stride + k * s.feature_stride] : T(0);
}

// Directions that are zero throughout a block are left out, which is common: a joint's pose correctives and many an expression are local.
template <class T>
void pack_directions(const DirectionsSource<T>& s, T* packed, std::int32_t* index, int threads) {
    constexpr index_t row = 3 * lanes<T>;
    const DirectionsLayout<T> lay(s.V, s.count);
    Team team(threads, double(lay.packed_size()));
    Scratch<T> scratch(lay.block_size(), team.size());
    Scratch<std::int32_t> moves(s.count, team.size());
    team.run([&](const Member& member) {
        T* const read = scratch.data(member.number);
        std::int32_t* const moved = moves.data(member.number);
        member.each(lay.blocks(), [&](index_t block) {
            const index_t tiles = lay.tiles_of(block);
            std::int32_t *list = index + lay.places(block), used = 0;
            for (index_t k = 0; k < s.count; ++k) moved[k] = 0;
            for (index_t t = 0; t < tiles; ++t) {
                const T* d = read + t * s.count * row;
                read_tile(s, block * lay.tiles_per_block + t, read + t * s.count * row);
                for (index_t k = 0; k < s.count; ++k, d += row)
                    for (index_t i = 0; i < row; ++i) moved[k] |= d[i] != T(0);
            }
            for (index_t k = 0; k < s.count; ++k)
                if (moved[k]) list[1 + used++] = static_cast<std::int32_t>(k * max_group);
            list[0] = used;
            for (index_t k = used; k < s.count; ++k) list[1 + k] = 0;
            T* out = packed + lay.values(block);
            for (index_t t = 0; t < tiles; ++t)
                for (std::int32_t n = 0; n < used; ++n, out += row)
                    std::memcpy(out, read + (t * s.count + list[1 + n] / max_group) * row, row * sizeof(T));
        });
    });
}

// A block's tiles by joint: the lists of joints by tile, turned round.
template <class T>
void list_joint_tiles(const LbsLayout<T>& lay, const std::int32_t* index, index_t t0, index_t t1, std::int32_t* list) {
    std::int32_t* next = list + 1;
    list[0] = 0;
    for (index_t j = 0; j < lay.J; ++j) {
        std::int32_t* entry = next;
        next += 2;
        for (index_t tile = t0; tile < t1; ++tile) {
            const std::int32_t* ids = index + lay.joints(tile);
            for (std::int32_t slot = 0; slot < ids[0]; ++slot) {
                if (ids[1 + slot] != j) continue;
                *next++ = static_cast<std::int32_t>(tile - t0);
                *next++ = static_cast<std::int32_t>((tile - t0) * lay.J + slot);
            }
        }
        entry[0] = static_cast<std::int32_t>(j);
        entry[1] = static_cast<std::int32_t>((next - entry) / 2 - 1);
        if (entry[1] == 0)
            next = entry;
        else
            ++list[0];
    }
    for (std::int32_t* end = list + lay.joint_tiles_size(); next < end; ++next) *next = 0;
}

template <class T>
void pack_weights(index_t V, index_t J, const T* lbs_weights, T* packed, std::int32_t* index, int threads) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const Layout lay(V, 0, J);
    Team(threads, double(lay.weights_size())).each(lay.blocks(), [&](index_t block) {
        const index_t t0 = block * Layout::tiles_per_block, t1 = min_of(t0 + Layout::tiles_per_block, lay.tiles);
        for (index_t tile = t0; tile < t1; ++tile) {
            T* weights = packed + lay.weights(tile);
            std::int32_t* ids = index + lay.joints(tile);
            std::int32_t used = 0;
            for (index_t j = 0; j < J; ++j) {
                bool any = false;
                for (index_t v = tile * W; v < min_of(tile * W + W, V); ++v) any |= lbs_weights[v * J + j] != T(0);
                if (!any) continue;
                for (int l = 0; l < W; ++l) weights[used * W + l] = tile * W + l < V ? lbs_weights[(tile * W + l) * J + j] : T(0);
                ids[1 + used++] = static_cast<std::int32_t>(j);
            }
            ids[0] = used;
            for (index_t slot = used; slot < J; ++slot) {
                for (int l = 0; l < W; ++l) weights[slot * W + l] = T(0);
                ids[1 + slot] = 0;
            }
        }
        list_joint_tiles(lay, index, t0, t1, index + lay.joint_tiles(block));
    });
}

// A block's directions of some features, and which these are: the betas' or the pose's.
template <class T>
struct Directions {
    index_t first;  // of the features, counted over all of an element's
    index_t count;
    const std::int32_t* places;
    const T* values;
    bool packed;

    index_t tile_pitch() const { return count * 3 * lanes<T>; }
};

// One thread's way to a model's directions, block by block. Those that aren't packed are read into memory of its own.
template <class T>
class DirectionsReader {
  public:
    DirectionsReader(const LbsModel<T>& m, T* values, std::int32_t* places)
        : model_(m), shape_(m.V, m.K), pose_(m.V, 9 * (m.J - 1)), values_(values), places_(places) {
        if (places_size(m) == 0) return;
        for (index_t k = 0; k < shape_.count; ++k) places_[k] = static_cast<std::int32_t>(k * max_group);
        for (index_t k = 0; k < pose_.count; ++k) places_[shape_.count + k] = static_cast<std::int32_t>(k * max_group);
    }
    // Of the memory that it works with.
    static index_t values_size(const LbsModel<T>& m) {
        return scratch_size(m.shape, DirectionsLayout<T>(m.V, m.K)) + scratch_size(m.pose, DirectionsLayout<T>(m.V, 9 * (m.J - 1)));
    }
    static index_t places_size(const LbsModel<T>& m) { return m.shape.index && m.pose.index ? 0 : m.K + 9 * (m.J - 1); }
    // The betas', then the pose's. Good until the next call.
    void read(index_t block, Directions<T> (&out)[2]) {
        out[0] = read(model_.shape, shape_, block, 0, values_);
        out[1] = read(model_.pose, pose_, block, model_.K, values_ + scratch_size(model_.shape, shape_));
    }

  private:
    static index_t scratch_size(const FeatureDirections<T>& d, const DirectionsLayout<T>& lay) { return d.index ? 0 : lay.block_size(); }
    Directions<T> read(const FeatureDirections<T>& d, const DirectionsLayout<T>& lay, index_t block, index_t first, T* memory) {
        if (d.index) {
            const std::int32_t* list = d.index + lay.places(block);
            return {first, list[0], list + 1, d.packed + lay.values(block), true};
        }
        for (index_t t = 0; t < lay.tiles_of(block); ++t)
            read_tile(d.source, block * lay.tiles_per_block + t, memory + t * lay.count * 3 * lanes<T>);
        return {first, lay.count, places_ + first, memory, false};
    }

    const LbsModel<T>& model_;
    DirectionsLayout<T> shape_, pose_;
    T* values_;
    std::int32_t* places_;
};

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

template <class T>
PoseInput<T> pose_input(const LbsModel<T>& m, const T* betas, const T* pose, const T* joint_template, bool axis_angle) {
    return {m.K, m.J, m.parents, m.joint_dirs, joint_template, betas, pose, axis_angle};
}

}  // namespace
}  // namespace ringnet
