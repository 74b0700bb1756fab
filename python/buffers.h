// Memory that nobody needs for the moment.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ringnet {
namespace {

// Lets the system have the pages that lie within, if it runs short of them before they are written again. Their values are lost.
inline void discard([[maybe_unused]] std::uintptr_t address, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_FREE)
    constexpr std::uintptr_t page = 65536;  // the largest in use
    const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
    if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_FREE);
#endif
}

}  // namespace
}  // namespace ringnet
