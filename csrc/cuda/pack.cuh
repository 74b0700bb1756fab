// Packing of a model's constants into tiles, once per model. Source(tile, lane) is the vertex of a lane, or -1 for an idle lane.
#pragma once

#include "device.cuh"
#include "layout.h"

namespace ringnet::cuda {

constexpr int pack_threads = 256;

// Block per tile: directions, then (first warp) weights and joints.
template <class T, class Source>
__global__ void __launch_bounds__(pack_threads)
    pack_tiles_kernel(LbsConstants<T> c, Source source, TileModel<T> m, T* packed, std::int32_t* index) {
    const index_t tile = blockIdx.x;
    const int t = static_cast<int>(threadIdx.x), lane = t % lanes;
    const index_t v = source(tile, lane);
    T* directions = packed + tile * m.Fp * tile_columns;
    for (index_t i = t; i < m.Fp * tile_columns; i += pack_threads) {  // i % 32 == lane: pack_threads is a multiple of 32
        const index_t k = i / tile_columns, component = i % tile_columns / tile_vertices;
        T value = T(0);
        if (v >= 0 && k < m.K) value = c.shapedirs[(3 * v + component) * m.K + k];
        if (v >= 0 && k >= m.K && k < m.F) value = c.posedirs[(k - m.K) * 3 * c.V + 3 * v + component];
        directions[i] = value;
    }
    if (t >= lanes) return;
    T* weights = packed + (m.weights - m.directions) + tile * m.J * tile_vertices;
    std::int32_t* joints = index + tile * (1 + m.J);
    int count = 0;
    for (index_t j = 0; j < m.J; ++j) {
        const T w = v >= 0 ? c.lbs_weights[v * m.J + j] : T(0);
        if (__any_sync(0xffffffffu, w != T(0))) {
            weights[count * lanes + lane] = w;
            if (lane == 0) joints[1 + count] = static_cast<std::int32_t>(j);
            ++count;
        }
    }
    if (lane == 0) joints[0] = count;
    for (index_t n = count; n < m.J; ++n) {  // not read; defined all the same
        weights[n * lanes + lane] = T(0);
        if (lane == 0) joints[1 + n] = 0;
    }
}

}  // namespace ringnet::cuda
