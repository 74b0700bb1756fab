// Big buffers, used again. From 32 MiB on, malloc asks the system for every buffer and gives it back at once, and the system fills
// every page with zeros before it is written, which takes a fifth of a forward pass, and where it has no huge pages to spare, or is
// a virtual machine whose host must find them first, as long as the kernels and longer.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ringnet {
namespace {

namespace py = pybind11;

// Memory with Python's buffer protocol. What the last two leave behind, a call's results and its state, is kept for the next ones of
// about their size; meanwhile the system may have the pages if it runs short of them.
class Buffer {
  public:
    explicit Buffer(std::size_t bytes) : memory_(take(bytes)), bytes_(bytes) {}
    ~Buffer() { spare().give(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    py::buffer_info info() const {
        return {memory_.start, 1, py::format_descriptor<unsigned char>::format(), static_cast<py::ssize_t>(bytes_)};
    }
    static void release_spare() { spare().release(); }

  private:
    struct Memory {
        void* start = nullptr;
        std::size_t size = 0;
    };
    class Spare {
      public:
        Memory take(std::size_t bytes) {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (Memory& memory : memories_)
                if (memory.size >= bytes && memory.size / 2 <= bytes) return std::exchange(memory, {});
            return {};
        }
        void give(Memory memory) {
#if defined(__linux__) && defined(MADV_FREE)
            if (memory.start) (void)madvise(memory.start, memory.size, MADV_FREE);
#endif
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                if (memories_[0].start) std::swap(memories_[0], memories_[1]);
                std::swap(memory, memories_[0]);
            }
            std::free(memory.start);
        }
        void release() {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (Memory& memory : memories_) std::free(std::exchange(memory, {}).start);
        }

      private:
        std::mutex mutex_;
        Memory memories_[2];  // the later one first
    };
    static Spare& spare() {
        static Spare* const spare = new Spare;  // buffers may outlive any order of destruction
        return *spare;
    }
    static Memory take(std::size_t bytes) {
        if (const Memory used = spare().take(bytes); used.start) return used;
        constexpr std::size_t page = std::size_t(2) << 20;  // a huge one's size
        const std::size_t size = (bytes + page - 1) / page * page;
        void* const start = std::aligned_alloc(page, size);
        if (!start) throw std::bad_alloc();
        return {start, size};
    }

    Memory memory_;
    std::size_t bytes_;
};

}  // namespace
}  // namespace ringnet
