// What a test can ask of the emulation. C, for ctypes.
//
// Noticed, as a launch failure: a barrier that only some threads of its block or warp reach, or that meets another; a thread that
// ends while others wait for it; addresses that the process doesn't have (any address outside its buffer under
// AddressSanitizer); dynamic shared memory written beyond its end, or more of it than the kernel asked for. Not noticed as such,
// but spoiling results: reading shared memory that nobody wrote in this block, or the destination of a copy nobody waited for.
#pragma once

#include <cstdint>

extern "C" {

// The order in which blocks, warps and lanes run: 0 ascending, 1 descending, each warp as far ahead of the others as barriers let it;
// else shuffled with this seed, afresh at every barrier, warps side by side.
void emulation_set_order(int order);
// 10 * major + minor.
void emulation_set_capability(int capability);
// The places of barriers and waits that have been passed since the start, "file:line", separated by blanks.
const char* emulation_places();
// Makes a fault: the barrier or wait at "file:line" does nothing. "" for none.
void emulation_ignore(const char* place);
// How the mesh's kernel for these sizes, in float32, is launched. values: whether it is that for small batches; of blocks, threads and bytes of
// shared memory per block; of tiles per block, and of tiles of all groups of batch elements. (forward at larger batches: nothing of use.)
void emulation_plan(int backward, std::int64_t B, std::int64_t V, std::int64_t K, std::int64_t J, std::int64_t* values);
}
