// The pose of one batch element: features, transforms and posed joints from betas and pose, and the way back. All of it in
// double: it is a thousandth of the work, and leaves the sums over features as the only float32 rounding.
#pragma once

#include "../kinematics.h"
#include "../rotation.h"
#include "simd.h"

namespace ringnet {
namespace {

// What pose_forward and pose_backward need to know, for one batch element.
template <class T>
struct PoseInput {
    index_t K, J;
    const std::int32_t* parents;
    const T* joint_dirs;      // (K, 3 J)
    const T* joint_template;  // (3 J)
    const T* betas;           // (K)
    const T* pose;            // (3 J) or (9 J)
    bool axis_angle;
};

// Scratch of one thread, by name.
struct PoseScratch {
    static constexpr index_t size(index_t J) { return 75 * J; }
    PoseScratch(double* p, index_t J)
        : local_r(p), rest(p + 9 * J), world_r(p + 12 * J), posed(p + 21 * J), transforms(p + 24 * J), d_transforms(p + 36 * J),
          d_posed(p + 48 * J), d_local_r(p + 51 * J), d_rest(p + 60 * J), chain(p + 63 * J) {}
    double *local_r, *rest, *world_r, *posed, *transforms;        // forward
    double *d_transforms, *d_posed, *d_local_r, *d_rest, *chain;  // backward
};

// As many values of a row as a vector of doubles has lanes.
template <class T>
RN_HOST_DEVICE vec<double> load_doubles(const T* p) {
    typedef T part __attribute__((vector_size(lanes<double> * sizeof(T))));
    part values;
    std::memcpy(&values, p, sizeof values);
    return __builtin_convertvector(values, vec<double>);
}

// rest (n) = joint_template + betas . joint_dirs. A row is covered by whole vectors, of which the last overlaps the one before;
// two betas at a time, for the sums of one alone would wait for each other.
template <class T>
void rest_joints(const PoseInput<T>& in, index_t n, double* rest) {
    constexpr index_t W = lanes<double>;
    if (n < W) {
        for (index_t i = 0; i < n; ++i) {
            double sum = 0;
            for (index_t k = 0; k < in.K; ++k) sum += in.betas[k] * static_cast<double>(in.joint_dirs[n * k + i]);
            rest[i] = in.joint_template[i] + sum;
        }
        return;
    }
    for (index_t i = 0; i < n; i += 2 * W) {
        const index_t first = min_of(i, n - W), second = min_of(i + W, n - W);
        vec<double> a[2] = {}, b[2] = {};
        const auto add = [&](index_t k, int sum) {
            const vec<double> beta = broadcast(static_cast<double>(in.betas[k]));
            a[sum] += beta * load_doubles(in.joint_dirs + n * k + first);
            b[sum] += beta * load_doubles(in.joint_dirs + n * k + second);
        };
        for (index_t k = 0; k + 1 < in.K; k += 2) add(k, 0), add(k + 1, 1);
        if (in.K % 2) add(in.K - 1, 0);
        store(rest + first, load_doubles(in.joint_template + first) + (a[0] + a[1]));
        store(rest + second, load_doubles(in.joint_template + second) + (b[0] + b[1]));
    }
}

// The way back: grad_betas (K) = d_features + joint_dirs . d_rest, as many betas at a time as a vector has lanes. scratch: n
// values, rounded up to whole vectors.
template <class T>
void rest_joints_vjp(const PoseInput<T>& in, index_t n, const double* d_rest, const T* d_features, T* grad_betas, double* scratch) {
    constexpr index_t W = lanes<double>;
    index_t k = 0;
    if (n >= W) {
        for (index_t i = 0; i < n; i += W)  // where vectors overlap, each value once
            for (index_t l = 0, first = min_of(i, n - W); l < W; ++l) scratch[i + l] = first + l < i ? 0.0 : d_rest[first + l];
        for (; k + W <= in.K; k += W) {
            vec<double> products[W] = {};
            for (index_t i = 0; i < n; i += W) {
                const index_t first = min_of(i, n - W);
                const vec<double> gradient = load(scratch + i);
                for (index_t l = 0; l < W; ++l) products[l] += gradient * load_doubles(in.joint_dirs + n * (k + l) + first);
            }
            double total[W];
            sums<double>(products, total);
            for (index_t l = 0; l < W; ++l) grad_betas[k + l] = static_cast<T>(d_features[k + l] + total[l]);
        }
    }
    for (; k < in.K; ++k) {
        double sum = d_features[k];
        for (index_t i = 0; i < n; ++i) sum += d_rest[i] * in.joint_dirs[n * k + i];
        grad_betas[k] = static_cast<T>(sum);
    }
}

template <class T>
void pose_chain(const PoseInput<T>& in, const PoseScratch& s) {
    for (index_t j = 0; j < in.J; ++j) {
        double* R = s.local_r + 9 * j;
        if (in.axis_angle) {
            const double r[3] = {in.pose[3 * j], in.pose[3 * j + 1], in.pose[3 * j + 2]};
            rodrigues(r, R);
        } else {
            for (int i = 0; i < 9; ++i) R[i] = in.pose[9 * j + i];
        }
    }
    rest_joints(in, 3 * in.J, s.rest);
    chain(in.J, in.parents, s.local_r, s.rest, s.world_r, s.posed, s.transforms);
}

// features (F, feature_step apart), transforms (12 J), joints (3 J; null where not wanted).
template <class T>
void pose_forward(const PoseInput<T>& in, const PoseScratch& s, T* features, index_t feature_step, T* transforms, T* joints) {
    pose_chain(in, s);
    for (index_t k = 0; k < in.K; ++k) features[k * feature_step] = in.betas[k];
    T* f = features + in.K * feature_step;
    for (index_t i = 9; i < 9 * in.J; ++i, f += feature_step) *f = static_cast<T>(s.local_r[i] - (i % 9 % 4 == 0 ? 1.0 : 0.0));
    for (index_t i = 0; i < 12 * in.J; ++i) transforms[i] = static_cast<T>(s.transforms[i]);
    if (joints)
        for (index_t i = 0; i < 3 * in.J; ++i) joints[i] = static_cast<T>(s.posed[i]);
}

// s.d_transforms holds the gradient of the transforms, d_features (F) that of the features. Outputs may be null.
template <class T>
void pose_backward(const PoseInput<T>& in, const PoseScratch& s, const T* d_features, const T* d_joints, T* grad_betas, T* grad_pose,
                   T* grad_joint_template) {
    const index_t J = in.J, n = 3 * J;
    pose_chain(in, s);
    for (index_t i = 0; i < n; ++i) s.d_posed[i] = d_joints ? static_cast<double>(d_joints[i]) : 0.0;
    chain_vjp(J, in.parents, s.local_r, s.rest, s.world_r, s.d_transforms, s.d_posed, s.d_local_r, s.d_rest, s.chain);
    if (grad_joint_template)
        for (index_t i = 0; i < n; ++i) grad_joint_template[i] = static_cast<T>(s.d_rest[i]);
    if (grad_betas) rest_joints_vjp(in, n, s.d_rest, d_features, grad_betas, s.chain);
    if (grad_pose) {
        for (index_t i = 9; i < 9 * J; ++i) s.d_local_r[i] += d_features[in.K + i - 9];
        for (index_t j = 0; j < J; ++j) {
            const double* dR = s.d_local_r + 9 * j;
            if (in.axis_angle) {
                const double r[3] = {in.pose[3 * j], in.pose[3 * j + 1], in.pose[3 * j + 2]};
                double dr[3];
                rodrigues_vjp(r, dR, dr);
                for (int i = 0; i < 3; ++i) grad_pose[3 * j + i] = static_cast<T>(dr[i]);
            } else {
                for (int i = 0; i < 9; ++i) grad_pose[9 * j + i] = static_cast<T>(dR[i]);
            }
        }
    }
}

}  // namespace
}  // namespace ringnet
