// What this machine can do at all: multiply-adds from registers, and bytes moved. Compiled by limits.py where it runs.
#include <chrono>
#include <cstddef>
#include <cstring>

#if defined(__AVX512F__)
#define BYTES 64
#define REGISTER "+v"
constexpr int chains = 24;
#elif defined(__AVX__)
#define BYTES 32
#define REGISTER "+x"
constexpr int chains = 12;
#else
#define BYTES 16
#define REGISTER "+x"
constexpr int chains = 12;
#endif
typedef float vec __attribute__((vector_size(BYTES)));

namespace {
double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace

// Seconds for at least `*flops` floating-point operations on `threads` threads; says how many they were.
extern "C" double fma_seconds(double* flops, int threads) {
    const long steps = static_cast<long>(*flops / threads / (2.0 * chains * BYTES / 4)) + 1;
    *flops = 2.0 * chains * (BYTES / 4) * steps * threads;
    const double start = seconds();
#pragma omp parallel num_threads(threads)
    {
        vec a[chains], x = vec{} + 0.999999f, y = vec{} + 1e-7f;
        asm volatile("" : REGISTER(x), REGISTER(y));
#pragma GCC unroll 24
        for (int i = 0; i < chains; ++i) a[i] = vec{} + static_cast<float>(i);
        for (long n = 0; n < steps; ++n) {
#pragma GCC unroll 24
            for (int i = 0; i < chains; ++i) {
                a[i] = a[i] * x + y;
                asm volatile("" : REGISTER(a[i]));  // keeps the chains as written: enough to hide the latency
            }
        }
    }
    return seconds() - start;
}

// Seconds to read `read` bytes and to write `written` bytes, both split over the threads.
extern "C" double stream_seconds(const char* from, size_t read, char* to, size_t written, int threads) {
    const size_t part = read / threads / 256 * 256, target = written / threads / 256 * 256;
    const double start = seconds();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
        const char* p = from + t * part;
        vec sum[256 / BYTES] = {};
        for (size_t i = 0; i < part; i += 256)
#pragma GCC unroll 16
            for (int j = 0; j < 256 / BYTES; ++j) {
                vec v;
                std::memcpy(&v, p + i + j * BYTES, BYTES);
                sum[j] += v;
            }
        for (vec& s : sum) asm volatile("" : REGISTER(s));
        if (target) std::memset(to + t * target, 0, target);
    }
    return seconds() - start;
}
