// Threads and their scratch memory.
#pragma once

#include <cstdlib>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../common.h"

namespace ringnet {
namespace {

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

// Threads worth starting for so many multiply-adds: starting one costs about a microsecond.
inline int useful_threads(int threads, double multiply_adds) {
    const double worth = 1 + multiply_adds / 30000;
    return worth < threads ? static_cast<int>(worth) : threads;
}

}  // namespace
}  // namespace ringnet
