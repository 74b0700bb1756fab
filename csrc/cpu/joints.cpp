// Joints as weighted sums of vertices.
#include <vector>

#include "../ops.h"
#include "threads.h"

namespace ringnet::cpu {

// Every sum in the order of the vertices, whatever the number of threads; a library's matrix product doesn't promise that.
template <class T>
void regress_joints(const JointRegression<T>& p, int threads) {
    constexpr index_t width = 64;
    const index_t pieces = ceil_div(p.M, width);
    std::vector<std::vector<index_t>> vertices(p.J);  // that a joint depends on, a few
    for (index_t j = 0; j < p.J; ++j)
        for (index_t v = 0; v < p.V; ++v)
            if (p.regressor[j * p.V + v] != T(0)) vertices[j].push_back(v);
    Team(threads, double(p.B) * p.V * p.M).each(p.B * p.J * pieces, [&](index_t piece) {
        const index_t row = piece / pieces, j = row % p.J, m0 = piece % pieces * width, m = min_of(width, p.M - m0);
        const T* values = p.values + row / p.J * p.values_stride + m0;
        double sums[width] = {};
        for (const index_t v : vertices[j])
            for (index_t i = 0; i < m; ++i) sums[i] += double(p.regressor[j * p.V + v]) * values[v * p.M + i];
        for (index_t i = 0; i < m; ++i) p.joints[row * p.M + m0 + i] = static_cast<T>(sums[i]);
    });
}

template void regress_joints<float>(const JointRegression<float>&, int);
template void regress_joints<double>(const JointRegression<double>&, int);

}  // namespace ringnet::cpu
