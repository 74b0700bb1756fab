#include "emulation.h"

#include <dlfcn.h>
#include <link.h>
#include <signal.h>
#include <ucontext.h>

#include <csetjmp>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {
constexpr std::size_t dynamic_capacity = 99 * 1024;  // what a block may have from sm_80 on, at least
}

namespace ringnet::cuda {
__align__(16) thread_local unsigned char dynamic_shared_memory[dynamic_capacity];
}

namespace {

using emulation::Place;
using ringnet::cuda::dynamic_shared_memory;

constexpr int warp_size = 32, most_threads = 1024;
constexpr std::size_t stack_bytes = 256 * 1024, default_shared_bytes = 48 * 1024;

struct Barrier {
    int arrived = 0;
    long passed = 0;
    Place place{};
};

struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
};

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool begun = false;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    bool finished = false;
    Barrier* waits_for = nullptr;  // until it has been passed more often than
    long passed = 0;
    int exchanges = 0;
    std::vector<Copy> copies;  // not yet waited for
};

struct Warp {
    Barrier barrier;
    alignas(16) char values[2][warp_size * emulation::exchange_bytes];  // two: the next exchange may begin while this one is read
};

// One launch at a time.
std::mutex launching;
std::deque<Fiber> fibers;  // a context must not move
std::vector<Warp> warps(most_threads / warp_size);
Barrier block_barrier;
int current;
const std::function<void()>* thread_body;
std::string failure;

int order, capability = 80;
std::string ignored;
std::set<std::string> places;
std::unordered_map<const void*, std::size_t> allowed_shared_bytes;

// ---- Fibers --------------------------------------------------------------------------------------------------------

// A context begins a fiber; from then on it is left and resumed with _setjmp and _longjmp, which make no system calls as swapcontext
// does. AddressSanitizer wants to be told about every switch, and takes a long jump for the end of a stack.
#if defined(__SANITIZE_ADDRESS__)
ucontext_t scheduler;
const void* scheduler_stack;
std::size_t scheduler_stack_bytes;

void to_scheduler() {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&fibers[current].context, &scheduler);
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void resume(Fiber& fiber) {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), stack_bytes);
    swapcontext(&scheduler, &fiber.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#else
jmp_buf scheduler_place;

void to_scheduler() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler_place, 1);
}

void resume(Fiber& fiber) {
    if (_setjmp(scheduler_place)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}
#endif

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    for (;;) {  // a thread of one block after the other
        (*thread_body)();
        fibers[current].finished = true;
        to_scheduler();
    }
}

