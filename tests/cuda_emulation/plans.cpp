// What csrc/cuda/layout.h's rule decides for the mesh, for the test that counts waves.
#include "cuda/mesh_backward.cuh"
#include "cuda/small.cuh"
#include "emulation.h"

using namespace ringnet;
using namespace ringnet::cuda;

void emulation_plan(int backward, index_t B, index_t V, index_t K, index_t J, index_t* values) {
    const index_t tiles = ceil_div(V, tile_vertices);
    const auto put = [&](index_t small, index_t blocks, index_t threads, index_t shared, index_t tiles_per_block, index_t tiles_of_all) {
        for (const index_t value : {small, blocks, threads, shared, tiles_per_block, tiles_of_all}) *values++ = value;
    };
    if (!backward) {
        const ForwardPlan plan = mesh_forward_plan<float>(B, V, K, J);
        const index_t blocks = tiles * ceil_div(B, plan.elements), threads = plan.workers + (plan.fused ? lanes * plan.elements : 0);
        put(plan.small, blocks, threads, small_forward_bytes<float>(K, J, plan.elements, plan.fused, plan.workers), 1, blocks);
    } else {
        const BackwardPlan plan = mesh_backward_plan<float>(B, V, K, J);
        const index_t shared =
            plan.small ? 4 * plan.elements * (tile_columns + transform_staging) : mesh_backward_bytes<float, TensorProduct>(12 * J);
        put(plan.small, plan.groups * plan.chunks, plan.threads, shared, plan.tiles_per_chunk, plan.groups * tiles);
    }
}
