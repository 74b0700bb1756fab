// The CPU's entry points: chooses the instruction set once, when first asked.
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "threads.h"

namespace ringnet::cpu {
namespace {

const Kernels* supported(const std::string& name) {
    if (name == kernels_baseline.name) return &kernels_baseline;
#if defined(RN_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == kernels_avx2.name && avx2) return &kernels_avx2;
    if (name == kernels_avx512.name && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        return &kernels_avx512;
#endif
    return nullptr;
}

const Kernels& kernels() {
    static const Kernels& chosen = []() -> const Kernels& {
        const char* wanted = std::getenv("RINGNET_SIMD");
        if (wanted && *wanted) {
            if (const Kernels* k = supported(wanted)) return *k;
            throw std::runtime_error(std::string("RINGNET_SIMD=") + wanted +
                                     ": expected avx512, avx2 or baseline, and a processor that has it");
        }
        for (const char* name : {"avx512", "avx2"})
            if (const Kernels* k = supported(name)) return *k;
        return kernels_baseline;
    }();
    return chosen;
}

template <class T>
const KernelsOf<T>& of();
template <>
const KernelsOf<float>& of<float>() {
    return kernels().f32;
}
template <>
const KernelsOf<double>& of<double>() {
    return kernels().f64;
}

// A big output is fresh memory more often than not, and the kernel hands it out a page at a time: in 4 kB pages that takes
// longer than filling it. Hence huge pages, where there are any, and otherwise all of them at once, by all threads. From 32 MiB
// on, malloc gives every buffer a mapping of its own, so nothing else is affected.
template <class T>
void get_pages([[maybe_unused]] T* p, [[maybe_unused]] index_t n, [[maybe_unused]] int threads) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int populate_write = 23;  // MADV_POPULATE_WRITE: from Linux 5.14 on, before that refused
    const index_t huge = index_t(2) << 20, first = reinterpret_cast<index_t>(p);
    const index_t begin = round_up(first, huge), end = (first + n * index_t(sizeof(T))) / huge * huge, pages = (end - begin) / huge;
    if (n * index_t(sizeof(T)) <= index_t(32) << 20) return;
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    Team(threads, double(end - begin)).each(pages, [&](index_t i) {
        (void)madvise(reinterpret_cast<void*>(begin + i * huge), huge, populate_write);
    });
#endif
}

}  // namespace

const char* simd_level() { return kernels().name; }
bool separate_directions() { return true; }

void digests(const void* memory, index_t bytes, std::uint64_t* digest, int threads) {
    kernels().digests(static_cast<const unsigned char*>(memory), bytes, digest, threads);
}

template <class T> index_t directions_packed_size(index_t V, index_t count) { return of<T>().directions_packed_size(V, count); }
template <class T> index_t directions_index_size(index_t V, index_t count) { return of<T>().directions_index_size(V, count); }
template <class T> index_t lbs_packed_size(index_t V, index_t, index_t J) { return of<T>().weights_packed_size(V, J); }
template <class T> index_t lbs_index_size(index_t V, index_t, index_t J) { return of<T>().weights_index_size(V, J); }
template <class T> index_t lbs_state_size(index_t V, index_t K, index_t J, bool keep) {
    return keep ? of<T>().lbs_state_size(V, K, J, true) : 0;
}
template <class T> index_t lbs_workspace_size(index_t, index_t, index_t, index_t, bool) { return 0; }
template <class T> index_t landmarks_packed_size(index_t K, index_t J, index_t L, index_t C) {
    return of<T>().landmarks_packed_size(K, J, L, C);
}
template <class T> index_t landmarks_index_size(index_t K, index_t J, index_t L, index_t C) {
    return of<T>().landmarks_index_size(K, J, L, C);
}
template <class T> index_t landmarks_state_size(index_t K, index_t J, index_t L, index_t C, bool keep) {
    return keep ? of<T>().landmarks_state_size(K, J, L, C, true) : 0;
}
template <class T> index_t landmarks_workspace_size(index_t, index_t, index_t, index_t, index_t) { return 0; }
template <class T> index_t landmarks_jacobian_workspace_size(index_t, index_t, index_t, index_t, index_t) { return 0; }

template <class T> void pack_directions(const DirectionsSource<T>& s, T* packed, std::int32_t* index, int threads) {
    of<T>().pack_directions(s, packed, index, threads);
}
template <class T> void pack_lbs(const LbsConstants<T>& c, T* packed, std::int32_t* index, int threads) {
    of<T>().pack_weights(c.V, c.J, c.lbs_weights, packed, index, threads);
}
template <class T> void pack_landmarks(const LandmarkConstants<T>& c, T* packed, std::int32_t* index, int threads) {
    of<T>().pack_landmarks(c, packed, index, threads);
}

// The kernel's call with a state or a workspace of its own, where the caller has none to give.
template <class T, class Call>
void with_scratch(void (*kernel)(const Call&, int), const Call& call, T* Call::* buffer, index_t size, int threads) {
    Scratch<T> scratch(size);
    Call own = call;
    own.*buffer = scratch.data();
    kernel(own, threads);
}

template <class T> void lbs_forward(const LbsForward<T>& p, int threads) {
    const KernelsOf<T>& k = of<T>();
    const LbsModel<T>& m = p.model;
    const index_t size = p.B * k.lbs_state_size(m.V, m.K, m.J, p.keep);
    get_pages(p.vertices, p.B * 3 * m.V, threads);
    if (p.keep) {
        get_pages(p.state, size, threads);
        k.lbs_forward(p, threads);
    } else {
        with_scratch(k.lbs_forward, p, &LbsForward<T>::state, size, threads);
    }
}
template <class T> void lbs_backward(const LbsBackward<T>& p, int threads) {
    const KernelsOf<T>& k = of<T>();
    const LbsModel<T>& m = p.model;
    const index_t size = k.lbs_workspace_size(p.B, m.V, m.K, m.J, p.grad_v_template && p.grad_v_template_shared);
    with_scratch(k.lbs_backward, p, &LbsBackward<T>::workspace, size, threads);
}
template <class T> void landmarks_forward(const LandmarksForward<T>& p, int threads) {
    const KernelsOf<T>& k = of<T>();
    const LandmarkModel<T>& m = p.model;
    const index_t size = p.B * k.landmarks_state_size(m.K, m.J, m.L, m.C, p.keep);
    if (p.keep)
        k.landmarks_forward(p, threads);
    else
        with_scratch(k.landmarks_forward, p, &LandmarksForward<T>::state, size, threads);
}
template <class T> void landmarks_backward(const LandmarksBackward<T>& p, int threads) { of<T>().landmarks_backward(p, threads); }

template <class T> void landmarks_jacobian(const LandmarksJacobian<T>& p, int threads) { of<T>().landmarks_jacobian(p, threads); }

#define RN_INSTANTIATE(T)                                                                               \
    template index_t directions_packed_size<T>(index_t, index_t);                                       \
    template index_t directions_index_size<T>(index_t, index_t);                                        \
    template index_t lbs_packed_size<T>(index_t, index_t, index_t);                                     \
    template index_t lbs_index_size<T>(index_t, index_t, index_t);                                      \
    template index_t lbs_state_size<T>(index_t, index_t, index_t, bool);                                \
    template index_t lbs_workspace_size<T>(index_t, index_t, index_t, index_t, bool);                   \
    template index_t landmarks_packed_size<T>(index_t, index_t, index_t, index_t);                      \
    template index_t landmarks_index_size<T>(index_t, index_t, index_t, index_t);                       \
    template index_t landmarks_state_size<T>(index_t, index_t, index_t, index_t, bool);                 \
    template index_t landmarks_workspace_size<T>(index_t, index_t, index_t, index_t, index_t);          \
    template index_t landmarks_jacobian_workspace_size<T>(index_t, index_t, index_t, index_t, index_t); \
    template void pack_directions<T>(const DirectionsSource<T>&, T*, std::int32_t*, int);               \
    template void pack_lbs<T>(const LbsConstants<T>&, T*, std::int32_t*, int);                          \
    template void pack_landmarks<T>(const LandmarkConstants<T>&, T*, std::int32_t*, int);               \
    template void lbs_forward<T>(const LbsForward<T>&, int);                                            \
    template void lbs_backward<T>(const LbsBackward<T>&, int);                                          \
    template void landmarks_forward<T>(const LandmarksForward<T>&, int);                                \
    template void landmarks_backward<T>(const LandmarksBackward<T>&, int);                              \
    template void landmarks_jacobian<T>(const LandmarksJacobian<T>&, int);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)

}  // namespace ringnet::cpu
