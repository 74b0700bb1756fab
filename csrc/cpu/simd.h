// Vectors of the instruction set this translation unit is compiled for, by the compiler's own vector types: + - * work lane by
// lane, and a * b + c is fused where the machine can.
//
// Everything here has internal linkage (see RN_HOST_DEVICE in common.h for the reason).
#pragma once

#include <cstring>
#include <utility>

#include "../common.h"

#if defined(__AVX512F__)
#define RN_VECTOR_BYTES 64
#elif defined(__AVX__)
#define RN_VECTOR_BYTES 32
#else
#define RN_VECTOR_BYTES 16
#endif

// An innermost kernel: a function of its own, so that nothing around it competes for the registers that it fills exactly.
#define RN_KERNEL __attribute__((noinline))

// For loops over accumulators: they live in registers only if the loop disappears.
#if defined(__clang__)
#define RN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RN_UNROLL _Pragma("GCC unroll 16")
#endif

// For load_shared.
#if defined(__AVX512F__)
#define RN_KEEP(v) asm("" : "+v"(v))
#elif defined(__SSE2__)
#define RN_KEEP(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define RN_KEEP(v) asm("" : "+w"(v))
#else
#define RN_KEEP(v) (void)0
#endif

namespace ringnet {
namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(RN_VECTOR_BYTES)));
    typedef std::int32_t mask __attribute__((vector_size(RN_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(RN_VECTOR_BYTES)));
    typedef std::int64_t mask __attribute__((vector_size(RN_VECTOR_BYTES)));
};
template <class T>
using vec = typename VectorOf<T>::type;
template <class T>
constexpr int lanes = RN_VECTOR_BYTES / sizeof(T);

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int registers = 32;
#else
constexpr int registers = 16;
#endif
// Batch elements that share one pass over the directions: 3 accumulators each.
constexpr int max_group = registers / 4;

