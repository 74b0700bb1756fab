// The CPU's operators without Python: random models of odd sizes against the same formulas written out in double, gradients
// against central differences of these. Prints what was checked; fails with the first thing that is off.
//
//     operators [MODELS]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "contour.h"
#include "ops.h"

using namespace ringnet;
using Numbers = std::vector<double>;

namespace {

// --- The reference: nothing of csrc but its structures. ---

struct Model {
    int V, K, J, L, C;
    int neck;
    std::vector<std::int32_t> parents;
    Numbers shapedirs, posedirs, regressor, weights;  // (V, 3, K), (9 (J - 1), 3 V), (J, V), (V, J)
    std::vector<std::int64_t> corners, contour_corners;
    Numbers bary, contour_bary;  // (L, 3), (79, C, 3)
};

struct Inputs {
    Numbers betas, pose, v_template;  // (K), (3 J) or (9 J), (3 V): of one batch element
};

struct Outputs {
    Numbers vertices, joints, landmarks;  // (3 V), (3 J), (3 (C + L))
};

void rotation(const double* r, double* R) {
    const double angle = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
    for (int i = 0; i < 9; ++i) R[i] = i % 4 == 0;
    if (angle == 0) return;
    const double x = r[0] / angle, y = r[1] / angle, z = r[2] / angle, K[9] = {0, -z, y, z, 0, -x, -y, x, 0};
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            double square = 0;
            for (int k = 0; k < 3; ++k) square += K[3 * i + k] * K[3 * k + j];
            R[3 * i + j] += std::sin(angle) * K[3 * i + j] + (1 - std::cos(angle)) * square;
        }
}

Numbers product(const Numbers& a, const Numbers& b) {  // of 4 x 4 matrices
    Numbers c(16);
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 4; ++k) c[i] += a[i / 4 * 4 + k] * b[4 * k + i % 4];
    return c;
}

int contour_row_of(const Model& m, const Numbers& R) {
    Numbers turn(R.begin() + 9 * m.neck, R.begin() + 9 * m.neck + 9);
    for (int j = m.parents[m.neck]; j >= 0; j = j == 0 ? -1 : m.parents[j]) {
        Numbers whole(9);
        for (int i = 0; i < 9; ++i)
            for (int k = 0; k < 3; ++k) whole[i] += R[9 * j + i / 3 * 3 + k] * turn[3 * k + i % 3];
        turn = whole;
    }
    const double degrees = std::min(39.0, std::max(-39.0, std::atan(-turn[6] / turn[8]) * 180 / std::acos(-1.0)));
    const int row = static_cast<int>(std::lround(degrees));
    return row < 0 ? 39 - row : row;
}

