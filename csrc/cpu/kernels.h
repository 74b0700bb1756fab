// The kernels of one instruction set, as a table of functions: kernels.cpp is compiled once per set.
#pragma once

#include "../ops.h"

namespace ringnet {

template <class T>
struct KernelsOf {
    index_t (*directions_packed_size)(index_t V, index_t count);
    index_t (*directions_index_size)(index_t V, index_t count);
    index_t (*weights_packed_size)(index_t V, index_t J);
    index_t (*weights_index_size)(index_t V, index_t J);
    index_t (*lbs_state_size)(index_t V, index_t K, index_t J, bool keep);
    index_t (*lbs_workspace_size)(index_t B, index_t V, index_t K, index_t J, bool grad_v_template_shared);
    index_t (*landmarks_packed_size)(index_t K, index_t J, index_t L, index_t C);
    index_t (*landmarks_index_size)(index_t K, index_t J, index_t L, index_t C);
    index_t (*landmarks_state_size)(index_t K, index_t J, index_t L, index_t C, bool keep);
    void (*pack_directions)(const DirectionsSource<T>&, T* packed, std::int32_t* index, int threads);
    void (*pack_weights)(index_t V, index_t J, const T* lbs_weights, T* packed, std::int32_t* index, int threads);
    void (*pack_landmarks)(const LandmarkConstants<T>&, T* packed, std::int32_t* index, int threads);
    void (*lbs_forward)(const LbsForward<T>&, int threads);
    void (*lbs_backward)(const LbsBackward<T>&, int threads);
    void (*landmarks_forward)(const LandmarksForward<T>&, int threads);
    void (*landmarks_backward)(const LandmarksBackward<T>&, int threads);
    void (*landmarks_jacobian)(const LandmarksJacobian<T>&, int threads);
};

struct Kernels {
    const char* name;
    KernelsOf<float> f32;
    KernelsOf<double> f64;
    void (*digests)(const unsigned char* memory, index_t bytes, std::uint64_t* digest, int threads);
};

extern const Kernels kernels_baseline;
#if defined(RN_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace ringnet
