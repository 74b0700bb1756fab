// Where things are in the private buffers (packed, index, state, workspace), and which kernel takes which sizes. Everything here is a
// function of sizes only: shapes can be inferred without a device, and a captured graph stays valid.
#pragma once

#include "../contour.h"
#include "../ops.h"

namespace ringnet::cuda {

constexpr index_t tile_vertices = 32;                // one vertex per lane of a warp
constexpr index_t tile_columns = 3 * tile_vertices;  // x of the tile's vertices, then y, then z
constexpr index_t feature_multiple = 16;             // rows of features end in zeros up to a multiple of this: no loop has a tail
constexpr index_t shared_bytes = 46 * 1024;          // every GPU gives a block 48 kB without asking; 2 for static arrays

RN_HOST_DEVICE constexpr index_t feature_count(index_t K, index_t J) { return K + 9 * (J - 1); }
RN_HOST_DEVICE constexpr index_t padded_features(index_t K, index_t J) { return round_up(feature_count(K, J), feature_multiple); }

// The constants of a model, cut into tiles of 32 vertices. `packed` holds, one after the other,
//   directions (tile, padded features, 3, 32), weights (tile, J, 32) and, for landmarks only, template (tile, 3, 32) and bary (tile, 32);
// `index` holds (tile, 1 + J): how many joints move any vertex of the tile, then which. Weights come in the same order.
template <class T>
struct TileModel {
    index_t K, J, F, Fp, tiles;
    const T *directions, *weights, *rest, *bary;
    const std::int32_t* joints;

