// Rodrigues and points on a mesh: small operators, bound by memory, one version for every instruction set.
#include <stdexcept>
#include <string>

#include "../ops.h"
#include "../rotation.h"
#include "threads.h"

namespace ringnet::cpu {

template <class T>
void rodrigues_forward(const Rodrigues<T>& p, int threads) {
    Team(threads, double(p.N) * 100).each(p.N, [&](index_t i) {
        const double r[3] = {p.rot_vecs[3 * i], p.rot_vecs[3 * i + 1], p.rot_vecs[3 * i + 2]};
        double R[9];
        rodrigues(r, R);
        for (int k = 0; k < 9; ++k) p.matrices[9 * i + k] = static_cast<T>(R[k]);
    });
}

template <class T>
void rodrigues_backward(const Rodrigues<T>& p, int threads) {
    Team(threads, double(p.N) * 150).each(p.N, [&](index_t i) {
        const double r[3] = {p.rot_vecs[3 * i], p.rot_vecs[3 * i + 1], p.rot_vecs[3 * i + 2]};
        double dR[9], dr[3];
        for (int k = 0; k < 9; ++k) dR[k] = p.grad_matrices[9 * i + k];
        rodrigues_vjp(r, dR, dr);
        for (int k = 0; k < 3; ++k) p.grad_rot_vecs[3 * i + k] = static_cast<T>(dr[k]);
    });
}

namespace {

// Every index of the call, before anything is read through one.
template <class T>
void check_indices(const VerticesToLandmarks<T>& p) {
    const index_t rows = p.lmk_faces_idx_stride == 0 ? min_of(p.B, 1) : p.B;
    for (index_t b = 0; b < rows; ++b)
        for (index_t l = 0; l < p.L; ++l) {
            const std::int64_t face = p.lmk_faces_idx[b * p.lmk_faces_idx_stride + l];
            if (face < 0 || face >= p.F)
                throw std::out_of_range("lmk_faces_idx: expected faces in [0, " + std::to_string(p.F) + "), got " + std::to_string(face));
            for (int i = 0; i < 3; ++i) {
                const std::int64_t v = p.faces[3 * face + i];
                if (v < 0 || v >= p.V)
                    throw std::out_of_range("faces: expected vertices in [0, " + std::to_string(p.V) + "), got " + std::to_string(v) +
                                            " in face " + std::to_string(face));
            }
        }
}

}  // namespace

template <class T>
void vertices2landmarks_forward(const VerticesToLandmarks<T>& p, int threads) {
    check_indices(p);
    Team(threads, double(p.B) * p.L * 20).each(p.B, [&](index_t b) {
        const T* vertices = p.vertices + b * p.vertices_stride;
        const std::int64_t* faces = p.lmk_faces_idx + b * p.lmk_faces_idx_stride;
        const T* bary = p.lmk_bary_coords + b * p.lmk_bary_coords_stride;
        for (index_t l = 0; l < p.L; ++l) {
            const std::int64_t* f = p.faces + 3 * faces[l];
            for (int c = 0; c < 3; ++c)
                p.landmarks[(b * p.L + l) * 3 + c] = bary[3 * l] * vertices[3 * f[0] + c] + bary[3 * l + 1] * vertices[3 * f[1] + c] +
                                                     bary[3 * l + 2] * vertices[3 * f[2] + c];
        }
    });
}

template <class T>
void vertices2landmarks_backward(const VerticesToLandmarks<T>& p, int threads) {
    check_indices(p);
    Team(threads, double(p.B) * (p.V + p.L * 20)).each(p.B, [&](index_t b) {
        T* grad = p.grad_vertices + b * 3 * p.V;
        const std::int64_t* faces = p.lmk_faces_idx + b * p.lmk_faces_idx_stride;
        const T* bary = p.lmk_bary_coords + b * p.lmk_bary_coords_stride;
        for (index_t i = 0; i < 3 * p.V; ++i) grad[i] = T(0);
        for (index_t l = 0; l < p.L; ++l)
            for (int i = 0; i < 3; ++i)
                for (int c = 0; c < 3; ++c)
                    grad[3 * p.faces[3 * faces[l] + i] + c] += bary[3 * l + i] * p.grad_landmarks[(b * p.L + l) * 3 + c];
    });
}

#define RN_INSTANTIATE(T)                                                            \
    template void rodrigues_forward<T>(const Rodrigues<T>&, int);                    \
    template void rodrigues_backward<T>(const Rodrigues<T>&, int);                   \
    template void vertices2landmarks_forward<T>(const VerticesToLandmarks<T>&, int); \
    template void vertices2landmarks_backward<T>(const VerticesToLandmarks<T>&, int);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)

}  // namespace ringnet::cpu
