// Skinning of one vertex: value and vector-Jacobian product. S is a scalar, or on the CPU a vector of one value per
// vertex; T is what one transform or weight is read as. A is either: transforms of their own for every vertex, or one for all.
#pragma once

#include "common.h"

namespace ringnet {

// M += w A: adds one joint's transform (12 values, [R | t]) to the blended one.
template <class S, class T>
RN_HOST_DEVICE void add_transform(S M[12], S w, const T* A) {
    for (int i = 0; i < 12; ++i) M[i] += w * A[i];
}

// out = M [v; 1], as three multiply-adds a coordinate.
template <class S, class A>
RN_HOST_DEVICE void transform_point(const A M[12], const S v[3], S out[3]) {
    for (int i = 0; i < 3; ++i) out[i] = M[4 * i] * v[0] + (M[4 * i + 1] * v[1] + (M[4 * i + 2] * v[2] + M[4 * i + 3]));
}

// Gradient of the blended vertex: dv = R^T g.
template <class S, class A>
RN_HOST_DEVICE void transform_point_vjp(const A M[12], const S g[3], S dv[3]) {
    for (int i = 0; i < 3; ++i) dv[i] = M[i] * g[0] + M[4 + i] * g[1] + M[8 + i] * g[2];
}

// Gradient of the transform, before the weight: dM = g [v; 1]^T; joint j receives w_j dM.
template <class S>
RN_HOST_DEVICE void transform_vjp(const S v[3], const S g[3], S dM[12]) {
    for (int i = 0; i < 3; ++i) {
        for (int c = 0; c < 3; ++c) dM[4 * i + c] = g[i] * v[c];
        dM[4 * i + 3] = g[i];
    }
}

}  // namespace ringnet
