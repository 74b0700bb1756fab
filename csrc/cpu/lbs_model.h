// A model as the CPU kernels of linear blend skinning read it, and where things are in their private buffers.
//
// Vertices come in tiles of one vector (W lanes), tiles in blocks. Packed constants, in this order:
//   directions    [block][tile][feature][xyz][lane]    forward and backward; only features that move any vertex of the block
//   weights       [tile][slot][lane]                   skinning weights of the joints that touch the tile, most J slots
// index: [tile][1 + J]: number of joints that touch the tile, then their ids; [block][1 + F]: number of features that move the
// block, then their places in a whole group's rows, id times max_group;
// [block][joint_tiles_size]: number of joints that touch the block and, joint by joint, id, number of tiles, and for each of them
// its number in the block and the place of its weights.
// state: features [group][feature][element], [b]: transforms (12 J) and the row of the contour table, and if kept the blended vertices [b][tile][xyz][lane], padded to
// 64 bytes an element.
#pragma once

#include "../ops.h"
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
        : V(V_), J(J_), F(K + 9 * (J_ - 1)), tiles(ceil_div(V_, W)),
          feature_pitch(round_up(F, 16)), transform_pitch(round_up(12 * J + 1, 16)), blended_pitch(round_up(tiles * 3 * W, 16)) {}

    index_t V, J, F, tiles;
    index_t feature_pitch, transform_pitch, blended_pitch;  // elements per batch element in each part of state

    // A block has room for all features; where it has fewer, the rest stays unused.
    index_t directions(index_t block) const { return block * tiles_per_block * F * 3 * W; }
    index_t weights() const { return tiles * F * 3 * W; }
    index_t packed_size() const { return weights() + tiles * J * W; }
    index_t joints(index_t tile) const { return tile * (1 + J); }
    index_t block_features(index_t block) const { return tiles * (1 + J) + block * (1 + F); }
    index_t joint_tiles_size() const { return 1 + 2 * J * (1 + tiles_per_block); }
    index_t joint_tiles(index_t block) const { return block_features(blocks()) + block * joint_tiles_size(); }
    index_t index_size() const { return joint_tiles(blocks()); }
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

// The features that move any of the vertices [v0, v1), as a list: their number, then their places. Directions that are zero
// throughout are common: a joint's pose correctives and many an expression are local.
template <class T>
void list_features(const LbsConstants<T>& c, index_t v0, index_t v1, std::int32_t* list) {
    const index_t F = c.K + 9 * (c.J - 1);
    std::int32_t* ids = list + 1;
    for (index_t k = 0; k < F; ++k) ids[k] = 0;
    for (index_t row = 3 * v0; row < 3 * v1; ++row)
        for (index_t k = 0; k < c.K; ++k) ids[k] |= c.shapedirs[row * c.K + k] != T(0);
    for (index_t k = c.K; k < F; ++k)
        for (index_t row = 3 * v0; row < 3 * v1; ++row) ids[k] |= c.posedirs[(k - c.K) * 3 * c.V + row] != T(0);
    std::int32_t used = 0;
    for (index_t k = 0; k < F; ++k)
        if (ids[k]) ids[used++] = static_cast<std::int32_t>(k * max_group);
    list[0] = used;
    for (index_t k = used; k < F; ++k) ids[k] = 0;
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
        if (entry[1] == 0) next = entry;
        else ++list[0];
    }
    for (std::int32_t* end = list + lay.joint_tiles_size(); next < end; ++next) *next = 0;
}

template <class T>
void pack_lbs(const LbsConstants<T>& c, T* packed, std::int32_t* index, int threads) {
    using Layout = LbsLayout<T>;
    constexpr int W = lanes<T>;
    const Layout lay(c.V, c.K, c.J);
    const auto direction = [&](index_t v, int xyz, index_t k) -> T {
        if (v >= c.V) return T(0);
        return k < c.K ? c.shapedirs[(3 * v + xyz) * c.K + k] : c.posedirs[(k - c.K) * 3 * c.V + 3 * v + xyz];
    };
    Team(threads, double(lay.packed_size())).each(lay.blocks(), [&](index_t block) {
        const index_t t0 = block * Layout::tiles_per_block, t1 = min_of(t0 + Layout::tiles_per_block, lay.tiles);
        std::int32_t* features = index + lay.block_features(block);
        list_features(c, t0 * W, min_of(t1 * W, c.V), features);
        T* d = packed + lay.directions(block);
        for (index_t tile = t0; tile < t1; ++tile) {
            for (std::int32_t k = 0; k < features[0]; ++k)
                for (int xyz = 0; xyz < 3; ++xyz)
                    for (int l = 0; l < W; ++l) *d++ = direction(tile * W + l, xyz, features[1 + k] / max_group);

            T* weights = packed + lay.weights() + tile * c.J * W;
            std::int32_t* ids = index + lay.joints(tile);
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
        list_joint_tiles(lay, index, t0, t1, index + lay.joint_tiles(block));
    });
}

// A block's directions and the features that they belong to.
template <class T>
struct Directions {
    index_t count;
    const std::int32_t* places;
    const T* values;

    Directions(const LbsModel<T>& m, const LbsLayout<T>& lay, index_t block)
        : count(m.index[lay.block_features(block)]), places(m.index + lay.block_features(block) + 1),
          values(m.packed + lay.directions(block)) {}
    index_t tile_pitch() const { return count * 3 * lanes<T>; }
};

}  // namespace
}  // namespace ringnet