template <class T>
RN_HOST_DEVICE vec<T> load(const T* p) {
    vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// For a vector that is used several times. Compilers like to read it again for every use, and a loop that should be bound by its
// multiply-adds may then be bound by its loads. But with no register to spare they do well: holding it would push out an accumulator.
template <class T, bool spare>
RN_HOST_DEVICE vec<T> load_shared(const T* p) {
    vec<T> v = load(p);
    if constexpr (spare) RN_KEEP(v);
    return v;
}

template <class T>
RN_HOST_DEVICE void store(T* p, vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

// acc += a * b where acc is. Left to themselves, compilers let the sum take a's or b's register instead, lose track of a loop that
// fills all of them, and move and spill.
template <class T>
RN_HOST_DEVICE void multiply_add(vec<T>& acc, vec<T> a, vec<T> b) {
#if defined(__FMA__)
    if constexpr (sizeof(T) == 4)
        asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    else
        asm("vfmadd231pd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#elif defined(__aarch64__)
    if constexpr (sizeof(T) == 4)
        asm("fmla %0.4s, %1.4s, %2.4s" : "+w"(acc) : "w"(a), "w"(b));
    else
        asm("fmla %0.2d, %1.2d, %2.2d" : "+w"(acc) : "w"(a), "w"(b));
#else
    acc += a * b;
#endif
}

// to[i] += from[i] for a power of two of elements: as one vector, which compilers don't always make of a loop.
template <int n, class T>
RN_HOST_DEVICE void add(const T* from, T* to) {
    if constexpr (n == 1) {
        *to += *from;
    } else {
        typedef T part __attribute__((vector_size(n * sizeof(T))));
        part a, b;
        std::memcpy(&a, from, sizeof a);
        std::memcpy(&b, to, sizeof b);
        b += a;
        std::memcpy(to, &b, sizeof b);
    }
}

template <class T>
RN_HOST_DEVICE void fill_zero(T* first, T* last) {
    for (; first < last; ++first) *first = T(0);
}

template <class T>
RN_HOST_DEVICE vec<T> broadcast(T x) {
    return x - vec<T>{};
}

// The same number for all lanes, as multiply_add takes it: NEON multiplies by one lane of a register, others need a whole vector.
#if defined(__aarch64__)
template <class T>
using factor = T;
template <class T>
RN_HOST_DEVICE factor<T> make_factor(T x) {
    return x;
}
template <class T>
RN_HOST_DEVICE void multiply_add(vec<T>& acc, vec<T> a, T b) {
    if constexpr (sizeof(T) == 4)
        asm("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(acc) : "w"(a), "w"(b));
    else
        asm("fmla %0.2d, %1.2d, %2.d[0]" : "+w"(acc) : "w"(a), "w"(b));
}
#else
template <class T>
using factor = vec<T>;
template <class T>
RN_HOST_DEVICE factor<T> make_factor(T x) {
    return broadcast(x);
}
#endif

// Lane l of the result is lane Index::at(l) of a and b laid end to end.
template <class T, class Index, int... l>
RN_HOST_DEVICE vec<T> permute(vec<T> a, vec<T> b, Index, std::integer_sequence<int, l...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, Index::at(l)...);
#else
    return __builtin_shuffle(a, b, typename VectorOf<T>::mask{Index::at(l)...});
#endif
}

template <class T, class Index>
RN_HOST_DEVICE vec<T> permute(vec<T> a, vec<T> b, Index index) {
    return permute<T>(a, b, index, std::make_integer_sequence<int, lanes<T>>{});
}

// Sum of the lanes, as a tree.
template <int half>
struct UpperHalf {
    static constexpr int at(int l) { return l < half ? l + half : l; }
};
template <class T, int half>
RN_HOST_DEVICE T sum_tree(vec<T> v) {
    v += permute<T>(v, v, UpperHalf<half>{});
    if constexpr (half > 1) return sum_tree<T, half / 2>(v);
    return v[0];
}
template <class T>
RN_HOST_DEVICE T sum(vec<T> v) {
    return sum_tree<T, lanes<T> / 2>(v);
}

// out[i] = sum of the lanes of v[i]; out has room for whole vectors. Every step adds neighbours and halves the number of
// vectors: first lanes within 128 bits, then 128 bits as a whole, because shuffles across them are dearer.
template <int W, int m, int odd>
struct NeighbourLanes {
    static constexpr int at(int l) { return l - l % m + (l % m < m / 2 ? 2 * (l % m) : W + 2 * (l % m) - m) + odd; }
};
template <int m, int odd>
struct NeighbourBlocks {
    static constexpr int at(int l) { return 2 * (l - l % m) + l % m + odd * m; }
};
template <class T, int width = lanes<T>, int n>
RN_HOST_DEVICE void sums(const vec<T> (&v)[n], T* out) {
    constexpr int W = lanes<T>, m = 16 / sizeof(T);
    if constexpr (width == 1) {
        RN_UNROLL for (int i = 0; i < n; ++i) store(out + i * W, v[i]);
    } else {
        vec<T> pairs[(n + 1) / 2];
        RN_UNROLL for (int i = 0; i < n; i += 2) {
            const vec<T> a = v[i], b = v[i + 1 < n ? i + 1 : i];
            if constexpr (width > W / m)
                pairs[i / 2] = permute<T>(a, b, NeighbourLanes<W, m, 0>{}) + permute<T>(a, b, NeighbourLanes<W, m, 1>{});
            else
                pairs[i / 2] = permute<T>(a, b, NeighbourBlocks<m, 0>{}) + permute<T>(a, b, NeighbourBlocks<m, 1>{});
        }
        sums<T, width / 2>(pairs, out);
    }
}

// Three vectors of xyzxyz... in memory order to one of x, y, z each, and back. The first step serves the lanes that lie
// in the first two inputs, the second step the rest.
template <int W, int c>
struct SplitFirst {
    static constexpr int at(int l) { return 3 * l + c < 2 * W ? 3 * l + c : 0; }
};
template <int W, int c>
struct SplitSecond {
    static constexpr int at(int l) { return 3 * l + c < 2 * W ? l : 3 * l + c - W; }
};
template <class T, int c>
RN_HOST_DEVICE vec<T> split_component(const vec<T> m[3]) {
    constexpr int W = lanes<T>;
    return permute<T>(permute<T>(m[0], m[1], SplitFirst<W, c>{}), m[2], SplitSecond<W, c>{});
}

template <int W, int m>
struct MergeFirst {
    static constexpr int at(int l) { return (m * W + l) % 3 == 1 ? W + (m * W + l) / 3 : (m * W + l) / 3; }
};
template <int W, int m>
struct MergeSecond {
    static constexpr int at(int l) { return (m * W + l) % 3 == 2 ? W + (m * W + l) / 3 : l; }
};
template <class T, int m>
RN_HOST_DEVICE vec<T> merge_part(const vec<T> xyz[3]) {
    constexpr int W = lanes<T>;
    return permute<T>(permute<T>(xyz[0], xyz[1], MergeFirst<W, m>{}), xyz[2], MergeSecond<W, m>{});
}

// As many points of p as there are lanes, stored xyzxyz..., as three vectors.
template <class T>
RN_HOST_DEVICE void split_points(const T* p, vec<T> xyz[3]) {
    const vec<T> m[3] = {load(p), load(p + lanes<T>), load(p + 2 * lanes<T>)};
    xyz[0] = split_component<T, 0>(m), xyz[1] = split_component<T, 1>(m), xyz[2] = split_component<T, 2>(m);
}

// And back.
template <class T>
RN_HOST_DEVICE void merge_points(const vec<T> xyz[3], T* p) {
    store(p, merge_part<T, 0>(xyz)), store(p + lanes<T>, merge_part<T, 1>(xyz)), store(p + 2 * lanes<T>, merge_part<T, 2>(xyz));
}

// The first `count` of them.
template <class T>
RN_HOST_DEVICE void store_points(T* p, index_t count, const vec<T> xyz[3]) {
    constexpr int W = lanes<T>;
    if (count >= W) return merge_points<T>(xyz, p);
    T padded[3 * W];
    merge_points<T>(xyz, padded);
    for (index_t i = 0; i < 3 * count; ++i) p[i] = padded[i];
}

}  // namespace
}  // namespace ringnet