// contour: the row of the table; chosen by the pose where it is negative, and kept there for the derivatives.
Outputs reference(const Model& m, const Inputs& in, bool axis_angle, int* contour) {
    Numbers R(9 * m.J), shaped = in.v_template, posed, joints(3 * m.J);
    for (int j = 0; j < m.J; ++j) {
        if (axis_angle)
            rotation(&in.pose[3 * j], &R[9 * j]);
        else
            std::copy_n(&in.pose[9 * j], 9, &R[9 * j]);
    }
    for (int i = 0; i < 3 * m.V; ++i)
        for (int k = 0; k < m.K; ++k) shaped[i] += m.shapedirs[i * m.K + k] * in.betas[k];
    for (int j = 0; j < m.J; ++j)
        for (int v = 0; v < m.V; ++v)
            for (int c = 0; c < 3; ++c) joints[3 * j + c] += m.regressor[j * m.V + v] * shaped[3 * v + c];
    posed = shaped;
    for (int f = 0; f < 9 * (m.J - 1); ++f)
        for (int i = 0; i < 3 * m.V; ++i) posed[i] += (R[9 + f] - (f % 9 % 4 == 0)) * m.posedirs[f * 3 * m.V + i];

    std::vector<Numbers> world(m.J);
    Outputs out{Numbers(3 * m.V), Numbers(3 * m.J), Numbers(3 * (m.C + m.L))};
    for (int j = 0; j < m.J; ++j) {
        Numbers local(16);
        local[15] = 1;
        for (int r = 0; r < 3; ++r) {
            for (int c = 0; c < 3; ++c) local[4 * r + c] = R[9 * j + 3 * r + c];
            local[4 * r + 3] = joints[3 * j + r] - (j > 0 ? joints[3 * m.parents[j] + r] : 0);
        }
        world[j] = j > 0 ? product(world[m.parents[j]], local) : local;
        for (int r = 0; r < 3; ++r) out.joints[3 * j + r] = world[j][4 * r + 3];
    }
    for (int v = 0; v < m.V; ++v)
        for (int j = 0; j < m.J; ++j)
            for (int r = 0; r < 3; ++r) {
                double moved = world[j][4 * r + 3];
                for (int c = 0; c < 3; ++c) moved += world[j][4 * r + c] * (posed[3 * v + c] - joints[3 * j + c]);
                out.vertices[3 * v + r] += m.weights[v * m.J + j] * moved;
            }
    if (m.C > 0 && *contour < 0) *contour = contour_row_of(m, R);
    for (int n = 0; n < m.C + m.L; ++n)
        for (int e = 0; e < 3; ++e) {
            const int at = n < m.C ? (*contour * m.C + n) * 3 + e : 3 * (n - m.C) + e;
            const std::int64_t v = n < m.C ? m.contour_corners[at] : m.corners[at];
            for (int c = 0; c < 3; ++c) out.landmarks[3 * n + c] += (n < m.C ? m.contour_bary[at] : m.bary[at]) * out.vertices[3 * v + c];
        }
    return out;
}

// --- Random models. ---

struct Random {
    std::mt19937_64 bits;
    int integer(int low, int high) { return low + static_cast<int>(bits() % static_cast<unsigned>(high - low + 1)); }
    double number() { return static_cast<double>(bits() >> 11) / 4503599627370496.0 - 1; }  // in [-1, 1), the same everywhere
    // Exact in either precision, so that a float operator and its reference have the same arguments.
    Numbers numbers(std::size_t n, double scale) {
        Numbers values(n);
        for (double& value : values) value = static_cast<float>(scale * number());
        return values;
    }
    void corners(int triangles, int V, std::vector<std::int64_t>& vertices, Numbers& bary) {
        for (int i = 0; i < triangles; ++i) {
            const float a = static_cast<float>(number()), b = static_cast<float>(number());
            for (const float w : {a, b, 1 - a - b}) vertices.push_back(integer(0, V - 1)), bary.push_back(w);
        }
    }
};

Model random_model(Random& random, int V, int K, int J, int L, int C) {
    Model m{V,
            K,
            J,
            L,
            C,
            random.integer(0, J - 1),
            {-1},
            random.numbers(3 * V * K, 0.01),
            random.numbers(27 * (J - 1) * V, 0.01),
            random.numbers(J * V, 2.0 / V),
            Numbers(V * J),
            {},
            {},
            {},
            {}};
    for (int j = 1; j < J; ++j) m.parents.push_back(random.integer(0, j - 1));
    for (int v = 0; v < V; ++v)  // few joints a vertex, as in real models
        for (int i = 0; i < 2; ++i) m.weights[v * J + random.integer(0, J - 1)] = static_cast<float>(0.6 + 0.4 * random.number());
    random.corners(L, V, m.corners, m.bary);
    random.corners(static_cast<int>(contour_table_rows) * C, V, m.contour_corners, m.contour_bary);
    return m;
}

// --- The operators on it. ---

[[noreturn]] void fail(const std::string& what) {
    std::printf("FAILED: %s\n", what.c_str());
    std::exit(1);
}

