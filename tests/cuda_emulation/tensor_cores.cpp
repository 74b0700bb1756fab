// mma.sync.aligned.m16n8k8 with tf32 operands, as a pessimist's tensor core: products are exact, but the nine addends of an element are
// cut to the 24 bits that the largest of them has, and so is their sum. Cards keep a bit or more beyond these.
#include "cuda_runtime.h"

namespace {

typedef float Floats __attribute__((vector_size(16)));  // a lane's four elements
typedef std::int32_t Ints __attribute__((vector_size(16)));

float tf32(std::uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); }  // the low 13 bits are not looked at

constexpr int fraction_bits = 23, bias = 127, most = 0xff;  // of a float
Ints exponent_fields(Floats x) { return reinterpret_cast<Ints>(x) >> fraction_bits & most; }
Floats powers_of_two(Ints exponents) { return reinterpret_cast<Floats>((exponents + bias) << fraction_bits); }

Floats truncating_sums(const Floats (&addends)[9]) {
    Ints largest = {};
    for (const Floats x : addends) {
        const Ints e = exponent_fields(x);
        largest = e > largest ? e : largest;
    }
    const Ints unit = largest - bias - fraction_bits;
    Ints sum = {};
    for (const Floats x : addends) sum += __builtin_convertvector(x * powers_of_two(-unit), Ints);
    Ints magnitude = sum < 0 ? -sum : sum, excess = {};
    for (int bit = 24; bit < 28; ++bit) excess -= magnitude >= 1 << bit;  // true is -1
    magnitude = magnitude >> excess << excess;
    const Floats result = __builtin_convertvector(magnitude, Floats) * powers_of_two(unit);
    Floats sums = sum < 0 ? -result : result;
    for (int i = 0; i < 4; ++i) {
        if (largest[i] > 2 * fraction_bits && largest[i] < most) continue;
        sums[i] = 0;  // nothing that 2^-100 wouldn't hide, or something that isn't a number
        for (const Floats x : addends) sums[i] += x[i];
    }
    return sums;
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
    const int lane = static_cast<int>(threadIdx.x % 32), row = lane / 4, column = lane % 4 * 2;  // and the row 8 below, the column beside
    Floats addends[9] = {{d[0], d[1], d[2], d[3]}};
    for (int k = 0; k < 8; ++k) {
        const auto& rows = emulation::lane_value<Fragments>(warp, row * 4 + k % 4);
        const auto& left = emulation::lane_value<Fragments>(warp, column * 4 + k % 4);
        const auto& right = emulation::lane_value<Fragments>(warp, column * 4 + 4 + k % 4);
        const float upper = tf32(rows.a[k / 4 * 2]), lower = tf32(rows.a[k / 4 * 2 + 1]);
        const float of_left = tf32(left.b[k / 4]), of_right = tf32(right.b[k / 4]);
        addends[1 + k] = Floats{upper, upper, lower, lower} * Floats{of_left, of_right, of_left, of_right};  // 22 bits: exact
    }
    const Floats sums = truncating_sums(addends);
    for (int i = 0; i < 4; ++i) d[i] = sums[i];
}

}  // namespace ringnet::cuda
