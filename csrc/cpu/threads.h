// Threads, the state that a kernel wants them in, and their scratch memory.
#pragma once

#include <cstdlib>
#include <new>

#include "../common.h"

namespace ringnet {

// One of the threads that share a call's work; number 0 is the caller.
struct Member {
    int number, of;
    double share = 1.0 / of;  // of the call's work that it has done, as far as it knows
    double waited = 0;        // microseconds, the caller's

    void barrier();  // returns when all have come here

    // Runs work(i) for this thread's part of [0, n).
    template <class Work>
    void each(index_t n, const Work& work) const {
        const index_t end = n * (number + 1) / of;
        for (index_t i = n * number / of; i < end; ++i) work(i);
    }
};

// The caller and the threads that help it: OpenMP's, from the pool that torch uses. Only as many as pay for the work.
class Team {
  public:
    Team(int threads, double multiply_adds);
    int size() const { return size_; }

    // Runs work(member) on each thread and returns when all have done. work must not throw: an exception can't leave its thread,
    // so that memory is asked for before.
    template <class Work>
    void run(const Work& work) {
        start([](const void* what, Member& member) { (*static_cast<const Work*>(what))(member); }, &work);
    }

    // Runs work(i) for i in [0, n), an equal part on each thread.
    template <class Work>
    void each(index_t n, const Work& work) {
        run([&](const Member& member) { member.each(n, work); });
    }

  private:
    void start(void (*work)(const void*, Member&), const void* what);
    int size_;
};

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

// Scratch memory for each thread of a team, on cache lines of its own.
template <class T>
class Scratch {
  public:
    explicit Scratch(index_t size, int threads = 1)
        : pitch_(round_up(size * index_t(sizeof(T)) + 64, 64)), memory_(std::aligned_alloc(64, threads * pitch_)) {
        if (!memory_) throw std::bad_alloc();
    }
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* data(int thread = 0) { return reinterpret_cast<T*>(static_cast<char*>(memory_) + thread * pitch_); }

  private:
    index_t pitch_;
    void* memory_;
};

// Pieces of work [0, n), shared out among a team. Each thread begins with its own share, the same at every call and much the same
// forward and backward, for what it wrote or read there the last time may still be in its cache; then it helps the others.
class Shares {
  public:
    Shares(index_t n, int threads) : n_(n), threads_(threads), memory_(threads) {
        for (index_t t = 0; t < threads; ++t) memory_.data()[t] = {n * t / threads, n * (t + 1) / threads};
    }

    // On every thread of the team: runs work(piece) until none is left. Returns before the others have finished theirs.
    template <class Work>
    void run(Member& member, const Work& work) {
        index_t done = 0;
        for (int i = 0; i < threads_; ++i) {
            Share& share = memory_.data()[(member.number + i) % threads_];
            for (index_t piece; (piece = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED)) < share.end; ++done) work(piece);
        }
        if (done > 0) member.share = double(done) / double(n_);
    }

  private:
    struct alignas(64) Share {
        index_t next, end;
    };
    index_t n_;
    int threads_;
    Scratch<Share> memory_;
};

}  // namespace
}  // namespace ringnet