// As the core's buffers must be: on a cache line, with nothing after the end for a sanitizer to overlook.
template <class T>
struct CacheLines {
    using value_type = T;
    CacheLines() = default;
    template <class U>
    CacheLines(const CacheLines<U>&) {}
    T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const CacheLines&) const { return true; }
    bool operator!=(const CacheLines&) const { return false; }
};
template <class T>
using Values = std::vector<T, CacheLines<T>>;
using Index = Values<std::int32_t>;

template <class T>
Values<T> as(const Numbers& values) {
    return Values<T>(values.begin(), values.end());
}

template <class T>
Values<T> unwritten(index_t n) {  // what isn't written shows
    return Values<T>(static_cast<std::size_t>(n), T(NAN));
}

template <class T>
constexpr double tolerance = sizeof(T) == 4 ? 4e-6 : 1e-13;
template <class T>
constexpr double gradient_tolerance = sizeof(T) == 4 ? 2e-5 : 1e-8;

double largest = 0;  // of all deviations, as parts of what is tolerated

void check_close(const std::string& what, double got, double want, double scale, double relative) {
    const double off = std::fabs(got - want) / (relative * scale);
    if (!(off <= 1)) fail(what + ": got " + std::to_string(got) + ", expected " + std::to_string(want));
    largest = std::max(largest, off);
}

template <class T>
void check_values(const std::string& what, const T* got, const Numbers& want) {
    double scale = 1e-3;
    for (const double value : want) scale = std::max(scale, std::fabs(value));
    for (std::size_t i = 0; i < want.size(); ++i) check_close(what + " " + std::to_string(i), got[i], want[i], scale, tolerance<T>);
}

template <class T>
void check_same(const std::string& what, const Values<T>& a, const Values<T>& b) {
    if (a.size() != b.size() || (!a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) != 0))
        fail(what + ": not the same bits");
}

// Corners in the order that MeshLandmarks wants: each list by vertex.
template <class T>
struct SortedCorners {
    Index vertices, points;
    Values<T> bary;

    void add(const std::int64_t* corners, const double* weights, int landmarks, int first) {
        std::vector<int> order(3 * landmarks);
        for (int e = 0; e < 3 * landmarks; ++e) order[e] = e;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return corners[a] < corners[b]; });
        for (const int e : order) {
            vertices.push_back(static_cast<std::int32_t>(corners[e]));
            points.push_back(first + e / 3);
            bary.push_back(static_cast<T>(weights[e]));
        }
    }
};

template <class T>
struct Test {
    const Model& m;
    int B;
    bool axis_angle;
    std::vector<Inputs> inputs;
    index_t pose_size, points;
    Values<T> shapedirs, posedirs, weights, regressor, v_template, betas, pose, bary, contour_bary, joint_dirs, joint_template;

    Test(const Model& model, int batch, bool axis, Random& random)
        : m(model), B(batch), axis_angle(axis), pose_size((axis ? 3 : 9) * m.J), points(m.C + m.L), shapedirs(as<T>(m.shapedirs)),
          posedirs(as<T>(m.posedirs)), weights(as<T>(m.weights)), regressor(as<T>(m.regressor)), bary(as<T>(m.bary)),
          contour_bary(as<T>(m.contour_bary)), joint_dirs(unwritten<T>(3 * m.J * m.K)), joint_template(unwritten<T>(3 * m.J * B)) {
        for (int b = 0; b < B; ++b) {
            Inputs in{random.numbers(m.K, 1), random.numbers(3 * m.J, b == 1 ? 4 : 0.5), random.numbers(3 * m.V, 0.2)};
            if (b == 2) std::fill(in.pose.begin(), in.pose.end(), 0.0);
            if (!axis_angle) {
                Numbers matrices(9 * m.J);
                for (int j = 0; j < m.J; ++j) rotation(&in.pose[3 * j], &matrices[9 * j]);
                for (double& value : matrices) value = static_cast<float>(value + 0.1 * random.number());  // any matrix will do
                in.pose = matrices;
            }
            betas.insert(betas.end(), in.betas.begin(), in.betas.end());
            pose.insert(pose.end(), in.pose.begin(), in.pose.end());
            v_template.insert(v_template.end(), in.v_template.begin(), in.v_template.end());
            inputs.push_back(std::move(in));
        }
        cpu::regress_joints<T>({1, m.V, m.J, 3 * m.K, regressor.data(), shapedirs.data(), 0, joint_dirs.data()}, 2);
        // (J, 3 K) as it comes, (K, 3 J) as it is wanted.
        const Values<T> dirs = joint_dirs;
        for (int j = 0; j < 3 * m.J; ++j)
            for (int k = 0; k < m.K; ++k) joint_dirs[k * 3 * m.J + j] = dirs[j * m.K + k];
        cpu::regress_joints<T>({B, m.V, m.J, 3, regressor.data(), v_template.data(), 3 * m.V, joint_template.data()}, 2);
    }

