#include "../rotation.h"
#include "device.cuh"

namespace ringnet::cuda {
namespace {

constexpr int threads = 128;

// A thread per rotation. Results pass through shared memory and leave in full lines.
template <class T>
__global__ void __launch_bounds__(threads) rodrigues_forward_kernel(Rodrigues<T> p) {
    __shared__ T staged[9 * threads];
    const int t = static_cast<int>(threadIdx.x);
    const index_t first = static_cast<index_t>(blockIdx.x) * threads, n = first + t;
    if (n < p.N) rodrigues(p.rot_vecs + 3 * n, staged + 9 * t);
    __syncthreads();
    const int count = 9 * static_cast<int>(min_of(threads, p.N - first));
    for (int i = t; i < count; i += threads) p.matrices[9 * first + i] = staged[i];
}

template <class T>
__global__ void __launch_bounds__(threads) rodrigues_backward_kernel(Rodrigues<T> p) {
    __shared__ T staged[9 * threads];
    const int t = static_cast<int>(threadIdx.x);
    const index_t first = static_cast<index_t>(blockIdx.x) * threads, n = first + t;
    const int count = 9 * static_cast<int>(min_of(threads, p.N - first));
    for (int i = t; i < count; i += threads) staged[i] = p.grad_matrices[9 * first + i];
    __syncthreads();
    if (n < p.N) rodrigues_vjp(p.rot_vecs + 3 * n, staged + 9 * t, p.grad_rot_vecs + 3 * n);
}

}  // namespace

template <class T>
void rodrigues_forward(const Rodrigues<T>& p, stream_t stream) {
    launch("rodrigues_forward", rodrigues_forward_kernel<T>, ceil_div(p.N, threads), threads, 0, stream, p);
}

template <class T>
void rodrigues_backward(const Rodrigues<T>& p, stream_t stream) {
    launch("rodrigues_backward", rodrigues_backward_kernel<T>, ceil_div(p.N, threads), threads, 0, stream, p);
}

#define RN_INSTANTIATE(T)                                              \
    template void rodrigues_forward<T>(const Rodrigues<T>&, stream_t); \
    template void rodrigues_backward<T>(const Rodrigues<T>&, stream_t);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)
#undef RN_INSTANTIATE

}  // namespace ringnet::cuda
