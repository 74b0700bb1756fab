// Triangle meshes on their way into files: normals, and numbers as text.
#include "../mesh.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace ringnet::cpu {
namespace {

constexpr double most = 1e15, to_whole = 0x1p52;  // what is added to it, and taken away again, is a whole number then

constexpr index_t word_most = 4;

// "00" to "99", one after the other.
struct Pairs {
    char text[200];
    constexpr Pairs() : text() {
        for (int i = 0; i < 100; ++i) text[2 * i] = static_cast<char>('0' + i / 10), text[2 * i + 1] = static_cast<char>('0' + i % 10);
    }
};
constexpr Pairs pairs;

inline void four_digits(std::uint32_t value, char* text) {
    std::memcpy(text, pairs.text + 2 * (value / 100), 2);
    std::memcpy(text + 2, pairs.text + 2 * (value % 100), 2);
}

inline char* whole_digits(std::uint64_t value, char* text) {
    if (value < 10) {
        *text = static_cast<char>('0' + value);
        return text + 1;
    }
    char digits[20], *begin = digits + sizeof(digits);
    for (; value; value /= 10) *--begin = static_cast<char>('0' + value % 10);
    const index_t count = digits + sizeof(digits) - begin;
    std::memcpy(text, begin, count);
    return text + count;
}

template <int decimals, class T>
index_t lines(const NumberLines<T>& p, char* const text) {
    constexpr std::uint64_t unit = decimals == 4 ? 10'000 : 100'000'000;
    char *to = text, word[word_most] = {};
    std::memcpy(word, p.word, p.word_size);
    for (index_t row = 0; row < p.rows; ++row) {
        std::memcpy(to, word, word_most);
        to += p.word_size;
        for (index_t column = 0; column < p.columns; ++column) {
            const double value = p.numbers[row * p.columns + column], scaled = std::fabs(value) * double(unit);
            if (!(scaled < most)) return -1;  // so is what isn't a number
            const auto number = static_cast<std::uint64_t>(scaled + to_whole - to_whole);
            *to++ = ' ';
            *to = '-';
            to += value < 0 && number > 0;
            to = whole_digits(number / unit, to);
            *to++ = '.';
            const auto part = static_cast<std::uint32_t>(number % unit);
            if constexpr (decimals == 8) four_digits(part / 10'000, to), to += 4;
            four_digits(part % 10'000, to), to += 4;
        }
        *to++ = '\n';
    }
    return to - text;
}

}  // namespace

template <class T>
void vertex_normals(const VertexNormals<T>& p) {
    std::vector<double> sums(3 * p.V);
    for (index_t f = 0; f < p.F; ++f) {
        const std::int64_t* corners = p.triangles + 3 * f;
        const T *a = p.vertices + 3 * corners[0], *b = p.vertices + 3 * corners[1], *c = p.vertices + 3 * corners[2];
        const T u[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]}, v[3] = {c[0] - a[0], c[1] - a[1], c[2] - a[2]};
        const T normal[3] = {u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]};
        for (int corner = 0; corner < 3; ++corner)
            for (int i = 0; i < 3; ++i) sums[3 * corners[corner] + i] += normal[i];
    }
    for (index_t v = 0; v < p.V; ++v) {
        const double* sum = sums.data() + 3 * v;
        const double length = std::sqrt(sum[0] * sum[0] + sum[1] * sum[1] + sum[2] * sum[2]),
                     inverse = 1 / (length > 1e-20 ? length : 1e-20);
        for (int i = 0; i < 3; ++i) p.normals[3 * v + i] = static_cast<T>(sum[i] * inverse);
    }
}

template <class T>
index_t number_lines_size(const NumberLines<T>& p) {
    return p.rows * (p.word_size + 1 + p.columns * 18) + word_most;  // a space, a sign, a point and 15 digits
}

template <class T>
index_t number_lines(const NumberLines<T>& p, char* text) {
    return p.decimals == 4 ? lines<4>(p, text) : lines<8>(p, text);
}

template void vertex_normals<float>(const VertexNormals<float>&);
template void vertex_normals<double>(const VertexNormals<double>&);
template index_t number_lines_size<float>(const NumberLines<float>&);
template index_t number_lines_size<double>(const NumberLines<double>&);
template index_t number_lines<float>(const NumberLines<float>&, char*);
template index_t number_lines<double>(const NumberLines<double>&, char*);

}  // namespace ringnet::cpu