    struct Mesh {
        Values<T> vertices, joints, landmarks, state, grad_betas, grad_pose, grad_v_template, grad_joint_template;
    };

    // Forward and backward for grad, of all outputs; with packed directions or without.
    Mesh mesh(const Outputs* grad, bool packed, bool keep, int threads) const {
        const auto directions = [&](const Values<T>& values, index_t count, index_t row_stride, index_t feature_stride, Values<T>& memory,
                                    Index& index) {
            FeatureDirections<T> d{{m.V, count, values.data(), row_stride, feature_stride}, nullptr, nullptr};
            if (!packed) return d;
            memory = unwritten<T>(cpu::directions_packed_size<T>(m.V, count));
            index.assign(cpu::directions_index_size<T>(m.V, count), -1);
            cpu::pack_directions<T>(d.source, memory.data(), index.data(), threads);
            d.packed = memory.data(), d.index = index.data(), d.source.values = nullptr;
            return d;
        };
        Values<T> shape_memory, pose_memory, lbs_memory = unwritten<T>(cpu::lbs_packed_size<T>(m.V, m.K, m.J));
        Index shape_index, pose_index, lbs_index(cpu::lbs_index_size<T>(m.V, m.K, m.J), -1);
        cpu::pack_lbs<T>({m.V, m.K, m.J, nullptr, nullptr, weights.data()}, lbs_memory.data(), lbs_index.data(), threads);
        SortedCorners<T> corners;
        corners.add(m.corners.data(), m.bary.data(), m.L, m.C);
        for (int row = 0; row < contour_table_rows; ++row)
            corners.add(m.contour_corners.data() + 3 * m.C * row, m.contour_bary.data() + 3 * m.C * row, m.C, 0);
        const MeshLandmarks<T> landmarks{m.L, m.C, m.neck, corners.vertices.data(), corners.points.data(), corners.bary.data()};
        const LbsModel<T> model{m.V,
                                m.K,
                                m.J,
                                m.parents.data(),
                                joint_dirs.data(),
                                lbs_memory.data(),
                                lbs_index.data(),
                                directions(shapedirs, m.K, m.K, 1, shape_memory, shape_index),
                                directions(posedirs, 9 * (m.J - 1), 1, 3 * m.V, pose_memory, pose_index)};
        Mesh out{unwritten<T>(3 * B * m.V),
                 unwritten<T>(3 * B * m.J),
                 unwritten<T>(3 * B * points),
                 unwritten<T>(B * cpu::lbs_state_size<T>(m.V, m.K, m.J, keep)),
                 {},
                 {},
                 {},
                 {}};
        cpu::lbs_forward<T>(
            {model, B, betas.data(), m.K, pose.data(), pose_size, axis_angle, v_template.data(), 3 * m.V, joint_template.data(), 3 * m.J,
             keep, keep ? out.state.data() : nullptr, out.vertices.data(), out.joints.data(), landmarks, out.landmarks.data()},
            threads);
        if (!keep) return out;
        for (const T value : out.state)
            if (std::isnan(value)) fail("state: not all of it is written");
        const Values<T> g_vertices = as<T>(grad->vertices), g_joints = as<T>(grad->joints), g_landmarks = as<T>(grad->landmarks);
        out.grad_betas = unwritten<T>(B * m.K), out.grad_pose = unwritten<T>(B * pose_size);
        out.grad_v_template = unwritten<T>(3 * B * m.V), out.grad_joint_template = unwritten<T>(3 * B * m.J);
        cpu::lbs_backward<T>({model,
                              B,
                              betas.data(),
                              m.K,
                              pose.data(),
                              pose_size,
                              axis_angle,
                              joint_template.data(),
                              3 * m.J,
                              out.state.data(),
                              g_vertices.data(),
                              {3 * m.V, 3, 1},
                              g_joints.data(),
                              landmarks,
                              g_landmarks.data(),
                              {3 * points, 3, 1},
                              out.grad_betas.data(),
                              out.grad_pose.data(),
                              out.grad_v_template.data(),
                              false,
                              out.grad_joint_template.data(),
                              nullptr},
                             threads);
        return out;
    }

