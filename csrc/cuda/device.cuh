// Small pieces that every kernel uses: 16-byte vectors, asynchronous copies, groups of threads.
#pragma once

#include "check.cuh"

namespace ringnet::cuda {

constexpr int lanes = 32;

// What one load or store instruction moves at most: 16 bytes. Addresses must be 16-byte aligned.
template <class T>
struct alignas(16) Vec {
    static constexpr int size = 16 / sizeof(T);
    T v[size];
};

template <class T>
__device__ __forceinline__ Vec<T> load_vec(const T* address) {
    return *reinterpret_cast<const Vec<T>*>(address);
}

template <class T>
__device__ __forceinline__ void store_vec(T* address, const Vec<T>& value) {
    *reinterpret_cast<Vec<T>*>(address) = value;
}

// What CUDA has no function for. A host compiler, which runs the kernels in tests/cuda_emulation, finds these there.
#if defined(__CUDACC__)

// threadIdx.x and blockIdx.x, read anew: the compiler keeps nothing that is computed from them in registers from one use to the next.
__device__ __forceinline__ unsigned fresh_thread_index() {
    unsigned t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}
__device__ __forceinline__ unsigned fresh_block_index() {
    unsigned block;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    return block;
}

// Reads of shared memory after this are not begun before it: fewer values wait in registers.
__device__ __forceinline__ void finish_reads() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// d += a b of a warp, on tensor cores (sm_80 on): a 16 x 8 row by row and b 8 x 8 column by column, of 11-bit numbers whose bits below are not
// looked at; d 16 x 8. The PTX manual has which lane holds what.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    (void)d, (void)a, (void)b;
    __trap();  // never launched there
#endif
}

// Global to shared memory without passing through registers (sm_80 on); complete after wait_copies and a barrier.
// Value is a scalar of 4 or 8 bytes or a Vec.
template <class Value>
__device__ __forceinline__ void copy_async(Value* shared, const Value* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (sizeof(Value) == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(sizeof(Value)) : "memory");
#else
    *shared = *global;
#endif
}

// Waits for this thread's copies, all of them. Other threads see them after the next barrier.
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#endif

// Threads that work on the same thing together.
struct Warp {
    __device__ int rank() const { return static_cast<int>(threadIdx.x) % lanes; }
    __device__ int size() const { return lanes; }
    __device__ void sync() const { __syncwarp(); }
};

struct Block {
    __device__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ int size() const { return static_cast<int>(blockDim.x); }
    __device__ void sync() const { __syncthreads(); }
};

// A kernel's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
    return reinterpret_cast<T*>(dynamic_shared_memory);
}

}  // namespace ringnet::cuda
