// The mesh's kernels for large batches, multiplying in float32 and on tensor cores, timed in turns at FLAME's sizes. The rule that chooses
// between them (tensor_cores_pay in csrc/cuda/layout.h) was counted; this is how it is measured. Compiled and run by gpu_kernels.py;
// prints a line of JSON per batch size and direction.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "../csrc/cuda/mesh_backward.cuh"
#include "../csrc/cuda/mesh_forward_tensor.cuh"

using namespace ringnet;
using namespace ringnet::cuda;

namespace {

template <class T>
T* on_device(const std::vector<T>& values) {
    void* address = nullptr;
    check(cudaMalloc(&address, values.size() * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(address, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    return static_cast<T*>(address);
}

std::vector<float> random_values(index_t count, float scale) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(random);
    return values;
}

float microseconds(const std::function<void()>& call) {
    constexpr int calls = 20;
    cudaEvent_t start, end;
    check(cudaEventCreate(&start), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    check(cudaEventRecord(start), "cudaEventRecord");
    for (int i = 0; i < calls; ++i) call();
    check(cudaEventRecord(end), "cudaEventRecord");
    check(cudaEventSynchronize(end), "the kernel");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    cudaEventDestroy(start), cudaEventDestroy(end);
    return 1000 * milliseconds / calls;
}

float median(std::vector<float> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
}

}  // namespace

int main() {
    constexpr index_t V = 5023, K = 150, J = 5, tiles = ceil_div(V, tile_vertices), most = 4096, compared = 64 * K;
    const int capability = compute_capability("mesh_products");
    std::vector<std::int32_t> index(static_cast<std::size_t>(index_size(tiles, J)));
    for (index_t tile = 0; tile < tiles; ++tile) {  // two joints a tile
        index[tile * (1 + J)] = 2;
        index[tile * (1 + J) + 2] = 1;
    }
    const float* packed = on_device(random_values(packed_size(tiles, K, J, false), 0.01f));
    const TileModel<float> model = tile_model(tiles, K, J, packed, static_cast<const std::int32_t*>(on_device(index)));
    const float* v_template = on_device(random_values(3 * V, 0.1f));
    float* state = on_device(random_values(most * state_size(tiles, K, J, true), 1));
    float* vertices = on_device(random_values(most * V * 3, 1));  // forward: written; backward: the gradient
    index_t workspace_values = 0;
    const std::vector<index_t> batches = {64, 256, 1024, 1088, 3000, most};
    for (const index_t B : batches)
        workspace_values = std::max(workspace_values, workspace_size(mesh_backward_plan<float>(B, V, K, J), B, K, J, 0));
    float* workspace = on_device(std::vector<float>(static_cast<std::size_t>(workspace_values)));

    for (const index_t B : batches) {
        const State<float> of_batch = state_of(state, B, K, J, true);
        const BackwardPlan plan = mesh_backward_plan<float>(B, V, K, J);
        const MeshForward<float> forward{model, of_batch, B, V, v_template, 0, false, vertices};
        const MeshBackward<float> backward{model,   of_batch, workspace_of(workspace, plan, B, K, J), plan, B, V, vertices, {3 * V, 3, 1},
                                           nullptr, false};
        for (const bool is_forward : {true, false}) {
            const auto run = [&](bool tensor_cores) {
                if (is_forward)
                    launch_mesh_forward("mesh_products", forward, 16, tensor_cores, nullptr);
                else
                    launch_mesh_backward("mesh_products", backward, tensor_cores, nullptr);
            };
            std::vector<float> times[2], results[2];
            for (int round = 0; round < 11; ++round) {
                for (const bool tensor_cores : {false, true}) {
                    if (tensor_cores && capability < 80) continue;
                    times[tensor_cores].push_back(microseconds([&] { run(tensor_cores); }));
                    results[tensor_cores].resize(compared);
                    check(cudaMemcpy(results[tensor_cores].data(), is_forward ? vertices : workspace, compared * sizeof(float),
                                     cudaMemcpyDeviceToHost),
                          "cudaMemcpy");
                }
            }
            std::printf("{\"direction\": \"%s\", \"B\": %d, \"float32_us\": %.2f", is_forward ? "forward" : "backward", static_cast<int>(B),
                        median(times[0]));
            if (capability >= 80) {
                double difference = 0;
                for (std::size_t i = 0; i < results[0].size(); ++i)
                    difference = std::max(difference, std::fabs(double(results[0][i]) - results[1][i]));
                std::printf(", \"tensor_cores_us\": %.2f, \"largest_difference\": %.2g", median(times[1]), difference);
            }
            std::printf(", \"chosen\": \"%s\"}\n", tensor_cores_pay(capability) ? "tensor_cores" : "float32");
        }
    }
}
