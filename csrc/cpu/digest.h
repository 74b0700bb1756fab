// Digests of memory: they tell whether values are as they were, at about the speed of reading them.
#pragma once

#include "../ops.h"
#include "simd.h"
#include "threads.h"

namespace ringnet {
namespace {

// One row of 64 bytes after the other is added to eight sums, which are rotated by 13 bits after each: so of few words that differ every
// one shows, wherever it is. Rows are shared out among chains, which don't wait for each other: each rotates once for all of them. Memory
// is asked for 2 KiB ahead: without that the sums take a tenth longer.
struct Digest {
    typedef std::uint64_t Words __attribute__((vector_size(RN_VECTOR_BYTES)));
    static constexpr int row = 64, vectors = row / RN_VECTOR_BYTES, chains = RN_VECTOR_BYTES == 16 ? 2 : 4, turn = 13;

    static Words rotated(Words w, int bits) { return bits ? w << bits | w >> (64 - bits) : w; }

    static void add(Words (&sums)[vectors], const unsigned char* p, int bits) {
        RN_UNROLL
        for (int v = 0; v < vectors; ++v) {
            Words w;
            std::memcpy(&w, p + v * RN_VECTOR_BYTES, RN_VECTOR_BYTES);
            sums[v] = rotated(sums[v] + w, bits);
        }
    }
    RN_KERNEL static std::uint64_t of(const unsigned char* p, index_t bytes) {
        const unsigned char* const end = p + bytes;
        Words sums[chains][vectors] = {};
        for (; p + chains * row <= end; p += chains * row) {
            RN_UNROLL
            for (int c = 0; c < chains; ++c) __builtin_prefetch(p + c * row + 2048), add(sums[c], p + c * row, chains * turn);
        }
        Words total[vectors] = {};
        RN_UNROLL
        for (int c = 0; c < chains; ++c)
            for (int v = 0; v < vectors; ++v) total[v] += rotated(sums[c][v], (chains - 1 - c) * turn);
        for (; p + row <= end; p += row) add(total, p, turn);
        if (p < end) {
            unsigned char padded[row] = {};
            std::memcpy(padded, p, end - p);
            add(total, padded, turn);
        }
        std::uint64_t words[row / 8], digest = 0;
        std::memcpy(words, total, row);
        for (const std::uint64_t w : words) digest = (digest ^ w) * 0x9E3779B97F4A7C15u, digest ^= digest >> 29;
        return digest;
    }
};

void digests(const unsigned char* memory, index_t bytes, std::uint64_t* digest, int threads) {
    Team(threads, double(bytes)).each(ceil_div(bytes, cpu::digest_piece), [=](index_t i) {
        const index_t begin = i * cpu::digest_piece;
        digest[i] = Digest::of(memory + begin, min_of(cpu::digest_piece, bytes - begin));
    });
}

}  // namespace
}  // namespace ringnet