void make_fibers(std::size_t count) {
    while (fibers.size() < count) {
        Fiber& fiber = fibers.emplace_back();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
}

// Ends the launch. Only the first failure counts: the others are its consequences.
void fail(const std::string& what) {
    if (failure.empty())
        failure =
            what + ", block " + std::to_string(blockIdx.x) + " of " + std::to_string(gridDim.x) + ", thread " + std::to_string(current);
    for (;;) to_scheduler();
}

void on_bad_address(int) { fail("an address that the process doesn't have"); }

// ---- Barriers ------------------------------------------------------------------------------------------------------

std::string text(Place place) {
    const std::string file = place.file;
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

bool is_ignored(Place place) {
    const std::string name = text(place);
    places.insert(name);
    return name == ignored;
}

void wait(Barrier& barrier, int members, Place place) {
    if (barrier.arrived > 0 && (barrier.place.line != place.line || std::strcmp(barrier.place.file, place.file) != 0))
        fail("threads meet at different barriers, " + text(barrier.place) + " and " + text(place));
    barrier.place = place;
    if (++barrier.arrived == members) {
        barrier.arrived = 0;
        ++barrier.passed;
        return;
    }
    Fiber& fiber = fibers[current];
    fiber.waits_for = &barrier;
    fiber.passed = barrier.passed;
    to_scheduler();
}

Warp& current_warp() { return warps[current / warp_size]; }

// ---- Launches ------------------------------------------------------------------------------------------------------

// This library's thread-local storage: all shared memory there is.
void fill_shared_memory() {
    dynamic_shared_memory[0] = 0;  // touched, so that it exists
    dl_iterate_phdr(
        [](dl_phdr_info* library, std::size_t, void*) {
            const auto here = reinterpret_cast<ElfW(Addr)>(&fill_shared_memory);
            bool ours = false;
            for (int i = 0; i < library->dlpi_phnum; ++i) {
                const auto& segment = library->dlpi_phdr[i];
                const auto begin = library->dlpi_addr + segment.p_vaddr;
                ours = ours || (segment.p_type == PT_LOAD && here >= begin && here < begin + segment.p_memsz);
            }
            for (int i = 0; ours && i < library->dlpi_phnum; ++i)
                if (library->dlpi_phdr[i].p_type == PT_TLS) std::memset(library->dlpi_tls_data, 0xff, library->dlpi_phdr[i].p_memsz);
            return ours ? 1 : 0;
        },
        nullptr);
}

void describe_deadlock() {
    std::string what = "no thread can go on:";
    int finished = 0;
    std::unordered_map<std::string, int> waiting;
    for (unsigned t = 0; t < blockDim.x; ++t) fibers[t].finished ? ++finished : ++waiting[text(fibers[t].waits_for->place)];
    for (const auto& [place, count] : waiting) what += " " + std::to_string(count) + " wait at " + place + ",";
    failure =
        what + " " + std::to_string(finished) + " have ended, block " + std::to_string(blockIdx.x) + " of " + std::to_string(gridDim.x);
}

std::vector<int> in_order(int count) {
    std::vector<int> turn(count);
    std::iota(turn.begin(), turn.end(), 0);
    if (order == 1) std::reverse(turn.begin(), turn.end());
    return turn;
}

// Every lane goes on to its next barrier; whether any could.
bool run_warp(int warp, const std::vector<int>& lane_turn) {
    bool moved = false;
    for (const int lane : lane_turn) {
        const int t = warp * warp_size + lane;
        Fiber& fiber = fibers[t];
        if (!failure.empty() || fiber.finished || (fiber.waits_for && fiber.waits_for->passed == fiber.passed)) continue;
        fiber.waits_for = nullptr;
        current = t;
        threadIdx = {static_cast<unsigned>(t), 0, 0};
        resume(fiber);
        moved = true;
    }
    return moved;
}

void run_block(std::size_t shared_bytes, std::mt19937& random) {
    const int threads = static_cast<int>(blockDim.x);
    fill_shared_memory();
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(dynamic_shared_memory + shared_bytes, dynamic_capacity - shared_bytes);
#endif
    block_barrier = {};
    for (Warp& warp : warps) warp.barrier = {};
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
        fiber.finished = false;
        fiber.waits_for = nullptr;
        fiber.exchanges = 0;
        fiber.copies.clear();
    }

    std::vector<int> warp_turn = in_order(threads / warp_size), lane_turn = in_order(warp_size);
    for (bool moved = true; moved;) {
        moved = false;
        if (order > 1) std::shuffle(warp_turn.begin(), warp_turn.end(), random);
        for (const int warp : warp_turn) {
            // Shuffled, all warps go on at one pace; else each goes as far ahead of the others as it can.
            if (order > 1) std::shuffle(lane_turn.begin(), lane_turn.end(), random);
            while (run_warp(warp, lane_turn)) {
                moved = true;
                if (order > 1) break;
            }
        }
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(dynamic_shared_memory, dynamic_capacity);
#endif
    if (!failure.empty()) return;
    if (!std::all_of(fibers.begin(), fibers.begin() + threads, [](const Fiber& fiber) { return fiber.finished; }))
        return describe_deadlock();
    const unsigned char* end = dynamic_shared_memory + dynamic_capacity;
    if (std::find_if(dynamic_shared_memory + shared_bytes, const_cast<unsigned char*>(end), [](unsigned char c) { return c != 0xff; }) !=
        end)
        failure = "dynamic shared memory written beyond its " + std::to_string(shared_bytes) + " bytes";
}

}  // namespace

namespace emulation {

cudaError_t allow_shared_bytes(const void* kernel, int bytes) {
    const std::lock_guard<std::mutex> lock(launching);
    const std::size_t most = capability < 80 ? 64 * 1024 : dynamic_capacity;
    if (bytes < 0 || static_cast<std::size_t>(bytes) > most) return cudaErrorInvalidValue;
    allowed_shared_bytes[kernel] = static_cast<std::size_t>(bytes);
    return cudaSuccess;
}

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
    const std::lock_guard<std::mutex> lock(launching);
    const auto allowed = allowed_shared_bytes.find(kernel);
    if (config.gridDim.x == 0 || config.blockDim.x == 0 || config.blockDim.x > most_threads || config.blockDim.x % warp_size != 0 ||
        config.dynamicSmemBytes > (allowed == allowed_shared_bytes.end() ? default_shared_bytes : allowed->second))
        return cudaErrorInvalidValue;
    gridDim = config.gridDim;
    blockDim = config.blockDim;
    make_fibers(blockDim.x);
    thread_body = &thread;
    failure.clear();
#if !defined(__SANITIZE_ADDRESS__)
    struct sigaction caught = {}, before_segv, before_bus;
    caught.sa_handler = on_bad_address;
    caught.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &caught, &before_segv);
    sigaction(SIGBUS, &caught, &before_bus);
#endif
    std::mt19937 random(static_cast<unsigned>(order));
    std::vector<int> block_turn = in_order(static_cast<int>(gridDim.x));
    if (order > 1) std::shuffle(block_turn.begin(), block_turn.end(), random);
    for (const int block : block_turn) {
        blockIdx = {static_cast<unsigned>(block), 0, 0};
        run_block(config.dynamicSmemBytes, random);
        if (!failure.empty()) break;
    }
#if !defined(__SANITIZE_ADDRESS__)
    sigaction(SIGSEGV, &before_segv, nullptr);
    sigaction(SIGBUS, &before_bus, nullptr);
#endif
    if (failure.empty()) return cudaSuccess;
    fibers.clear();  // some are in the middle of something
    return cudaErrorLaunchFailure;
}