    struct Landmarks {
        Values<T> landmarks, grad_betas, grad_pose, jacobian_landmarks, d_betas, d_pose;
    };

    // The template is the first element's: landmarks have one for all.
    Landmarks landmarks(const Values<T>& grad, int threads) const {
        Values<T> memory = unwritten<T>(cpu::landmarks_packed_size<T>(m.K, m.J, m.L, m.C));
        Index index(cpu::landmarks_index_size<T>(m.K, m.J, m.L, m.C), -1);
        const LandmarkConstants<T> constants{{m.V, m.K, m.J, shapedirs.data(), posedirs.data(), weights.data()},
                                             v_template.data(),
                                             m.L,
                                             m.C,
                                             m.corners.data(),
                                             bary.data(),
                                             m.contour_corners.data(),
                                             contour_bary.data()};
        cpu::pack_landmarks<T>(constants, memory.data(), index.data(), threads);
        const LandmarkModel<T> model{
            m.K, m.J, m.L, m.C, m.neck, m.parents.data(), joint_dirs.data(), joint_template.data(), memory.data(), index.data()};
        Values<T> state = unwritten<T>(B * cpu::landmarks_state_size<T>(m.K, m.J, m.L, m.C, true)), again = unwritten<T>(3 * B * points);
        Landmarks out{again,
                      unwritten<T>(B * m.K),
                      unwritten<T>(B * pose_size),
                      again,
                      unwritten<T>(3 * B * points * m.K),
                      unwritten<T>(3 * B * points * pose_size)};
        LandmarksForward<T> forward{model,     B,          betas.data(), m.K,          pose.data(),
                                    pose_size, axis_angle, true,         state.data(), out.landmarks.data()};
        cpu::landmarks_forward<T>(forward, threads);
        forward.keep = false, forward.state = nullptr, forward.landmarks = again.data();
        cpu::landmarks_forward<T>(forward, threads);
        check_same("landmarks, kept and not", out.landmarks, again);
        cpu::landmarks_backward<T>({model,
                                    B,
                                    betas.data(),
                                    m.K,
                                    pose.data(),
                                    pose_size,
                                    axis_angle,
                                    state.data(),
                                    grad.data(),
                                    {3 * points, 3, 1},
                                    out.grad_betas.data(),
                                    out.grad_pose.data(),
                                    nullptr},
                                   threads);
        cpu::landmarks_jacobian<T>({model, B, betas.data(), m.K, pose.data(), pose_size, axis_angle, out.jacobian_landmarks.data(),
                                    out.d_betas.data(), out.d_pose.data(), nullptr},
                                   threads);
        return out;
    }

