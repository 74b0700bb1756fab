// What the small-batch kernels work on, a mesh or a set of landmarks: which packed tile a slot of an element is, where its rest
// positions come from, where its results go and its gradients come from.
#pragma once

#include "skin.cuh"

namespace ringnet::cuda {

template <class T>
struct Mesh {
    index_t V;
    const T* v_template;  // forward
    index_t v_template_stride;
    T* vertices;
    const T* grad;  // backward
    index_t grad_stride[3];
    T* grad_v_template;        // (B, V, 3) or null
    bool sum_grad_v_template;  // into the workspace

    static constexpr bool has_contour = false;
    __host__ __device__ index_t slots() const { return ceil_div(V, tile_vertices); }
    __device__ bool per_element(index_t) const { return false; }
    __device__ index_t tile(index_t slot, index_t) const { return slot; }

    __device__ T rest(const TileModel<T>&, index_t b, index_t tile, int column) const {
        const index_t v = tile * tile_vertices + column % lanes;
        return v < V ? v_template[b * v_template_stride + 3 * v + column / lanes] : T(0);
    }
    __device__ void store(const TileModel<T>&, index_t b, index_t slot, index_t, int lane, const T (&value)[3], T* staged) const {
        store_vertices(vertices, V, b, slot, lane, value, staged);
    }
    __device__ void load_gradient(const TileModel<T>&, index_t b, index_t slot, index_t, int lane, T g[3]) const {
        const index_t v = slot * tile_vertices + lane;
        for (int c = 0; c < 3; ++c) g[c] = v < V ? grad[b * grad_stride[0] + v * grad_stride[1] + c * grad_stride[2]] : T(0);
    }
    __device__ void store_rest_gradient(index_t b, index_t slot, int lane, const T (&value)[3], T* staged) const {
        if (grad_v_template && !sum_grad_v_template) store_vertices(grad_v_template, V, b, slot, lane, value, staged);
    }
    __device__ bool sums_rest_gradient() const { return sum_grad_v_template; }
};

template <class T>
struct Landmarks {
    index_t L, C;
    T* landmarks;   // forward: (B, C + L, 3)
    const T* grad;  // backward
    index_t grad_stride[3];

    static constexpr bool has_contour = true;
    __host__ __device__ LandmarkTiles tiles() const { return landmark_tiles(L, C); }
    __host__ __device__ index_t slots() const { return tiles().per_element(); }
    __device__ bool per_element(index_t slot) const { return slot < tiles().contour; }
    __device__ index_t tile(index_t slot, index_t row) const {
        const index_t contour = tiles().contour;
        return slot < contour ? row * contour + slot : (contour_table_rows - 1) * contour + slot;
    }
    // The landmarks of a slot: `count` of them, the first being number `first` of the element.
    __device__ void range(index_t slot, index_t& first, index_t& count) const {
        const index_t contour = tiles().contour;
        first = slot < contour ? slot * tile_landmarks : C + (slot - contour) * tile_landmarks;
        count = min_of(tile_landmarks, (slot < contour ? C : C + L) - first);
    }

    __device__ T rest(const TileModel<T>& m, index_t, index_t tile, int column) const { return m.rest[tile * tile_columns + column]; }
    __device__ void store(const TileModel<T>& m, index_t b, index_t slot, index_t tile, int lane, const T (&value)[3], T* staged) const {
        const T weight = m.bary[tile * tile_vertices + lane];
        for (int c = 0; c < 3; ++c) staged[3 * lane + c] = weight * value[c];  // nobody has read there since the block's last barrier
        __syncwarp();
        index_t first, count;
        range(slot, first, count);
        if (lane < 3 * count) {  // lane = 3 landmark + component; a landmark's corners are 9 values
            const T* corner = staged + 9 * (lane / 3) + lane % 3;
            landmarks[(b * (C + L) + first) * 3 + lane] = corner[0] + corner[3] + corner[6];
        }
    }
    __device__ void load_gradient(const TileModel<T>& m, index_t b, index_t slot, index_t tile, int lane, T g[3]) const {
        index_t first, count;
        range(slot, first, count);
        for (int c = 0; c < 3; ++c)
            g[c] = lane < 3 * count ? m.bary[tile * tile_vertices + lane] *
                                          grad[b * grad_stride[0] + (first + lane / 3) * grad_stride[1] + c * grad_stride[2]]
                                    : T(0);
    }
    __device__ void store_rest_gradient(index_t, index_t, int, const T (&)[3], T*) const {}
    __device__ bool sums_rest_gradient() const { return false; }
};

}  // namespace ringnet::cuda
