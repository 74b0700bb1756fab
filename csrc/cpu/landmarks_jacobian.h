// Landmarks and their derivatives with respect to betas and pose, on the CPU, of the constants that landmarks_model.h packs.
//
// For one landmark, a sum of three corners, M_e the blended transform of corner e (its barycentric coordinate is in the weights):
//   d/d features   sum_e M_e D_e: three corners of 3 x 3 times 3 rows of directions, in vectors of features
//   d/d betas      the first K of these, and sum_j w_j dt_j: betas move the rest joints, and with them the transforms' translations
//   d/d R_i        the other features of joint i, and G_p (x) arm_i (jacobian.h); for an axis-angle pose times dR_i / dr_i
#pragma once

#include <algorithm>
#include <utility>

#include "../jacobian.h"
#include "landmarks.h"

namespace ringnet {
namespace {

// What a batch element's landmarks have in common, and one landmark's rows. Scratch of one thread.
template <class T>
struct JacobianScratch {
    static constexpr int W = lanes<T>;
    JacobianScratch(const LandmarkLayout<T>& lay, T* values, double* doubles, std::int32_t* joints_)
        : J(lay.J), row(lay.direction_row()), pose(doubles, lay.J), weight(doubles + PoseScratch::size(lay.J)), arm(weight + lay.J),
          joints(joints_) {
        const auto take = [&values](index_t n) { return std::exchange(values, values + n); };
        rows = take(3 * row), joint_dirs = take(3 * J * row), translations = take(3 * J * row);
        features = take(row), transforms = take(12 * J), blended = take(lay.chosen_tiles() * 3 * W);
        turns = take(36 * J), levers = take(36 * J), weights = take(J);
    }
    static index_t size(const LandmarkLayout<T>& lay) {
        return (4 + 6 * lay.J) * lay.direction_row() + lay.chosen_tiles() * 3 * W + 85 * lay.J;
    }
    static index_t doubles(index_t J) { return PoseScratch::size(J) + 4 * J; }
    // The model's, which every element reads.
    void transpose(const T* dirs, index_t K) {
        for (index_t i = 0; i < 3 * J; ++i)
            for (index_t k = 0; k < row; ++k) joint_dirs[i * row + k] = k < K ? dirs[k * 3 * J + i] : T(0);
    }
    index_t J, row;
    PoseScratch pose;
    double *weight, *arm;
    std::int32_t* joints;  // of a landmark: those that move it
    T* rows;               // (3, row): one landmark's d/d features
    T* joint_dirs;         // (3 J, row): the model's, transposed and padded with zeros
    T* translations;       // (J, 3, row): d(translation of the transform) / d betas, padded with zeros
    T *features, *transforms, *blended;
    T* turns;    // (J, 9, 4): dR / dr, the axis last
    T* levers;   // (J, 3, 3, 4): G_p dR / dr, the axis last
    T* weights;  // of a landmark's joints
};

template <class T>
struct LandmarkRows {
    const T* const* directions;  // of the three corners
    const T (*M)[9];
    index_t row;
    const T* translations;
    const std::int32_t* joints;  // those with a weight
    const T* weights;
    int count;
    T* rows;
};

// n vectors from k on of the three rows sum_e M_e D_e + sum_j w_j dt_j.
template <class T, int n>
RN_KERNEL void landmark_rows(const LandmarkRows<T>& l, index_t k) {
    const index_t row = l.row;
    constexpr int W = lanes<T>;
    vec<T> acc[3][n] = {};
    for (int s = 0; s < l.count; ++s) {
        const vec<T> w = broadcast(l.weights[s]);
        const T* dt = l.translations + 3 * l.joints[s] * row + k;
        RN_UNROLL for (int r = 0; r < 3; ++r) { RN_UNROLL for (int i = 0; i < n; ++i) acc[r][i] += w * load(dt + r * row + i * W); }
    }
    for (int e = 0; e < 3; ++e) {
        for (int c = 0; c < 3; ++c) {
            const T* D = l.directions[e] + c * row + k;
            const vec<T> m0 = broadcast(l.M[e][c]), m1 = broadcast(l.M[e][3 + c]), m2 = broadcast(l.M[e][6 + c]);
            RN_UNROLL for (int i = 0; i < n; ++i) {
                const vec<T> d = load_shared<T, false>(D + i * W);
                acc[0][i] += m0 * d, acc[1][i] += m1 * d, acc[2][i] += m2 * d;
            }
        }
    }
    RN_UNROLL for (int r = 0; r < 3; ++r) { RN_UNROLL for (int i = 0; i < n; ++i) store(l.rows + r * row + k + i * W, acc[r][i]); }
}

// translations: with T_j the translation of joint j's transform, T_j = T_p + (G_p - G_j) rest_j, and T_0 = (I - G_0) rest_0.
template <class T>
void translation_rows(const PoseScratch& s, const std::int32_t* parents, JacobianScratch<T>& scratch) {
    constexpr int W = lanes<T>;
    const index_t row = scratch.row;
    for (index_t j = 0; j < scratch.J; ++j) {
        const double* G = s.world_r + 9 * j;
        const double* P = j > 0 ? s.world_r + 9 * parents[j] : nullptr;
        const T* above = j > 0 ? scratch.translations + 3 * parents[j] * row : nullptr;
        for (int r = 0; r < 3; ++r) {
            vec<T> m[3];
            for (int c = 0; c < 3; ++c) m[c] = broadcast(static_cast<T>((P ? P[3 * r + c] : r == c ? 1.0 : 0.0) - G[3 * r + c]));
            T* out = scratch.translations + (3 * j + r) * row;
            const T* d = scratch.joint_dirs + 3 * j * row;
            for (index_t k = 0; k < row; k += W) {
                vec<T> sum = above ? load(above + r * row + k) : vec<T>{};
                for (int c = 0; c < 3; ++c) sum += m[c] * load(d + c * row + k);
                store(out + k, sum);
            }
        }
    }
}

template <class T>
void landmarks_jacobian_element(const LandmarksJacobian<T>& p, const LandmarkTables<T>& m, index_t b, JacobianScratch<T>& scratch) {
    constexpr int W = lanes<T>;
    const LandmarkLayout<T>& lay = m.lay;
    const index_t K = p.model.K, J = lay.J, row = scratch.row, N = lay.C + lay.L, pose_size = (p.axis_angle ? 3 : 9) * J;
    const PoseScratch& s = scratch.pose;
    const T* pose = p.pose + b * p.pose_stride;
    fill_zero(scratch.features + lay.F, scratch.features + row);
    pose_forward<T>(pose_input(p.model, p.betas + b * p.betas_stride, pose, p.axis_angle), s, scratch.features, 1, scratch.transforms,
                    nullptr);
    translation_rows(s, p.model.parents, scratch);
    if (p.axis_angle) {
        for (index_t j = 0; j < J; ++j) {
            const double r[3] = {pose[3 * j], pose[3 * j + 1], pose[3 * j + 2]};
            double dR[3][9];
            rodrigues_jacobian(r, dR);
            for (int i = 0; i < 9; ++i)
                for (int c = 0; c < 4; ++c) scratch.turns[(9 * j + i) * 4 + c] = c < 3 ? static_cast<T>(dR[c][i]) : T(0);
            for (int c = 0; c < 4; ++c) {
                double lever[9] = {};
                if (c < 3 && j > 0) matmul3(s.world_r + 9 * p.model.parents[j], dR[c], lever);
                if (c < 3 && j == 0) std::copy(dR[c], dR[c] + 9, lever);
                for (int i = 0; i < 9; ++i) scratch.levers[(9 * j + i) * 4 + c] = static_cast<T>(lever[i]);
            }
        }
    }
    const index_t contour = lay.C > 0 ? contour_row(s.world_r + 9 * p.model.neck_joint) : 0;
    each_corner<T, 4>(m, 0, lay.chosen_tiles(), contour, [&](auto corners, const std::int32_t* vertices, index_t offset) {
        const T* features = scratch.features;
        T* out = scratch.blended + offset;
        blend_corners<T, corners(), 1>(m, vertices, &features, &out);
    });

    for (index_t n = 0; n < N; ++n) {
        const bool is_static = n >= lay.C;
        const index_t first_tile = is_static ? 0 : lay.static_tiles, first_corner = 3 * (is_static ? n - lay.C : n);
        const T* directions[3];
        T M[3][9] = {}, position[3] = {};
        std::fill_n(scratch.weight, J, 0.0);
        std::fill_n(scratch.arm, 3 * J, 0.0);
        for (int e = 0; e < 3; ++e) {
            const index_t t = first_tile + (first_corner + e) / W, tile = lay.chosen(t, contour);
            const int lane = static_cast<int>((first_corner + e) % W);
            directions[e] = m.directions + index_t(m.vertices[tile * W + lane]) * 3 * row;
            const T* blended = scratch.blended + t * 3 * W + lane;
            const T v[3] = {blended[0], blended[W], blended[2 * W]};
            const TileSkin<T> skin = m.skin(tile);
            for (std::int32_t i = 0; i < skin.count; ++i) {
                const std::int32_t j = skin.joints[i];
                const T w = skin.weights[i * W + lane];
                const T* A = scratch.transforms + 12 * j;
                scratch.weight[j] += w;
                for (int r = 0; r < 3; ++r) {
                    for (int c = 0; c < 3; ++c) M[e][3 * r + c] += w * A[4 * r + c];
                    position[r] += w * A[4 * r + 3];
                    scratch.arm[3 * j + r] += w * (v[r] - s.rest[3 * j + r]);
                }
            }
            for (int r = 0; r < 3; ++r) position[r] += M[e][3 * r] * v[0] + M[e][3 * r + 1] * v[1] + M[e][3 * r + 2] * v[2];
        }
        const index_t at = b * N + n;
        for (int r = 0; r < 3; ++r) p.landmarks[3 * at + r] = position[r];

        int count = 0;
        for (index_t j = 0; j < J; ++j)
            if (scratch.weight[j] != 0)
                scratch.joints[count] = static_cast<std::int32_t>(j), scratch.weights[count++] = static_cast<T>(scratch.weight[j]);
        const LandmarkRows<T> landmark{directions, M, row, scratch.translations, scratch.joints, scratch.weights, count, scratch.rows};
        index_t k = 0;
        for (; k + 4 * W <= row; k += 4 * W) landmark_rows<T, 4>(landmark, k);
        for (; k < row; k += W) landmark_rows<T, 1>(landmark, k);
        for (int r = 0; r < 3; ++r) std::copy_n(scratch.rows + r * row, K, p.d_betas + (3 * at + r) * K);

        gather_arms(J, p.model.parents, s.local_r, s.rest, scratch.weight, scratch.arm);
        for (int r = 0; r < 3; ++r) {
            T* out = p.d_pose + (3 * at + r) * pose_size;
            const T* features = scratch.rows + r * row + K - 9;  // of joint j at 9 j
            for (index_t j = 0; j < J; ++j) {
                const T arm[3] = {static_cast<T>(scratch.arm[3 * j]), static_cast<T>(scratch.arm[3 * j + 1]),
                                  static_cast<T>(scratch.arm[3 * j + 2])};
                if (p.axis_angle) {
                    T sum[4] = {};
                    for (int i = 0; i < 3; ++i)
                        for (int c = 0; c < 4; ++c) sum[c] += arm[i] * scratch.levers[((3 * j + r) * 3 + i) * 4 + c];
                    if (j > 0)
                        for (int i = 0; i < 9; ++i)
                            for (int c = 0; c < 4; ++c) sum[c] += features[9 * j + i] * scratch.turns[(9 * j + i) * 4 + c];
                    for (int c = 0; c < 3; ++c) out[3 * j + c] = sum[c];
                } else {
                    for (int i = 0; i < 3; ++i) {
                        const double g = j > 0 ? s.world_r[9 * p.model.parents[j] + 3 * r + i] : r == i ? 1.0 : 0.0;
                        for (int c = 0; c < 3; ++c)
                            out[9 * j + 3 * i + c] = static_cast<T>(g) * arm[c] + (j > 0 ? features[9 * j + 3 * i + c] : T(0));
                    }
                }
            }
        }
    }
}

template <class T>
void landmarks_jacobian(const LandmarksJacobian<T>& p, int threads) {
    if (p.B == 0) return;
    const LandmarkTables<T> m(p.model);
    Team team(threads, double(p.B) * (m.lay.L + m.lay.C) * 40 * m.lay.direction_row());
    Shares shares(p.B, team.size());
    Scratch<T> values(JacobianScratch<T>::size(m.lay), team.size());
    Scratch<double> doubles(JacobianScratch<T>::doubles(m.lay.J), team.size());
    Scratch<std::int32_t> joints(m.lay.J, team.size());
    team.run([&](Member& member) {
        const FlushSubnormals flush;
        JacobianScratch<T> scratch(m.lay, values.data(member.number), doubles.data(member.number), joints.data(member.number));
        scratch.transpose(p.model.joint_dirs, p.model.K);
        shares.run(member, [&](index_t b) { landmarks_jacobian_element(p, m, b, scratch); });
    });
}

}  // namespace
}  // namespace ringnet