    // d/dt at 0 of f at the input moved by t in a direction, at the contour row that it has.
    template <class F>
    Numbers derivative(const Inputs& at, const Inputs& direction, const F& f) const {
        int row = -1;
        f(reference(m, at, axis_angle, &row));
        const double step = 1e-4;  // with four points the error is step^4
        const auto moved = [&](double t) {
            Inputs in = at;
            for (int k = 0; k < m.K; ++k) in.betas[k] += t * direction.betas[k];
            for (index_t i = 0; i < pose_size; ++i) in.pose[i] += t * direction.pose[i];
            for (int i = 0; i < 3 * m.V; ++i) in.v_template[i] += t * direction.v_template[i];
            return f(reference(m, in, axis_angle, &row));
        };
        const Numbers a = moved(step), b = moved(-step), c = moved(2 * step), d = moved(-2 * step);
        Numbers out(a.size());
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = (8 * (a[i] - b[i]) - (c[i] - d[i])) / (12 * step);
        return out;
    }

    Inputs direction(Random& random, int which) const {
        Inputs d{Numbers(m.K), Numbers(pose_size), Numbers(3 * m.V)};
        if (which == 0) d.betas = random.numbers(m.K, 1);
        if (which == 1) d.pose = random.numbers(pose_size, 1);
        if (which == 2) d.v_template = random.numbers(3 * m.V, 1);
        return d;
    }

    static double dot(const T* a, const Numbers& b, double* scale) {
        double sum = 0, size = 0;
        for (std::size_t i = 0; i < b.size(); ++i) sum += a[i] * b[i], size += std::fabs(a[i] * b[i]);
        *scale = std::max(*scale, size);
        return sum;
    }

