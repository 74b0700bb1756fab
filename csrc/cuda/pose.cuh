// The pose of one batch element on the GPU: rotations, rest joints, the chain. A group of threads works on one element; the chain
// itself is a walk along the joints by one thread.
#pragma once

#include "../kinematics.h"
#include "../rotation.h"
#include "device.cuh"
#include "layout.h"

namespace ringnet::cuda {

template <class T>
struct PoseInput {
    index_t K, J;
    const std::int32_t* parents;
    const T* joint_dirs;
    const T* betas;
    index_t betas_stride;
    const T* pose;
    index_t pose_stride;
    bool axis_angle;
    const T* joint_template;
    index_t joint_template_stride;
};

// Built from the parameters of any operator that has a pose.
template <class T, class Parameters>
PoseInput<T> pose_input(const Parameters& p, const T* joint_template, index_t joint_template_stride) {
    return {p.model.K,     p.model.J,    p.model.parents, p.model.joint_dirs,   p.betas, p.betas_stride, p.pose,
            p.pose_stride, p.axis_angle, joint_template,  joint_template_stride};
}

// 36 J values of shared memory. transforms come first: 16-byte aligned.
template <class T>
struct PoseScratch {
    T *transforms, *world_r, *local_r, *rest, *posed;
    __device__ PoseScratch(T* memory, index_t J)
        : transforms(memory), world_r(memory + 12 * J), local_r(memory + 21 * J), rest(memory + 30 * J), posed(memory + 33 * J) {}
};

// Everything of the scratch is readable by the group when this returns.
template <class T, class Group>
__device__ void pose_of_element(const PoseInput<T>& in, index_t b, const PoseScratch<T>& s, Group group) {
    const int rank = group.rank(), size = group.size();
    const T* pose = in.pose + b * in.pose_stride;
    if (in.axis_angle) {
        for (index_t j = rank; j < in.J; j += size) rodrigues(pose + 3 * j, s.local_r + 9 * j);
    } else {
        for (index_t i = rank; i < 9 * in.J; i += size) s.local_r[i] = pose[i];
    }
    // Rest joints: each a sum over the betas, in up to three parts where there are threads for them. world_r is still free.
    const int K = static_cast<int>(in.K), coordinates = 3 * static_cast<int>(in.J);
    const int parts = size >= 3 * coordinates ? 3 : size >= 2 * coordinates ? 2 : 1;
    const T* betas = in.betas + b * in.betas_stride;
    for (int n = rank; n < parts * coordinates; n += size) {
        const int part = n / coordinates, end = (part + 1) * K / parts;
        const T* column = in.joint_dirs + n % coordinates;
        T sum = T(0);
#pragma unroll 6  // 8 spill a register of four elements' landmarks at sm_120
        for (int k = part * K / parts; k < end; ++k) sum += betas[k] * column[k * coordinates];
        s.world_r[n] = sum;
    }
    group.sync();
    const T* joint_template = in.joint_template + b * in.joint_template_stride;
    for (int i = rank; i < coordinates; i += size) {
        T sum = T(0);
        for (int part = 0; part < parts; ++part) sum += s.world_r[part * coordinates + i];
        s.rest[i] = joint_template[i] + sum;
    }
    group.sync();
    if (rank == 0) chain(in.J, in.parents, s.local_r, s.rest, s.world_r, s.posed, s.transforms);
    group.sync();
}

// Feature k >= K of an element: vec(R_j - I).
template <class T>
__device__ __forceinline__ T pose_feature(const T* local_r, index_t i) {
    return local_r[9 + i] - (i % 9 % 4 == 0 ? T(1) : T(0));
}

// features, transforms and contour rows of the state, and the posed joints; a warp per element.
template <class T>
void launch_pose(const PoseInput<T>&, index_t B, const State<T>&, T* joints, index_t neck_joint, stream_t);

// The last step of a backward call: sums the partial sums in a fixed order, then the chain's vector-Jacobian product; a block per element.
template <class T>
struct PoseBackward {
    PoseInput<T> in;
    index_t B, chunks;
    const T* partial_features;                        // (chunks, B, Fp)
    const T* partial_transforms;                      // (chunks, B, J, 12)
    const T* grad_joints;                             // (B, J, 3) or null
    T *grad_betas, *grad_pose, *grad_joint_template;  // null where not wanted
};
template <class T>
void launch_pose_backward(const PoseBackward<T>&, stream_t);

}  // namespace ringnet::cuda