    RN_HOST_DEVICE const T* tile_directions(index_t tile) const { return directions + tile * Fp * tile_columns; }
    RN_HOST_DEVICE const T* tile_weights(index_t tile) const { return weights + tile * J * tile_vertices; }
    RN_HOST_DEVICE const std::int32_t* tile_joints(index_t tile) const { return joints + tile * (1 + J); }
};

inline index_t packed_size(index_t tiles, index_t K, index_t J, bool landmarks) {
    return tiles * (padded_features(K, J) * tile_columns + J * tile_vertices + (landmarks ? tile_columns + tile_vertices : 0));
}
inline index_t index_size(index_t tiles, index_t J) { return tiles * (1 + J); }

template <class T>
TileModel<T> tile_model(index_t tiles, index_t K, index_t J, const T* packed, const std::int32_t* index) {
    TileModel<T> m{K, J, feature_count(K, J), padded_features(K, J), tiles, packed, nullptr, nullptr, nullptr, index};
    m.weights = m.directions + tiles * m.Fp * tile_columns;
    m.rest = m.weights + tiles * J * tile_vertices;  // landmarks only
    m.bary = m.rest + tiles * tile_columns;          // landmarks only
    return m;
}

// Landmarks as tiles: ten to a tile, a lane for each corner of their triangles (two lanes idle). An element's tiles are its row of the
// contour table, then the static landmarks; the packed tiles are all rows of the contour table, then the static landmarks.
constexpr index_t tile_landmarks = 10;
struct LandmarkTiles {
    index_t contour, fixed;  // tiles of one contour row; tiles of the static landmarks
    RN_HOST_DEVICE index_t per_element() const { return contour + fixed; }
    RN_HOST_DEVICE index_t packed() const { return contour_table_rows * contour + fixed; }
};
RN_HOST_DEVICE constexpr LandmarkTiles landmark_tiles(index_t L, index_t C) {
    return {ceil_div(C, tile_landmarks), ceil_div(L, tile_landmarks)};
}

// What the forward call leaves for the backward call: features (B, Fp); transforms (B, J, 12), their rows padded, with the element's
// row of the contour table after them; and, where kept, the blended vertices (B, tiles, 3, 32) before skinning. Nothing else: torch
// sees the state as an output, so every element is written, padding with zeros.
template <class T>
struct State {
    T *features, *transforms, *blended;
};

RN_HOST_DEVICE constexpr index_t transform_pitch(index_t J) { return round_up(12 * J + 1, 16); }

// Element i < transform_pitch(J) of an element's transforms and contour row.
template <class T>
RN_HOST_DEVICE T transform_value(const T* transforms, index_t J, index_t row, index_t i) {
    return i < 12 * J ? transforms[i] : i == 12 * J ? static_cast<T>(row) : T(0);
}

inline index_t state_size(index_t tiles, index_t K, index_t J, bool keep) {
    return padded_features(K, J) + transform_pitch(J) + (keep ? tiles * tile_columns : 0);
}

template <class T>
State<T> state_of(T* state, index_t B, index_t K, index_t J, bool keep) {
    State<T> s;
    s.features = state;
    s.transforms = s.features + B * padded_features(K, J);
    s.blended = keep ? s.transforms + B * transform_pitch(J) : nullptr;
    return s;
}

// ---- Which kernel: the one place --------------------------------------------------------------------------------

// How many blocks of how many threads: of several ways to cut the work the one that takes the least time, in waves of blocks that run at once
// times the work of a block. Sizes must not depend on the device at hand, so one is assumed: an H100, 132 multiprocessors with 65,536 registers
// in four parts. What kernels take of these, their launch bounds say.
constexpr int assumed_multiprocessors = 132, assumed_registers = 64 * 1024;
constexpr int mesh_backward_registers = 128, small_backward_registers = 96, small_forward_registers = 64;  // a thread, in float32
constexpr index_t blocks_at_once(int warps, int registers) {
    const int resident_warps = 4 * (assumed_registers / 4 / (32 * registers));
    return assumed_multiprocessors * (resident_warps / warps);
}
constexpr index_t launch_time(index_t blocks, index_t at_once, index_t work) { return ceil_div(blocks, at_once) * work; }

// Forward, small batch: a block per tile of vertices and a few batch elements; its threads split the features. The pose is
// computed by every block again where that fits shared memory: one launch.
constexpr int small_threads = 384;  // at most; forward, of those that share the features: (16-byte columns of a tile) x (slots)
template <class T>
constexpr int small_slots(int workers) {
    return workers / static_cast<int>(tile_columns * sizeof(T) / 16);
}

template <class T>
index_t small_forward_bytes(index_t K, index_t J, index_t elements, bool fused, int workers) {
    return static_cast<index_t>(sizeof(T)) * elements *
           (padded_features(K, J) + (small_slots<T>(workers) + 1) * tile_columns + (fused ? 36 * J : 0));
}

// How many batch elements the small-batch kernels take per block where there are that many. Double is for checking gradients: fewer
// variants of its kernels are worth the compiler's time.
template <class T>
constexpr int small_elements = sizeof(T) == 4 ? 4 : 1;

struct ForwardPlan {
    bool small;    // the small-batch kernel, else the one tiled over the batch
    bool fused;    // small only: the pose in the same launch
    int elements;  // small: batch elements per block; else per thread, a quarter of a block's
    int workers;   // small: threads that share the features
};

template <class T>
ForwardPlan small_forward_plan(index_t B, index_t tiles, index_t K, index_t J, bool fused) {
    fused = fused && small_forward_bytes<T>(K, J, 1, true, small_threads) <= shared_bytes;
    const bool several = B > 1 && small_forward_bytes<T>(K, J, small_elements<T>, fused, small_threads) <= shared_bytes;
    const int elements = several ? small_elements<T> : 1;
    ForwardPlan best{true, fused, elements, small_threads};
    index_t least = 0;
    for (const int warps : {12, 9, 6}) {
        constexpr index_t fixed_work = 4;  // the pose and what follows the product, in features of a slot
        const index_t at_once = blocks_at_once(warps + (fused ? elements : 0), small_forward_registers);
        const index_t time =
            launch_time(tiles * ceil_div(B, elements), at_once, fixed_work + ceil_div(feature_count(K, J), small_slots<T>(32 * warps)));
        if (least == 0 || time < least) least = time, best.workers = 32 * warps;
    }
    return best;
}

template <class T>
ForwardPlan mesh_forward_plan(index_t B, index_t V, index_t K, index_t J) {
    if (B <= 8) return small_forward_plan<T>(B, ceil_div(V, tile_vertices), K, J, true);
    return {false, false, sizeof(T) == 8 ? 8 : B <= 16 ? 4 : B <= 32 ? 8 : 16, 0};
}

// Whether blocks of 64 elements multiply on tensor cores, forward and backward, which takes three products there for one in float32. Counted,
// not measured (docs/cuda_kernels.md): 2.7 times the rate of float32 at sm_80, about twice at sm_90; sm_100 if its rate is no less than
// sm_80's. At sm_86, 89 and 120 three products take longer than one in float32; sm_75 has none. Buffers don't depend on it.
constexpr bool tensor_cores_pay(int compute_capability) {
    return compute_capability == 80 || compute_capability == 90 || compute_capability == 100;
}

template <class T>
ForwardPlan landmarks_forward_plan(index_t B, index_t tiles, index_t K, index_t J) {
    return small_forward_plan<T>(B, tiles, K, J, B <= 64);
}

// Backward: partial sums of d(features) and d(transforms) over `chunks` groups of tiles.
struct BackwardPlan {
    bool small;
    int elements;    // small: batch elements per block; else per thread, an eighth of a block's
    index_t groups;  // of batch elements
    index_t chunks;  // of tiles
    index_t tiles_per_chunk;
    index_t slices;      // of features; a block takes one after the other
    index_t kept_tiles;  // of the un-skinned gradient, for the slices after the first
    int threads;         // of a block
};

constexpr int small_backward_threads = 320;  // at most
template <class T>
BackwardPlan small_backward_plan(index_t B, index_t tiles, index_t K, index_t J) {
    const int elements = B > 1 ? small_elements<T> : 1;
    BackwardPlan best{true, elements, ceil_div(B, elements), tiles, 1, 1, 0, small_backward_threads};
    index_t least = 0;
    for (const int warps : {10, 8, 6, 5, 4}) {
        constexpr index_t fixed_work = 2;  // un-skinning, in rounds of four features a warp
        const index_t time = launch_time(tiles * best.groups, blocks_at_once(warps, small_backward_registers),
                                         fixed_work + ceil_div(feature_count(K, J), 4 * warps));
        if (least == 0 || time < least) least = time, best.threads = 32 * warps;
    }
    return best;
}

// Double runs with half the batch elements and a third of the features per thread, to fit registers and shared memory.
template <class T>
constexpr int backward_features = sizeof(T) == 4 ? 6 : 2;

constexpr int mesh_backward_threads = 256;
inline index_t mesh_backward_tiles_per_chunk(index_t tiles, index_t groups) {
    constexpr index_t at_once = blocks_at_once(mesh_backward_threads / 32, mesh_backward_registers);
    constexpr index_t fixed_work = 1;  // partial sums, written and read: as many bytes as a tile of directions and gradients
    const index_t fewest_waves = ceil_div(groups, at_once);
    index_t best = tiles, least = launch_time(groups, at_once, fixed_work + tiles);
    for (index_t waves = fewest_waves; waves < fewest_waves + 4; ++waves) {
        const index_t per_chunk = ceil_div(tiles, min_of(tiles, waves * at_once / groups));
        const index_t time = launch_time(groups * ceil_div(tiles, per_chunk), at_once, fixed_work + per_chunk);
        if (time < least) least = time, best = per_chunk;
    }
    return best;
}

template <class T>
BackwardPlan mesh_backward_plan(index_t B, index_t V, index_t K, index_t J) {
    const index_t tiles = ceil_div(V, tile_vertices);
    if (B <= 16) return small_backward_plan<T>(B, tiles, K, J);
    const int elements = B <= 32 || sizeof(T) == 8 ? 4 : 8;
    const index_t groups = ceil_div(B, 8 * elements), per_chunk = mesh_backward_tiles_per_chunk(max_of(1, tiles), groups);
    const index_t slices = max_of(1, ceil_div(padded_features(K, J), 32 * backward_features<T>));
    return {false, elements, groups, ceil_div(tiles, per_chunk), per_chunk, slices, slices > 1 ? tiles : 0, mesh_backward_threads};
}

// The pose's backward step: where there are many chunks (small batches) several groups of threads sum a part of them each.
constexpr int pose_backward_threads = 128;  // of a part
constexpr int pose_backward_parts_most = 4;
inline index_t pose_backward_values(index_t K, index_t J, int parts) { return 48 * J + parts * (feature_count(K, J) + 12 * J); }
template <class T>
int pose_backward_parts(index_t K, index_t J, index_t chunks) {
    const bool fits = pose_backward_values(K, J, pose_backward_parts_most) * static_cast<index_t>(sizeof(T)) <= shared_bytes;
    return chunks >= 32 && fits ? pose_backward_parts_most : 1;
}

// What a block of mesh_backward may take of shared memory for its sums of d(transforms): as much as leaves room for two on a multiprocessor of
// sm_80, 90 and 100; the others have room for one anyway. All there is on sm_75.
constexpr index_t mesh_backward_shared_bytes(int compute_capability) { return (compute_capability >= 80 ? 80 : 64) * 1024; }

// The workspace of a backward call: partial d(features) (chunk, B, Fp), partial d(transforms) (chunk, B, J, 12), where there are several slices
// d(blended) (B, tiles, 3, 32) and, where the template is shared, partial d(template) (group, tiles, 3, 32).
template <class T>
struct Workspace {
    T *features, *transforms, *blended, *rest;
};

inline index_t workspace_size(const BackwardPlan& plan, index_t B, index_t K, index_t J, index_t rest_tiles) {
    return B * (plan.chunks * (padded_features(K, J) + 12 * J) + plan.kept_tiles * tile_columns) + plan.groups * rest_tiles * tile_columns;
}

template <class T>
Workspace<T> workspace_of(T* workspace, const BackwardPlan& plan, index_t B, index_t K, index_t J) {
    Workspace<T> w;
    w.features = workspace;
    w.transforms = w.features + plan.chunks * B * padded_features(K, J);
    w.blended = w.transforms + plan.chunks * B * 12 * J;
    w.rest = w.blended + B * plan.kept_tiles * tile_columns;
    return w;
}

}  // namespace ringnet::cuda
