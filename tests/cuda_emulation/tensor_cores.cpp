// mma.sync.aligned.m16n8k8 with tf32 operands, as a pessimist's tensor core: products are exact, but the nine addends of an element are
// cut to the 24 bits that the largest of them has, and so is their sum. Cards keep a bit or more beyond these.
#include "cuda_runtime.h"

namespace {

float tf32(std::uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); }  // the low 13 bits are not looked at

constexpr int bias = 1023, fraction_bits = 52, most = 0x7ff;  // of a double
int exponent_field(double x) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<int>(bits >> fraction_bits & most);
}
double power_of_two(int exponent) {
    const std::uint64_t bits = static_cast<std::uint64_t>(exponent + bias) << fraction_bits;
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

float truncating_sum(const double (&addends)[9]) {
    int largest = 0;
    for (const double x : addends) largest = std::max(largest, exponent_field(x));
    if (largest == 0 || largest == most) {  // nothing but zeros; something that isn't a number
        double plain = 0;
        for (const double x : addends) plain += x;
        return static_cast<float>(plain);
    }
    const int unit = largest - bias - 23;
    const double scale = power_of_two(-unit);
    std::int64_t sum = 0;
    for (const double x : addends) sum += static_cast<std::int64_t>(x * scale);
    std::uint64_t magnitude = static_cast<std::uint64_t>(sum < 0 ? -sum : sum);
    const int excess = magnitude >> 24 ? 40 - __builtin_clzll(magnitude) : 0;
    magnitude = magnitude >> excess << excess;
    const double result = static_cast<double>(magnitude) * power_of_two(unit);
    return static_cast<float>(sum < 0 ? -result : result);
}

struct Fragments {
    std::uint32_t a[4], b[2];
};

}  // namespace

namespace ringnet::cuda {

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
