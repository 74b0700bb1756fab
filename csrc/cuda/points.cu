// Points on a mesh by face and barycentric coordinate, and the gradient of the vertices.
#include "device.cuh"

namespace ringnet::cuda {
namespace {

constexpr int forward_threads = 256;
constexpr int backward_threads = 512;
constexpr int corner_chunk = 1024;  // corners of landmarks that are in shared memory at a time

// The vertices of a landmark's face; false where an index lies outside faces or vertices.
template <class T>
__device__ bool corners_of(const VerticesToLandmarks<T>& p, index_t b, index_t l, index_t vertex[3]) {
    const index_t f = p.lmk_faces_idx[b * p.lmk_faces_idx_stride + l];
    if (f < 0 || f >= p.F) return false;
    bool inside = true;
    for (int i = 0; i < 3; ++i) {
        vertex[i] = p.faces[3 * f + i];
        inside = inside && vertex[i] >= 0 && vertex[i] < p.V;
    }
    return inside;
}

// A thread per landmark.
template <class T>
__global__ void __launch_bounds__(forward_threads) points_forward_kernel(VerticesToLandmarks<T> p) {
    const index_t n = static_cast<index_t>(blockIdx.x) * forward_threads + threadIdx.x;
    if (n >= p.B * p.L) return;
    const index_t b = n / p.L, l = n % p.L;
    index_t vertex[3];
    T* out = p.landmarks + 3 * n;
    if (!corners_of(p, b, l, vertex)) {
        for (int c = 0; c < 3; ++c) out[c] = static_cast<T>(nan(""));
        return;
    }
    const T* vertices = p.vertices + b * p.vertices_stride;
    const T* bary = p.lmk_bary_coords + b * p.lmk_bary_coords_stride + 3 * l;
    for (int c = 0; c < 3; ++c) {
        T sum = T(0);
        for (int i = 0; i < 3; ++i) sum += bary[i] * vertices[3 * vertex[i] + c];
        out[c] = sum;
    }
}

// A block per batch element. Several corners may share a vertex: the thread of the first of them adds up all, in order, so that no two
// threads write the same address and the result is the same every time.
template <class T>
__global__ void __launch_bounds__(backward_threads) points_backward_kernel(VerticesToLandmarks<T> p) {
    __shared__ index_t shared_vertex[corner_chunk];
    const int t = static_cast<int>(threadIdx.x);
    const index_t b = blockIdx.x, count = 3 * p.L;
    T* grad = p.grad_vertices + b * p.V * 3;
    for (index_t i = t; i < 3 * p.V; i += backward_threads) grad[i] = T(0);

    const auto vertex_of = [&](index_t corner) -> index_t {
        index_t vertex[3];
        if (!corners_of(p, b, corner / 3, vertex)) return -1;
        const index_t i = corner % 3;
        return i == 0 ? vertex[0] : i == 1 ? vertex[1] : vertex[2];
    };
    for (index_t first = 0; first < count; first += backward_threads) {
        const index_t mine = first + t;
        const index_t vertex = mine < count ? vertex_of(mine) : -1;
        bool owner = vertex >= 0;
        T sum[3] = {T(0), T(0), T(0)};
        for (index_t begin = 0; begin < count; begin += corner_chunk) {
            const int size = static_cast<int>(min_of(corner_chunk, count - begin));
            __syncthreads();
            for (int i = t; i < size; i += backward_threads) shared_vertex[i] = vertex_of(begin + i);
            __syncthreads();
            if (!owner) continue;
            for (int i = 0; i < size; ++i) {
                if (shared_vertex[i] != vertex) continue;
                const index_t corner = begin + i;
                if (corner < mine) {
                    owner = false;
                    break;
                }
                const T w = p.lmk_bary_coords[b * p.lmk_bary_coords_stride + corner];
                const T* g = p.grad_landmarks + (b * p.L + corner / 3) * 3;
                for (int c = 0; c < 3; ++c) sum[c] += w * g[c];
            }
        }
        if (owner)  // the zeros were written before the barriers above
            for (int c = 0; c < 3; ++c) grad[3 * vertex + c] = sum[c];
    }
}

}  // namespace

template <class T>
void vertices2landmarks_forward(const VerticesToLandmarks<T>& p, stream_t stream) {
    launch("vertices2landmarks_forward", points_forward_kernel<T>, ceil_div(p.B * p.L, forward_threads), forward_threads, 0, stream, p);
}

template <class T>
void vertices2landmarks_backward(const VerticesToLandmarks<T>& p, stream_t stream) {
    launch("vertices2landmarks_backward", points_backward_kernel<T>, p.B, backward_threads, 0, stream, p);
}

#define RN_INSTANTIATE(T)                                                                 \
    template void vertices2landmarks_forward<T>(const VerticesToLandmarks<T>&, stream_t); \
    template void vertices2landmarks_backward<T>(const VerticesToLandmarks<T>&, stream_t);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)
#undef RN_INSTANTIATE

}  // namespace ringnet::cuda
