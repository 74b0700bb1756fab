// The core's CPU entry points, run by the emulated CUDA kernels: python/module.cpp linked to this is a _ringnet_core whose operators take
// CPU tensors and compute as the GPU would.
#include "cpu/digest.h"
#include "ops.h"

namespace ringnet::cpu {

#define SIZE(NAME, PARAMETERS, ...)          \
    template <class T>                       \
    index_t NAME PARAMETERS {                \
        return cuda::NAME<T>(__VA_ARGS__);   \
    }                                        \
    template index_t NAME<float> PARAMETERS; \
    template index_t NAME<double> PARAMETERS;
SIZE(lbs_packed_size, (index_t V, index_t K, index_t J), V, K, J)
SIZE(lbs_index_size, (index_t V, index_t K, index_t J), V, K, J)
SIZE(lbs_state_size, (index_t V, index_t K, index_t J, bool keep), V, K, J, keep)
SIZE(lbs_workspace_size, (index_t B, index_t V, index_t K, index_t J, bool shared), B, V, K, J, shared)
SIZE(landmarks_packed_size, (index_t K, index_t J, index_t L, index_t C), K, J, L, C)
SIZE(landmarks_index_size, (index_t K, index_t J, index_t L, index_t C), K, J, L, C)
SIZE(landmarks_state_size, (index_t K, index_t J, index_t L, index_t C, bool keep), K, J, L, C, keep)
SIZE(landmarks_workspace_size, (index_t B, index_t K, index_t J, index_t L, index_t C), B, K, J, L, C)
SIZE(landmarks_jacobian_workspace_size, (index_t B, index_t K, index_t J, index_t L, index_t C), B, K, J, L, C)

#define PACK(NAME, CONSTANTS)                                                       \
    template <class T>                                                              \
    void NAME(const CONSTANTS<T>& c, T* packed, std::int32_t* index, int) {         \
        cuda::NAME(c, packed, index, nullptr);                                      \
    }                                                                               \
    template void NAME<float>(const CONSTANTS<float>&, float*, std::int32_t*, int); \
    template void NAME<double>(const CONSTANTS<double>&, double*, std::int32_t*, int);
PACK(pack_lbs, LbsConstants)
PACK(pack_landmarks, LandmarkConstants)

#define RUN(NAME, PARAMETERS)                                 \
    template <class T>                                        \
    void NAME(const PARAMETERS<T>& p, int) {                  \
        cuda::NAME(p, nullptr);                               \
    }                                                         \
    template void NAME<float>(const PARAMETERS<float>&, int); \
    template void NAME<double>(const PARAMETERS<double>&, int);
RUN(lbs_forward, LbsForward)
RUN(lbs_backward, LbsBackward)
RUN(landmarks_forward, LandmarksForward)
RUN(landmarks_backward, LandmarksBackward)
RUN(landmarks_jacobian, LandmarksJacobian)
RUN(rodrigues_forward, Rodrigues)
RUN(rodrigues_backward, Rodrigues)
RUN(vertices2landmarks_forward, VerticesToLandmarks)
RUN(vertices2landmarks_backward, VerticesToLandmarks)

void digests(const void* memory, index_t bytes, std::uint64_t* digest, int threads) {
    ringnet::digests(static_cast<const unsigned char*>(memory), bytes, digest, threads);
}

const char* simd_level() { return "emulated CUDA"; }

bool separate_directions() { return false; }
template <class T> index_t directions_packed_size(index_t, index_t) { return 0; }
template <class T> index_t directions_index_size(index_t, index_t) { return 0; }
template <class T> void pack_directions(const DirectionsSource<T>&, T*, std::int32_t*, int) {}
template index_t directions_packed_size<float>(index_t, index_t);
template index_t directions_packed_size<double>(index_t, index_t);
template index_t directions_index_size<float>(index_t, index_t);
template index_t directions_index_size<double>(index_t, index_t);
template void pack_directions<float>(const DirectionsSource<float>&, float*, std::int32_t*, int);
template void pack_directions<double>(const DirectionsSource<double>&, double*, std::int32_t*, int);

}  // namespace ringnet::cpu
