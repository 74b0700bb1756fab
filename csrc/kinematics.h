// The joint chain: from local rotations and rest positions to skinning transforms, value and vector-Jacobian product.
//
// A transform is 12 values, a row-major 3 x 4 matrix [R | t]. Joints come in topological order: parents[j] < j for
// j > 0; parents[0] is the root and is not read.
#pragma once

#include "common.h"

namespace ringnet {

// A joint's operands are read before any of its results is stored: behind a store that might change them they would be read again,
// on a GPU out of shared memory by one thread that waits.
template <int N, class T>
RN_HOST_DEVICE void copy(const T* from, T* to) {
    for (int i = 0; i < N; ++i) to[i] = from[i];
}

// C = A B, 3 x 3 row-major.
template <class T>
RN_HOST_DEVICE void matmul3(const T A[9], const T B[9], T C[9]) {
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) C[3 * i + j] = A[3 * i] * B[j] + A[3 * i + 1] * B[3 + j] + A[3 * i + 2] * B[6 + j];
}

// world_r (J, 9) and posed (J, 3): rotation and position of every joint in the world; transforms (J, 12): what takes a
// point of the rest pose to the posed one, so that a joint's rest position goes to its posed position.
template <class T>
RN_HOST_DEVICE void chain(index_t joints, const std::int32_t* parents, const T* local_r, const T* rest, T* world_r, T* posed,
                          T* transforms) {
    for (index_t j = 0; j < joints; ++j) {
        T G[9], t[3], q[3];
        copy<3>(rest + 3 * j, q);
        if (j == 0) {
            copy<9>(local_r, G);
            copy<3>(q, t);
        } else {
            const index_t p = parents[j];
            const T *P = world_r + 9 * p, *u = posed + 3 * p, *r = rest + 3 * p;
            const T o[3] = {q[0] - r[0], q[1] - r[1], q[2] - r[2]};
            for (int i = 0; i < 3; ++i) t[i] = u[i] + P[3 * i] * o[0] + P[3 * i + 1] * o[1] + P[3 * i + 2] * o[2];
            matmul3(P, local_r + 9 * j, G);
        }
        T* A = transforms + 12 * j;
        copy<9>(G, world_r + 9 * j);
        copy<3>(t, posed + 3 * j);
        for (int i = 0; i < 3; ++i) {
            copy<3>(G + 3 * i, A + 4 * i);
            A[4 * i + 3] = t[i] - (G[3 * i] * q[0] + G[3 * i + 1] * q[1] + G[3 * i + 2] * q[2]);
        }
    }
}

// d_local_r (J, 9) and d_rest (J, 3), overwritten, from d_transforms (J, 12) and d_posed (J, 3; null for zero).
// world_r as written by chain(). scratch holds 12 J values.
template <class T>
RN_HOST_DEVICE void chain_vjp(index_t joints, const std::int32_t* parents, const T* local_r, const T* rest, const T* world_r,
                              const T* d_transforms, const T* d_posed, T* d_local_r, T* d_rest, T* scratch) {
    T* dG = scratch;               // (J, 9) gradient of world_r
    T* dt = scratch + 9 * joints;  // (J, 3) gradient of posed
    for (index_t j = 0; j < joints; ++j) {
        T dA[12], G[9], q[3], posed[3] = {};
        copy<12>(d_transforms + 12 * j, dA);
        copy<9>(world_r + 9 * j, G);
        copy<3>(rest + 3 * j, q);
        if (d_posed) copy<3>(d_posed + 3 * j, posed);
        const T d[3] = {dA[3], dA[7], dA[11]};  // of t - G q
        T turned[9], moved[3], at_rest[3];
        for (int i = 0; i < 3; ++i) {
            for (int c = 0; c < 3; ++c) turned[3 * i + c] = dA[4 * i + c] - d[i] * q[c];
            moved[i] = d[i] + posed[i];
            at_rest[i] = -(G[i] * d[0] + G[3 + i] * d[1] + G[6 + i] * d[2]);
        }
        copy<9>(turned, dG + 9 * j);
        copy<3>(moved, dt + 3 * j);
        copy<3>(at_rest, d_rest + 3 * j);
    }
    for (index_t j = joints - 1; j > 0; --j) {
        const index_t p = parents[j];
        T P[9], R[9], g[9], d[3], q[3], r[3];
        copy<9>(world_r + 9 * p, P);
        copy<9>(local_r + 9 * j, R);
        copy<9>(dG + 9 * j, g);
        copy<3>(dt + 3 * j, d);
        copy<3>(rest + 3 * j, q);
        copy<3>(rest + 3 * p, r);
        T local[9], turned[9], moved[3], at_rest[3], parent_at_rest[3];  // the parent's gradients, and this joint's
        copy<9>(dG + 9 * p, turned);
        copy<3>(dt + 3 * p, moved);
        copy<3>(d_rest + 3 * j, at_rest);
        copy<3>(d_rest + 3 * p, parent_at_rest);
        for (int i = 0; i < 3; ++i) {
            for (int c = 0; c < 3; ++c) {
                local[3 * i + c] = P[i] * g[c] + P[3 + i] * g[3 + c] + P[6 + i] * g[6 + c];
                turned[3 * i + c] += g[3 * i] * R[3 * c] + g[3 * i + 1] * R[3 * c + 1] + g[3 * i + 2] * R[3 * c + 2] + d[i] * (q[c] - r[c]);
            }
            moved[i] += d[i];
            const T d_offset = P[i] * d[0] + P[3 + i] * d[1] + P[6 + i] * d[2];
            at_rest[i] += d_offset;
            parent_at_rest[i] -= d_offset;
        }
        copy<9>(local, d_local_r + 9 * j);
        copy<9>(turned, dG + 9 * p);
        copy<3>(moved, dt + 3 * p);
        copy<3>(at_rest, d_rest + 3 * j);
        copy<3>(parent_at_rest, d_rest + 3 * p);
    }
    T turned[9], moved[3], at_rest[3];
    copy<9>(dG, turned);
    copy<3>(dt, moved);
    copy<3>(d_rest, at_rest);
    for (int i = 0; i < 3; ++i) at_rest[i] += moved[i];
    copy<9>(turned, d_local_r);
    copy<3>(at_rest, d_rest);
}

}  // namespace ringnet
