// A host version of the CUDA runtime, as much of it as csrc/cuda uses: the sources there compile unchanged with a host compiler and
// their kernels run as written, a fiber per thread, one block after the other. What it notices, and in which order threads run:
// emulation.h. What it can't see: speed, registers, and memory ordering where a barrier is there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// The one storage class that can be written as CUDA's is, in front of an array in a function and after `extern`. And nothing else
// in this library is thread-local, so its thread-local storage is the shared memory, and can be filled with NaN before each block.
#define __shared__ thread_local

using std::max;
using std::min;

inline std::uint32_t __float_as_uint(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern uint3 threadIdx, blockIdx;  // of the fiber that runs
extern dim3 blockDim, gridDim;

// ---- Errors, device, memory ---------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure };
const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);  // of a launch failure: what was noticed
cudaError_t cudaGetLastError();

using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device);
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t);

// ---- Launching ----------------------------------------------------------------------------------------------------

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

namespace emulation {
cudaError_t allow_shared_bytes(const void* kernel, int bytes);
cudaError_t run(const cudaLaunchConfig_t&, const void* kernel, const std::function<void()>& thread);
}  // namespace emulation

struct cudaFuncAttributes {
    int ptxVersion;
};
template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Parameters...)) {  // code for this device
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    attributes->ptxVersion = 10 * major + minor;
    return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
    return emulation::allow_shared_bytes(reinterpret_cast<const void*>(kernel), value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
    const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
    return emulation::run(*config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, values); });
}

// ---- What threads do together. The place of the call is part of it: threads that meet must be at the same one. -------

namespace emulation {

struct Place {
    const char* file;
    int line;
};
// A warp's 32 values; valid until its next exchange but one.
const void* exchange(unsigned mask, const void* mine, std::size_t bytes, Place);
constexpr std::size_t exchange_bytes = 64;  // from one lane's value to the next

template <class Value>
const Value& lane_value(const void* warp, int lane) {
    return *reinterpret_cast<const Value*>(static_cast<const char*>(warp) + lane * exchange_bytes);
}

}  // namespace emulation

void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE());
void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE());

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int step, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    const void* warp = emulation::exchange(mask, &value, sizeof value, {file, line});
    return emulation::lane_value<Value>(warp, static_cast<int>(threadIdx.x % 32) ^ step);
}

inline int __any_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    const void* warp = emulation::exchange(mask, &predicate, sizeof predicate, {file, line});
    for (int lane = 0; lane < 32; ++lane)
        if (emulation::lane_value<int>(warp, lane)) return 1;
    return 0;
}

// ---- What csrc/cuda/device.cuh has as PTX ---------------------------------------------------------------------------

namespace emulation {
void copy_async(void* shared, const void* global, std::size_t bytes);
}

namespace ringnet::cuda {

inline unsigned fresh_thread_index() { return threadIdx.x; }
inline unsigned fresh_block_index() { return blockIdx.x; }
inline void finish_reads() {}

// The destination is NaN from here until the thread waits for its copies.
template <class Value>
void copy_async(Value* shared, const Value* global) {
    emulation::copy_async(shared, global, sizeof(Value));
}
void wait_copies(const char* file = __builtin_FILE(), int line = __builtin_LINE());

void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const char* file = __builtin_FILE(),
              int line = __builtin_LINE());

}  // namespace ringnet::cuda
