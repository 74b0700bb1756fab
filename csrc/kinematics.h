// The joint chain: from local rotations and rest positions to skinning transforms, value and vector-Jacobian product.
//
// A transform is 12 values, a row-major 3 x 4 matrix [R | t]. Joints come in topological order: parents[j] < j for
// j > 0; parents[0] is the root and is not read.
#pragma once

#include "common.h"

namespace ringnet {

// C = A B, 3 x 3 row-major. C must not overlap A or B.
template <class T>
RN_HOST_DEVICE void matmul3(const T* A, const T* B, T* C) {
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) C[3 * i + j] = A[3 * i] * B[j] + A[3 * i + 1] * B[3 + j] + A[3 * i + 2] * B[6 + j];
}

// world_r (J, 9) and posed (J, 3): rotation and position of every joint in the world; transforms (J, 12): what takes a
// point of the rest pose to the posed one, so that a joint's rest position goes to its posed position.
template <class T>
RN_HOST_DEVICE void chain(index_t joints, const std::int32_t* parents, const T* local_r, const T* rest, T* world_r,
                          T* posed, T* transforms) {
    for (index_t j = 0; j < joints; ++j) {
        T* G = world_r + 9 * j;
        T* t = posed + 3 * j;
        if (j == 0) {
            for (int i = 0; i < 9; ++i) G[i] = local_r[i];
            for (int i = 0; i < 3; ++i) t[i] = rest[i];
        } else {
            const index_t p = parents[j];
            const T* P = world_r + 9 * p;
            matmul3(P, local_r + 9 * j, G);
            const T o[3] = {rest[3 * j] - rest[3 * p], rest[3 * j + 1] - rest[3 * p + 1], rest[3 * j + 2] - rest[3 * p + 2]};
            for (int i = 0; i < 3; ++i) t[i] = posed[3 * p + i] + P[3 * i] * o[0] + P[3 * i + 1] * o[1] + P[3 * i + 2] * o[2];
        }
        T* A = transforms + 12 * j;
        const T* q = rest + 3 * j;
        for (int i = 0; i < 3; ++i) {
            for (int c = 0; c < 3; ++c) A[4 * i + c] = G[3 * i + c];
            A[4 * i + 3] = t[i] - (G[3 * i] * q[0] + G[3 * i + 1] * q[1] + G[3 * i + 2] * q[2]);
        }
    }
}

// d_local_r (J, 9) and d_rest (J, 3), overwritten, from d_transforms (J, 12) and d_posed (J, 3; null for zero).
// world_r as written by chain(). scratch holds 12 J values.
template <class T>
RN_HOST_DEVICE void chain_vjp(index_t joints, const std::int32_t* parents, const T* local_r, const T* rest,
                              const T* world_r, const T* d_transforms, const T* d_posed, T* d_local_r, T* d_rest,
                              T* scratch) {
    T* dG = scratch;               // (J, 9) gradient of world_r
    T* dt = scratch + 9 * joints;  // (J, 3) gradient of posed
    for (index_t j = 0; j < joints; ++j) {
        const T* dA = d_transforms + 12 * j;
        const T* G = world_r + 9 * j;
        const T* q = rest + 3 * j;
        const T d[3] = {dA[3], dA[7], dA[11]};  // of t - G q
        for (int i = 0; i < 3; ++i) {
            for (int c = 0; c < 3; ++c) dG[9 * j + 3 * i + c] = dA[4 * i + c] - d[i] * q[c];
            dt[3 * j + i] = d[i] + (d_posed ? d_posed[3 * j + i] : T(0));
            d_rest[3 * j + i] = -(G[i] * d[0] + G[3 + i] * d[1] + G[6 + i] * d[2]);
        }
    }
    for (index_t j = joints - 1; j > 0; --j) {
        const index_t p = parents[j];
        const T* P = world_r + 9 * p;
        const T* R = local_r + 9 * j;
        const T* g = dG + 9 * j;
        const T* d = dt + 3 * j;
        for (int i = 0; i < 3; ++i) {
            for (int c = 0; c < 3; ++c) {
                d_local_r[9 * j + 3 * i + c] = P[i] * g[c] + P[3 + i] * g[3 + c] + P[6 + i] * g[6 + c];
                dG[9 * p + 3 * i + c] += g[3 * i] * R[3 * c] + g[3 * i + 1] * R[3 * c + 1] + g[3 * i + 2] * R[3 * c + 2] +
                                         d[i] * (rest[3 * j + c] - rest[3 * p + c]);
            }
            dt[3 * p + i] += d[i];
            const T d_offset = P[i] * d[0] + P[3 + i] * d[1] + P[6 + i] * d[2];
            d_rest[3 * j + i] += d_offset;
            d_rest[3 * p + i] -= d_offset;
        }
    }
    for (int i = 0; i < 9; ++i) d_local_r[i] = dG[i];
    for (int i = 0; i < 3; ++i) d_rest[i] += dt[i];
}

}  // namespace ringnet
