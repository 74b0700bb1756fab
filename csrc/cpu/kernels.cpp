// Compiled once per instruction set; RN_LEVEL names the set. Nothing here may be visible outside but the table: a function that
// two of these translation units share would run with the instructions of whichever the linker keeps.
#include "kernels.h"

#include "digest.h"
#include "landmarks.h"
#include "landmarks_jacobian.h"
#include "lbs_backward.h"
#include "lbs_forward.h"

#define RN_CONCAT_(a, b) a##b
#define RN_CONCAT(a, b) RN_CONCAT_(a, b)
#define RN_STRING_(a) #a
#define RN_STRING(a) RN_STRING_(a)

namespace ringnet {
namespace {

template <class T>
constexpr KernelsOf<T> table() {
    return {
        [](index_t V, index_t count) { return DirectionsLayout<T>(V, count).packed_size(); },
        [](index_t V, index_t count) { return DirectionsLayout<T>(V, count).index_size(); },
        [](index_t V, index_t J) { return LbsLayout<T>(V, 0, J).weights_size(); },
        [](index_t V, index_t J) { return LbsLayout<T>(V, 0, J).weights_index_size(); },
        [](index_t V, index_t K, index_t J, bool keep) { return LbsLayout<T>(V, K, J).state_size(keep); },
        [](index_t B, index_t V, index_t K, index_t J, bool sum) { return LbsLayout<T>(V, K, J).workspace_size(B, sum); },
        [](index_t K, index_t J, index_t L, index_t C) { return LandmarkLayout<T>(K, J, L, C).packed_size(); },
        [](index_t K, index_t J, index_t L, index_t C) { return LandmarkLayout<T>(K, J, L, C).index_size(); },
        [](index_t K, index_t J, index_t L, index_t C, bool keep) { return LandmarkLayout<T>(K, J, L, C).state_size(keep); },
        pack_directions<T>,
        pack_weights<T>,
        pack_landmarks<T>,
        lbs_forward<T>,
        lbs_backward<T>,
        landmarks_forward<T>,
        landmarks_backward<T>,
        landmarks_jacobian<T>,
    };
}

}  // namespace

extern const Kernels RN_CONCAT(kernels_, RN_LEVEL) = {RN_STRING(RN_LEVEL), table<float>(), table<double>(), digests};

}  // namespace ringnet
