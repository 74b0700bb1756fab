#include "pose.cuh"

#include "../contour.h"

namespace ringnet::cuda {
namespace {

// neck_joint < 0: no contour row asked for.
template <class T>
__global__ void __launch_bounds__(128, 1) pose_forward_kernel(PoseInput<T> in, index_t B, State<T> state, T* joints, index_t neck_joint) {
    const int warps = static_cast<int>(blockDim.x) / lanes;
    const int warp = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
    const index_t b = static_cast<index_t>(blockIdx.x) * warps + warp;
    if (b >= B) return;  // a whole warp: no barrier below spans more than one
    const index_t K = in.K, J = in.J, F = feature_count(K, J), Fp = padded_features(K, J);
    const PoseScratch<T> s(shared_memory<T>() + warp * 36 * J, J);
    pose_of_element(in, b, s, Warp());

    T* features = state.features + b * Fp;
    const T* betas = in.betas + b * in.betas_stride;
    for (index_t k = lane; k < Fp; k += lanes) features[k] = k < K ? betas[k] : k < F ? pose_feature(s.local_r, k - K) : T(0);
    const index_t pitch = transform_pitch(J), row = neck_joint >= 0 ? contour_row(s.world_r + 9 * neck_joint) : 0;
    for (index_t i = lane; i < pitch; i += lanes) state.transforms[b * pitch + i] = transform_value(s.transforms, J, row, i);
    if (joints)
        for (index_t i = lane; i < 3 * J; i += lanes) joints[b * 3 * J + i] = s.posed[i];
}

// Shared memory: pose_backward_values.
template <class T>
__global__ void __launch_bounds__(pose_backward_parts_most* pose_backward_threads, 1) pose_backward_kernel(PoseBackward<T> p) {
    const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const index_t b = blockIdx.x, K = p.in.K, J = p.in.J, F = feature_count(K, J), Fp = padded_features(K, J);
    T* memory = shared_memory<T>();
    const PoseScratch<T> s(memory, J);
    T* d_local_r = memory + 36 * J;
    T* d_rest = d_local_r + 9 * J;
    T* d_features = d_rest + 3 * J;  // F, then 12 J of the transforms; then the same again of the other parts
    T* d_transforms = d_features + F;

    const index_t sums = F + 12 * J;
    const int parts = threads / pose_backward_threads, part = t / pose_backward_threads;
    for (index_t i = t % pose_backward_threads; i < sums; i += pose_backward_threads) {
        const bool feature = i < F;
        const T* from = feature ? p.partial_features + b * Fp + i : p.partial_transforms + b * 12 * J + (i - F);
        const index_t stride = p.B * (feature ? Fp : 12 * J), end = (part + 1) * p.chunks / parts;
        T sum = T(0);
#pragma unroll 8
        for (index_t c = part * p.chunks / parts; c < end; ++c) sum += from[c * stride];
        d_features[part * sums + i] = sum;
    }
    __syncthreads();
    if (parts > 1)
        for (index_t i = t; i < sums; i += threads) {
            T sum = d_features[i];
            for (int n = 1; n < parts; ++n) sum += d_features[n * sums + i];
            d_features[i] = sum;
        }
    pose_of_element(p.in, b, s, Block());
    if (t == 0)  // the transforms' values are not needed here: their place is the scratch
        chain_vjp(J, p.in.parents, s.local_r, s.rest, s.world_r, d_transforms, p.grad_joints ? p.grad_joints + b * 3 * J : nullptr,
                  d_local_r, d_rest, s.transforms);
    __syncthreads();

    if (p.grad_pose) {
        for (index_t j = t; j < J; j += threads) {
            T d[9];
            for (int i = 0; i < 9; ++i) d[i] = d_local_r[9 * j + i] + (j > 0 ? d_features[K + 9 * (j - 1) + i] : T(0));
            if (p.in.axis_angle) {
                T d_pose[3];
                rodrigues_vjp(p.in.pose + b * p.in.pose_stride + 3 * j, d, d_pose);
                for (int i = 0; i < 3; ++i) p.grad_pose[(b * J + j) * 3 + i] = d_pose[i];
            } else {
                for (int i = 0; i < 9; ++i) p.grad_pose[(b * J + j) * 9 + i] = d[i];
            }
        }
    }
    if (p.grad_betas) {
        for (index_t k = t; k < K; k += threads) {
            T sum = d_features[k];
            for (index_t i = 0; i < 3 * J; ++i) sum += d_rest[i] * p.in.joint_dirs[k * 3 * J + i];
            p.grad_betas[b * K + k] = sum;
        }
    }
    if (p.grad_joint_template)
        for (index_t i = t; i < 3 * J; i += threads) p.grad_joint_template[b * 3 * J + i] = d_rest[i];
}

}  // namespace

template <class T>
void launch_pose(const PoseInput<T>& in, index_t B, const State<T>& state, T* joints, index_t neck_joint, stream_t stream) {
    const index_t bytes = 36 * in.J * static_cast<index_t>(sizeof(T));
    int warps = 4;
    while (warps > 1 && warps * bytes > shared_bytes) warps /= 2;
    launch("pose_forward", pose_forward_kernel<T>, ceil_div(B, warps), warps * lanes, static_cast<std::size_t>(warps * bytes), stream, in,
           B, state, joints, neck_joint);
}

template <class T>
void launch_pose_backward(const PoseBackward<T>& p, stream_t stream) {
    if (!p.grad_betas && !p.grad_pose && !p.grad_joint_template) return;
    const int parts = pose_backward_parts<T>(p.in.K, p.in.J, p.chunks);
    launch("pose_backward", pose_backward_kernel<T>, p.B, parts * pose_backward_threads,
           static_cast<std::size_t>(pose_backward_values(p.in.K, p.in.J, parts)) * sizeof(T), stream, p);
}

#define RN_INSTANTIATE(T)                                                                               \
    template void launch_pose<T>(const PoseInput<T>&, index_t, const State<T>&, T*, index_t, stream_t); \
    template void launch_pose_backward<T>(const PoseBackward<T>&, stream_t);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)
#undef RN_INSTANTIATE

}  // namespace ringnet::cuda
