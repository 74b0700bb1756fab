// A model as the CPU kernels of the landmarks read it, and where things are in their private buffers.
//
// A corner is one vertex of one landmark's triangle; corner e belongs to landmark e / 3. Corners are skinned in tiles of one
// vector as in lbs_forward.h, with the barycentric coordinate multiplied into the skinning weights, so that a landmark is the
// plain sum of its three corners. Blending reads the directions of a vertex as three rows of features: any row of the
// contour table can be served from one small table of vertices that stays in L2.
//
// Packed constants, in this order:
//   directions  [vertex][xyz][feature, padded with zeros to whole vectors]   each touched vertex once
//   template    [vertex][xyz]
//   weights     [static tile][slot][lane], then [contour row][tile][slot][lane]   skinning weight times barycentric coordinate
// index: vertex of each corner, [static corner], then [contour row][corner], padded to whole tiles;
//        joints of each tile, [tile][1 + J], in the order of the weights.
// A row of state: features, transforms (12 J), contour row, and if kept the blended corners [tile][xyz][lane], static first.
#pragma once

#include "../contour.h"
#include "lbs_model.h"

namespace ringnet {
namespace {

template <class T>
struct LandmarkLayout {
    static constexpr int W = lanes<T>;

    LandmarkLayout(index_t K, index_t J_, index_t L_, index_t C_)
        : J(J_), L(L_), C(C_), F(K + 9 * (J_ - 1)), feature_vectors(ceil_div(F, W)), static_tiles(ceil_div(3 * L_, W)),
          contour_tiles(ceil_div(3 * C_, W)), transforms(round_up(feature_vectors * W, 16)), row(transforms + round_up(12 * J, 16)),
          blended(row + 16) {}

    index_t J, L, C, F, feature_vectors, static_tiles, contour_tiles;
    index_t transforms, row, blended;  // offsets in a row of state; features are at 0

    index_t direction_row() const { return feature_vectors * W; }
    index_t max_vertices() const { return 3 * L + contour_table_rows * 3 * C; }
    index_t tiles() const { return static_tiles + contour_table_rows * contour_tiles; }  // in the tables
    index_t chosen_tiles() const { return static_tiles + contour_tiles; }                // of one batch element
    index_t template_() const { return max_vertices() * 3 * direction_row(); }
    index_t weights() const { return round_up(template_() + 3 * max_vertices(), 16); }
    index_t packed_size() const { return weights() + tiles() * J * W; }
    index_t index_size() const { return tiles() * (W + 1 + J); }
    index_t state_size(bool keep) const { return blended + (keep ? round_up(chosen_tiles() * 3 * W, 16) : 0); }

    // Of the tables' tiles, the t-th that is chosen when the contour row is `r`.
    index_t chosen(index_t t, index_t r) const { return t < static_tiles ? t : t + r * contour_tiles; }
};

template <class T>
void pack_landmarks(const LandmarkConstants<T>& c, T* packed, std::int32_t* index, int) {
    constexpr int W = lanes<T>;
    const index_t K = c.lbs.K, J = c.lbs.J, V = c.lbs.V;
    const LandmarkLayout<T> lay(K, J, c.L, c.C);
    std::int32_t* joints = index + lay.tiles() * W;

    // Vertices are numbered in the order of first use.
    Scratch<std::int32_t> numbers(V);
    std::int32_t* number = numbers.data();
    for (index_t v = 0; v < V; ++v) number[v] = -1;
    std::int32_t used = 0;
    const auto vertex = [&](index_t v) {
        if (number[v] < 0) {
            T* rows = packed + used * 3 * lay.direction_row();
            for (int xyz = 0; xyz < 3; ++xyz) {
                for (index_t k = 0; k < lay.direction_row(); ++k)
                    *rows++ = k < K       ? c.lbs.shapedirs[(3 * v + xyz) * K + k]
                              : k < lay.F ? c.lbs.posedirs[(k - K) * 3 * V + 3 * v + xyz]
                                          : T(0);
                packed[lay.template_() + 3 * used + xyz] = c.v_template[3 * v + xyz];
            }
            number[v] = used++;
        }
        return number[v];
    };
    const auto pack_tiles = [&](index_t first_tile, index_t tiles, index_t corners, const std::int64_t* vertices, const T* bary) {
        for (index_t t = 0; t < tiles; ++t) {
            const index_t tile = first_tile + t;
            for (int l = 0; l < W; ++l) index[tile * W + l] = t * W + l < corners ? vertex(vertices[t * W + l]) : std::int32_t(0);
            T* weights = packed + lay.weights() + tile * J * W;
            std::int32_t* ids = joints + tile * (1 + J);
            std::int32_t count = 0;
            for (index_t j = 0; j < J; ++j) {
                bool any = false;
                for (int l = 0; l < W; ++l) {
                    const index_t e = t * W + l;
                    const T w = e < corners ? bary[e] * c.lbs.lbs_weights[vertices[e] * J + j] : T(0);
                    weights[count * W + l] = w;
                    any |= w != T(0);
                }
                if (any) ids[1 + count++] = static_cast<std::int32_t>(j);
            }
            ids[0] = count;
        }
    };
    pack_tiles(0, lay.static_tiles, 3 * c.L, c.static_vertices, c.static_bary);
    for (index_t r = 0; r < contour_table_rows; ++r)
        pack_tiles(lay.static_tiles + r * lay.contour_tiles, lay.contour_tiles, 3 * c.C, c.contour_vertices + r * 3 * c.C,
                   c.contour_bary + r * 3 * c.C);
}

// What a call works with, in short names.
template <class T>
struct LandmarkTables {
    LandmarkLayout<T> lay;
    const T* directions;
    const T* v_template;
    const T* weights;
    const std::int32_t* vertices;
    const std::int32_t* joints;

    explicit LandmarkTables(const LandmarkModel<T>& m)
        : lay(m.K, m.J, m.L, m.C), directions(m.packed), v_template(m.packed + lay.template_()), weights(m.packed + lay.weights()),
          vertices(m.index), joints(m.index + lay.tiles() * lanes<T>) {}

    RN_HOST_DEVICE TileSkin<T> skin(index_t tile) const {
        const std::int32_t* ids = joints + tile * (1 + lay.J);
        return {ids[0], ids + 1, weights + tile * lay.J * lanes<T>};
    }
};

}  // namespace
}  // namespace ringnet