    void run(Random& random) {
        // The mesh.
        Outputs grad{random.numbers(3 * B * m.V, 1), random.numbers(3 * B * m.J, 1), random.numbers(3 * B * points, 1)};
        const Mesh got = mesh(&grad, true, true, 1);
        for (const auto& [packed, threads] : {std::pair<bool, int>{true, 3}, {false, 1}, {false, 3}}) {
            const Mesh other = mesh(&grad, packed, true, threads);
            check_same("vertices", got.vertices, other.vertices), check_same("joints", got.joints, other.joints);
            check_same("landmarks of the mesh", got.landmarks, other.landmarks), check_same("state", got.state, other.state);
            check_same("grad_betas", got.grad_betas, other.grad_betas), check_same("grad_pose", got.grad_pose, other.grad_pose);
            check_same("grad_v_template", got.grad_v_template, other.grad_v_template);
            check_same("grad_joint_template", got.grad_joint_template, other.grad_joint_template);
        }
        check_same("vertices, kept and not", got.vertices, mesh(nullptr, true, false, 2).vertices);
        for (int b = 0; b < B; ++b) {
            int row = -1;
            const Outputs want = reference(m, inputs[b], axis_angle, &row);
            check_values("vertices", &got.vertices[3 * b * m.V], want.vertices);
            check_values("joints", &got.joints[3 * b * m.J], want.joints);
            check_values("landmarks of the mesh", got.landmarks.data() + 3 * b * points, want.landmarks);
        }
        for (int b = 0; b < B; b += 1 + B / 4)
            for (int which = 0; which < 3; ++which) {
                const Inputs d = direction(random, which);
                const Numbers want = derivative(inputs[b], d, [&](const Outputs& out) {
                    double loss = 0;
                    for (int i = 0; i < 3 * m.V; ++i) loss += out.vertices[i] * grad.vertices[3 * b * m.V + i];
                    for (int i = 0; i < 3 * m.J; ++i) loss += out.joints[i] * grad.joints[3 * b * m.J + i];
                    for (int i = 0; i < 3 * points; ++i) loss += out.landmarks[i] * grad.landmarks[3 * b * points + i];
                    return Numbers{loss};
                });
                // The template moves the vertices, and by way of the regressor the joints: the caller's part of its gradient.
                Numbers template_joints(3 * m.J);
                for (int i = 0; i < 3 * m.J; ++i)
                    for (int v = 0; v < m.V; ++v) template_joints[i] += m.regressor[i / 3 * m.V + v] * d.v_template[3 * v + i % 3];
                double scale = 1e-2;
                const double sum = dot(got.grad_betas.data() + b * m.K, d.betas, &scale) +
                                   dot(got.grad_pose.data() + b * pose_size, d.pose, &scale) +
                                   dot(got.grad_v_template.data() + 3 * b * m.V, d.v_template, &scale) +
                                   dot(got.grad_joint_template.data() + 3 * b * m.J, template_joints, &scale);
                check_close("gradient of the mesh", sum, want[0], scale, gradient_tolerance<T>);
            }
        if (points == 0) return;

        // Landmarks without the mesh: the first element's template for all.
        std::vector<Inputs> alike = inputs;
        for (Inputs& in : alike) in.v_template = inputs[0].v_template;
        const Landmarks found = landmarks(as<T>(grad.landmarks), 1), other = landmarks(as<T>(grad.landmarks), 3);
        check_same("landmarks", found.landmarks, other.landmarks), check_same("landmarks' grad_betas", found.grad_betas, other.grad_betas);
        check_same("landmarks' grad_pose", found.grad_pose, other.grad_pose), check_same("jacobian", found.d_betas, other.d_betas);
        check_same("jacobian", found.d_pose, other.d_pose);
        for (int b = 0; b < B; ++b) {
            int row = -1;
            const Outputs want = reference(m, alike[b], axis_angle, &row);
            check_values("landmarks", &found.landmarks[3 * b * points], want.landmarks);
            check_values("landmarks beside the jacobian", &found.jacobian_landmarks[3 * b * points], want.landmarks);
        }
        for (int b = 0; b < B; b += 1 + B / 4)
            for (int which = 0; which < 2; ++which) {
                const Inputs d = direction(random, which);
                const Numbers want = derivative(alike[b], d, [](const Outputs& out) { return out.landmarks; });
                double scale = 1e-2, sum = 0;
                for (int i = 0; i < 3 * points; ++i) sum += grad.landmarks[3 * b * points + i] * want[i];
                const double got_sum =
                    dot(found.grad_betas.data() + b * m.K, d.betas, &scale) + dot(found.grad_pose.data() + b * pose_size, d.pose, &scale);
                check_close("gradient of the landmarks", got_sum, sum, scale, gradient_tolerance<T>);
                for (int i = 0; i < 3 * points; ++i) {
                    const index_t row = 3 * b * points + i;
                    scale = 1e-2;
                    const double slope =
                        dot(found.d_betas.data() + row * m.K, d.betas, &scale) + dot(found.d_pose.data() + row * pose_size, d.pose, &scale);
                    check_close("jacobian of the landmarks", slope, want[i], scale, gradient_tolerance<T>);
                }
            }
    }
};

template <class T>
void check_rotations(Random& random) {
    const int N = 37;
    Numbers vectors = random.numbers(3 * N, 2), grad = random.numbers(9 * N, 1);
    for (int i = 0; i < 3 * 8; ++i) vectors[i] *= std::pow(10.0, -2 * (i / 3));  // to 1e-14
    std::fill_n(vectors.begin(), 3, 0.0);
    for (double& value : vectors) value = static_cast<float>(value);
    const Values<T> in = as<T>(vectors), g = as<T>(grad);
    Values<T> matrices = unwritten<T>(9 * N), d = unwritten<T>(3 * N);
    cpu::rodrigues_forward<T>({N, in.data(), matrices.data(), nullptr, nullptr}, 2);
    cpu::rodrigues_backward<T>({N, in.data(), nullptr, g.data(), d.data()}, 2);
    for (int n = 0; n < N; ++n) {
        Numbers want(9);
        rotation(&vectors[3 * n], want.data());
        check_values("matrices", &matrices[9 * n], want);
        for (int c = 0; c < 3; ++c) {
            const double step = 1e-5;
            double R[2][9], slope = 0;
            for (int side = 0; side < 2; ++side) {
                double r[3] = {vectors[3 * n], vectors[3 * n + 1], vectors[3 * n + 2]};
                r[c] += side ? step : -step;
                rotation(r, R[side]);
            }
            for (int i = 0; i < 9; ++i) slope += (R[1][i] - R[0][i]) / (2 * step) * grad[9 * n + i];
            check_close("gradient of the rotation", d[3 * n + c], slope, 5, sizeof(T) == 4 ? 2e-6 : 1e-9);
        }
    }
}

