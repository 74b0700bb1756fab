// Threads, the state that a kernel wants them in, and their scratch memory.
#pragma once

#include <cstdlib>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../common.h"

namespace ringnet {
namespace {

// While it lives, its thread takes subnormal numbers (in single precision those below 1.2e-38) for zero, operands and results: many
// processors need a hundred times as long for them, and a smooth direction has some far from where it acts.
class FlushSubnormals {
  public:
#if defined(__SSE__)
    FlushSubnormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }  // results, operands
    ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before_); }
#else
    FlushSubnormals() {}
    ~FlushSubnormals() {}
#endif
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;

  private:
    [[maybe_unused]] unsigned before_ = 0;
};

// Scratch of one thread, on a cache line of its own.
template <class T>
class Scratch {
  public:
    explicit Scratch(index_t size) : memory_(std::aligned_alloc(64, round_up(size * index_t(sizeof(T)) + 64, 64))) {
        if (!memory_) throw std::bad_alloc();
    }
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* data() { return static_cast<T*>(memory_); }

  private:
    void* memory_;
};

// Pieces of work [0, n), shared out among threads. Each begins with its own share, the same at every call and much the same
// forward and backward, for what it wrote or read there the last time may still be in its cache; then it helps the others.
class Shares {
  public:
    Shares(index_t n, int threads) : threads_(threads), memory_(threads) {
        for (index_t t = 0; t < threads; ++t) memory_.data()[t] = {n * t / threads, n * (t + 1) / threads};
    }

    // On every thread of the team: runs work(piece) until none is left. Returns before the others have finished theirs.
    template <class Work>
    void run(const Work& work) {
#if defined(_OPENMP)
        const int own = omp_get_thread_num();
#else
        const int own = 0;
#endif
        for (int i = 0; i < threads_; ++i) {
            Share& share = memory_.data()[(own + i) % threads_];
            for (index_t piece; (piece = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED)) < share.end;) work(piece);
        }
    }

  private:
    struct alignas(64) Share {
        index_t next, end;
    };
    int threads_;
    Scratch<Share> memory_;
};

// Threads worth starting for so many multiply-adds: starting one costs about a microsecond.
inline int useful_threads(int threads, double multiply_adds) {
    const double worth = 1 + multiply_adds / 30000;
    return worth < threads ? static_cast<int>(worth) : threads;
}

}  // namespace
}  // namespace ringnet
