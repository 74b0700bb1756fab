// mma.sync.aligned.m16n8k8 with tf32 operands, as a pessimist's tensor core: products are exact, but the nine addends of an element are
// cut to the 24 bits that the largest of them has, and so is their sum. Cards keep a bit or more beyond these.
#include "cuda_runtime.h"

namespace {

std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

float tf32(std::uint32_t bits) {  // the low 13 bits are not looked at
    bits &= 0xffffe000u;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

float truncating_sum(const double (&addends)[9]) {
    int largest = -2000;
    double plain = 0;
    for (const double x : addends) {
        plain += x;
        if (x != 0) largest = std::max(largest, std::isfinite(x) ? std::ilogb(x) : 2000);
    }
    if (largest == -2000 || largest == 2000) return static_cast<float>(plain);
    const double scale = std::ldexp(1.0, 23 - largest);
    std::int64_t sum = 0;
    for (const double x : addends) sum += static_cast<std::int64_t>(x * scale);
    std::int64_t magnitude = sum < 0 ? -sum : sum;
    int shift = 0;
    while (magnitude >> shift >= std::int64_t(1) << 24) ++shift;
    magnitude = magnitude >> shift << shift;
    return static_cast<float>(std::ldexp(static_cast<double>(sum < 0 ? -magnitude : magnitude), largest - 23));
}

struct Fragments {
    std::uint32_t a[4], b[2];
};

}  // namespace

namespace ringnet::cuda {

std::uint32_t to_tf32(float x) { return std::isfinite(x) ? (bits_of(x) + 0x1000u) & 0xffffe000u : bits_of(x); }  // ties away from zero

void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const char* file, int line) {
    Fragments mine;
    std::copy(a, a + 4, mine.a);
    std::copy(b, b + 2, mine.b);
    const void* warp = emulation::exchange(0xffffffffu, &mine, sizeof mine, {file, line});
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double addends[9] = {d[i]};
        for (int k = 0; k < 8; ++k) {
            const auto& of_a = emulation::lane_value<Fragments>(warp, row % 8 * 4 + k % 4);
            const auto& of_b = emulation::lane_value<Fragments>(warp, column * 4 + k % 4);
            addends[1 + k] = static_cast<double>(tf32(of_a.a[row / 8 + k / 4 * 2])) * tf32(of_b.b[k / 4]);
        }
        d[i] = truncating_sum(addends);
    }
}

}  // namespace ringnet::cuda
