// Landmarks of a mesh that is computed anyway: they are read off its vertices, and their gradient joins that of the vertices on its
// way back through the skinning, corner by corner. A corner is one vertex of one landmark's triangle.
#pragma once

#include "../contour.h"
#include "../skinning.h"
#include "lbs_model.h"

namespace ringnet {
namespace {

// Calls visit(vertex, landmark, barycentric coordinate) for the corners at the vertices [v0, v1): static ones, then those of a row
// of the contour table.
template <class T, class Visit>
RN_HOST_DEVICE void each_corner_between(const MeshLandmarks<T>& m, index_t row, index_t v0, index_t v1, const Visit& visit) {
    const index_t begin[] = {0, 3 * (m.L + row * m.C)}, end[] = {3 * m.L, 3 * (m.L + (row + 1) * m.C)};
    for (int list = 0; list < 2; ++list) {
        index_t first = begin[list];
        for (index_t left = end[list] - first; left > 0;) {  // no branch that a processor would have to foresee
            const index_t half = left / 2;
            const bool before = m.vertices[first + half] < v0;
            first = before ? first + half + 1 : first;
            left = before ? left - half - 1 : half;
        }
        for (; first < end[list] && m.vertices[first] < v1; ++first) visit(m.vertices[first], m.points[first], m.bary[first]);
    }
}

// landmarks (C + L, 3) of one element's vertices (V, 3).
template <class T>
RN_KERNEL void read_landmarks(const MeshLandmarks<T>& m, index_t row, index_t V, const T* vertices, T* landmarks) {
    fill_zero(landmarks, landmarks + 3 * (m.C + m.L));
    each_corner_between(m, row, 0, V, [&](index_t v, index_t point, T bary) {
        for (int c = 0; c < 3; ++c) landmarks[3 * point + c] += bary * vertices[3 * v + c];
    });
}

// Adds the gradient of one element's landmarks to those of a block of tiles [t0, t1), both [tile][xyz][lane]: to posed_rows, of the
// vertices, and to rows, of the blended vertices.
template <class T>
RN_KERNEL void unskin_landmarks(const LbsBackward<T>& p, const LbsLayout<T>& lay, index_t t0, index_t t1, index_t b, T* posed_rows,
                                T* rows) {
    constexpr std::uint32_t W = lanes<T>;
    const index_t J = lay.J, stride_l = p.grad_landmarks_stride[1], stride_c = p.grad_landmarks_stride[2];
    const T *A = p.state + lay.transforms(p.B, b), *gradient = p.grad_landmarks + b * p.grad_landmarks_stride[0];
    const T* weights = p.model.packed + lay.weights(t0);
    const std::int32_t* ids = p.model.index + lay.joints(t0);
    each_corner_between(p.mesh_landmarks, lay.contour_row(A), t0 * W, t1 * W, [&](index_t vertex, index_t point, T bary) {
        const std::uint32_t v = static_cast<std::uint32_t>(vertex - t0 * W), tile = v / W, lane = v % W;
        const T *g = gradient + point * stride_l, *w = weights + tile * J * W + lane;
        const std::int32_t* joints = ids + tile * (1 + J);
        const T corner[3] = {bary * g[0], bary * g[stride_c], bary * g[2 * stride_c]};
        T dv[3] = {};
        for (std::int32_t slot = 0; slot < joints[0]; ++slot) {
            T turned[3];
            transform_point_vjp(A + 12 * joints[1 + slot], corner, turned);
            for (int c = 0; c < 3; ++c) dv[c] += w[slot * W] * turned[c];
        }
        for (std::uint32_t c = 0; c < 3; ++c) {
            posed_rows[(tile * 3 + c) * W + lane] += corner[c];
            rows[(tile * 3 + c) * W + lane] += dv[c];
        }
    });
}

}  // namespace
}  // namespace ringnet
