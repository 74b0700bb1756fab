// Launching kernels. Errors are thrown with the CUDA error's name.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <stdexcept>
#include <string>

#include "../ops.h"

namespace ringnet::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // the error is reported here: it must not surface again in somebody else's call
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

// Of the current device, 10 * major + minor. Two look-ups in what the runtime knows: no synchronisation, right in a captured graph.
inline int compute_capability(const char* name) {
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), name);
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), name);
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), name);
    return 10 * major + minor;
}

// Launches a kernel with a one-dimensional grid on the given stream. Nothing is launched where blocks == 0.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), index_t blocks, int threads, std::size_t shared_bytes, stream_t stream,
            Arguments&&... arguments) {
    if (blocks == 0) return;
    if (blocks > 0x7fffffff)
        throw std::runtime_error(std::string(name) + ": " + std::to_string(blocks) + " thread blocks, more than one launch takes");
    if (shared_bytes > 46 * 1024)  // with its static arrays, more than 48 kB: a kernel must ask
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)), name);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace ringnet::cuda
