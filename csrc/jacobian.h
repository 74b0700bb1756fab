// Forward derivatives of the pose: of rotation matrices with respect to their axis-angle vectors, and of points of the skinned
// mesh with respect to the joints' rotations and rest positions.
//
// A point of the mesh is a weighted sum of corners, each skinned by several joints. Turning joint i moves what hangs on it, i and
// all joints below it, as one rigid body about i. So of a point, joint i needs to know only its arm: the weighted sum of the
// corners' parts below i, relative to i, in i's own frame. The point is then G_p R_i arm_i plus what R_i doesn't move, where p is i's parent.
#pragma once

#include "rotation.h"

namespace ringnet {

// dR[c] = dR / dr_c, row-major.
template <class T>
RN_HOST_DEVICE void rodrigues_jacobian(const T r[3], T dR[3][9]) {
    const T s = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
    const RodriguesFactors<T> f = rodrigues_factors<T>(s);
    const T K[9] = {T(0), -r[2], r[1], r[2], T(0), -r[0], -r[1], r[0], T(0)};
    for (int c = 0; c < 3; ++c) {
        const T da = T(2) * r[c] * f.da, db = T(2) * r[c] * f.db;
        // R = I + a K + b (r r^T - s I).
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j) {
                const T square = r[i] * r[j] - (i == j ? s : T(0));
                const T d_square = (i == c ? r[j] : T(0)) + (j == c ? r[i] : T(0)) - (i == j ? T(2) * r[c] : T(0));
                dR[c][3 * i + j] = da * K[3 * i + j] + db * square + f.b * d_square;
            }
        const int x = (c + 1) % 3, y = (c + 2) % 3;
        dR[c][3 * y + x] += f.a;
        dR[c][3 * x + y] -= f.a;
    }
}

// Of one point: for each joint its weight, the sum over corners (joint first: weight (J)), and its arm (J, 3) as far as the joint's own
// corners go, sum of weight (corner - rest position), are made those of everything below the joint.
template <class T>
RN_HOST_DEVICE void gather_arms(index_t joints, const std::int32_t* parents, const T* local_r, const T* rest, T* weight, T* arm) {
    for (index_t j = joints - 1; j > 0; --j) {
        const index_t p = parents[j];
        const T* R = local_r + 9 * j;
        const T* a = arm + 3 * j;
        for (int i = 0; i < 3; ++i)
            arm[3 * p + i] += weight[j] * (rest[3 * j + i] - rest[3 * p + i]) + R[3 * i] * a[0] + R[3 * i + 1] * a[1] + R[3 * i + 2] * a[2];
        weight[p] += weight[j];
    }
}

}  // namespace ringnet