const void* exchange(unsigned mask, const void* mine, std::size_t bytes, Place place) {
    if (mask != 0xffffffffu || bytes > exchange_bytes) fail("an exchange that the emulation doesn't know, " + text(place));
    Warp& warp = current_warp();
    char* values = warp.values[fibers[current].exchanges++ % 2];
    std::memcpy(values + current % warp_size * exchange_bytes, mine, bytes);
    wait(warp.barrier, warp_size, place);
    return values;
}

void copy_async(void* shared, const void* global, std::size_t bytes) {
    const auto misplaced = [bytes](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % bytes != 0; };
    if ((bytes != 4 && bytes != 8 && bytes != 16) || misplaced(shared) || misplaced(global)) fail("a copy of a wrong size or alignment");
    std::memset(shared, 0xff, bytes);
    fibers[current].copies.push_back({shared, global, bytes});
}

}  // namespace emulation

void __syncthreads(const char* file, int line) {
    if (!is_ignored({file, line})) wait(block_barrier, static_cast<int>(blockDim.x), {file, line});
}

void __syncwarp(unsigned mask, const char* file, int line) {
    if (mask != 0xffffffffu) fail("a mask that the emulation doesn't know, " + text({file, line}));
    if (!is_ignored({file, line})) wait(current_warp().barrier, warp_size, {file, line});
}

void ringnet::cuda::wait_copies(const char* file, int line) {
    if (is_ignored({file, line})) return;
    for (const Copy& copy : fibers[current].copies) std::memcpy(copy.to, copy.from, copy.bytes);
    fibers[current].copies.clear();
}

const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaSuccess ? "cudaSuccess" : error == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "cudaErrorLaunchFailure";
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorLaunchFailure ? failure.c_str() : cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
    std::memset(address, value, bytes);
    return cudaSuccess;
}

void emulation_set_order(int value) { order = value; }
void emulation_set_capability(int value) { capability = value; }
void emulation_ignore(const char* place) { ignored = place; }
const char* emulation_places() {
    static std::string all;
    all.clear();
    for (const std::string& place : places) all += (all.empty() ? "" : " ") + place;
    return all.c_str();
}