template <class T>
void check_points(Random& random) {
    const int B = 3, V = 19, F = 23, L = 7;
    const Numbers vertices = random.numbers(3 * B * V, 1), bary = random.numbers(3 * B * L, 1), grad = random.numbers(3 * B * L, 1);
    std::vector<std::int64_t> faces(3 * F), chosen(B * L);
    for (auto& v : faces) v = random.integer(0, V - 1);
    for (auto& f : chosen) f = random.integer(0, F - 1);
    Numbers want(3 * B * L), d_want(3 * B * V);
    for (int i = 0; i < B * L; ++i)
        for (int e = 0; e < 3; ++e)
            for (int c = 0; c < 3; ++c) {
                const std::int64_t at = 3 * (i / L * V + faces[3 * chosen[i] + e]) + c;
                want[3 * i + c] += bary[3 * i + e] * vertices[at];
                d_want[at] += bary[3 * i + e] * grad[3 * i + c];
            }
    const Values<T> v = as<T>(vertices), w = as<T>(bary), g = as<T>(grad);
    Values<T> out = unwritten<T>(3 * B * L), d = unwritten<T>(3 * B * V);
    const VerticesToLandmarks<T> call{B, V,        F,     L,          v.data(), 3 * V,   faces.data(), chosen.data(),
                                      L, w.data(), 3 * L, out.data(), g.data(), d.data()};
    cpu::vertices2landmarks_forward<T>(call, 2);
    cpu::vertices2landmarks_backward<T>(call, 2);
    check_values("points", out.data(), want);
    check_values("gradient of the points", d.data(), d_want);
}

template <class T>
void check(int models) {
    Random random;
    random.bits.seed(1);
    check_rotations<T>(random);
    check_points<T>(random);
    // What the tilings turn on: whole groups and each remainder, vertices short of a tile, of a block, and beyond one.
    const int batches[] = {1, 2, 3, 5, 7, 8, 9, 13, 16, 19}, vertices[] = {1, 3, 5, 16, 17, 61, 177, 359};
    for (int n = 0; n < models; ++n) {
        const int V = vertices[n % 8], K = random.integer(0, 13), J = random.integer(1, 6), L = random.integer(0, 9),
                  C = random.integer(0, 3);
        const Model model = random_model(random, V, K, J, L, C);
        Test<T> test(model, batches[n % 10], n % 3 != 1, random);
        test.run(random);
    }
    Model model = random_model(random, 101, 31, 5, 21, 5);
    Test<T>(model, 67, true, random).run(random);  // two blocks of the batch
}

}  // namespace

int main(int count, char** arguments) {
    const int models = count > 1 ? std::atoi(arguments[1]) : 40;
    if (models < 1) {
        std::printf("MODELS: expected a number of at least 1, got %s\n", arguments[1]);
        return 2;
    }
    check<float>(models);
    const double single = largest;
    largest = 0;
    check<double>(models);
    std::printf(
        "core, %s: 2 x %d models agree with the reference; the largest deviations take %.0f %% (float) and %.0f %% (double) of what is "
        "allowed\n",
        cpu::simd_level(), models + 1, 100 * single, 100 * largest);
    return 0;
}
