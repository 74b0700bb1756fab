// Landmarks and their derivatives with respect to betas and pose: first the landmarks' own kernel, which leaves the blended corners in the
// workspace, then a block per element and tile of ten landmarks. Its threads share the columns of the derivatives, K betas and the pose's;
// a thread has the column's three rows of all ten landmarks in registers and reads the column's directions once.
#include "../jacobian.h"
#include "pose.cuh"
#include "problem.cuh"

namespace ringnet::cuda {
namespace {

constexpr int jacobian_threads = 192;
constexpr int corner_pitch = 12;  // of a corner's 3 x 3 matrix: three vectors of a row of three, padded

template <class T>
struct JacobianCall {
    LandmarksJacobian<T> p;
    Landmarks<T> landmarks;
    TileModel<T> model;
    PoseInput<T> in;
    State<T> state;  // as the landmarks' kernel left it

    __host__ __device__ int pose_columns() const { return static_cast<int>((p.axis_angle ? 3 : 9) * model.J); }
};

inline index_t jacobian_values(index_t J) { return 36 * J + tile_vertices * corner_pitch + tile_landmarks * 4 * J; }

template <class T>
__global__ void __launch_bounds__(jacobian_threads) landmarks_jacobian_kernel(JacobianCall<T> call) {
    constexpr int W = Vec<T>::size, points = static_cast<int>(tile_landmarks);
    const TileModel<T>& m = call.model;
    const int t = static_cast<int>(threadIdx.x), J = static_cast<int>(m.J), K = static_cast<int>(m.K);
    const index_t slots = call.landmarks.slots(), slot = blockIdx.x % slots, b = blockIdx.x / slots;

    const PoseScratch<T> s(shared_memory<T>(), J);
    T* corners = shared_memory<T>() + 36 * J;            // (32, 3, 4): the blended transforms' matrices times barycentric coordinates
    T* weight = corners + tile_vertices * corner_pitch;  // (10, J): of each landmark, what hangs on a joint
    T* arm = weight + points * J;                        // (10, J, 3)

    for (int i = t; i < points * 4 * J; i += jacobian_threads) weight[i] = T(0);
    pose_of_element(call.in, b, s, Block());

    const index_t row = static_cast<index_t>(call.state.transforms[b * transform_pitch(J) + 12 * J]);
    const index_t tile = call.landmarks.tile(slot, row);
    const T *weights = m.tile_weights(tile), *bary = m.bary + tile * tile_vertices;
    const std::int32_t* joints = m.tile_joints(tile);
    if (t < lanes) {
        T M[1][12];
        const T* const transforms[1] = {s.transforms};
        blend_transforms(TileJoints<T>(m, tile), transforms, t, M);
        for (int i = 0; i < 3; ++i) {
            for (int c = 0; c < 3; ++c) corners[t * corner_pitch + 4 * i + c] = bary[t] * M[0][4 * i + c];
            corners[t * corner_pitch + 4 * i + 3] = T(0);
        }
    }
    const T* blended = call.state.blended + (b * slots + slot) * tile_columns;
    for (int i = t; i < points * joints[0]; i += jacobian_threads) {
        const int n = i % points, share = i / points, j = joints[1 + share];
        T sum = T(0), moment[3] = {T(0), T(0), T(0)};
        for (int lane = 3 * n; lane < 3 * n + 3; ++lane) {
            const T w = bary[lane] * weights[share * lanes + lane];
            sum += w;
            for (int c = 0; c < 3; ++c) moment[c] += w * (blended[c * lanes + lane] - s.rest[3 * j + c]);
        }
        weight[n * J + j] = sum;
        for (int c = 0; c < 3; ++c) arm[3 * (n * J + j) + c] = moment[c];
    }
    __syncthreads();
    if (t < points) gather_arms(J, call.in.parents, s.local_r, s.rest, weight + t * J, arm + 3 * t * J);
    __syncthreads();

    index_t first, count;
    call.landmarks.range(slot, first, count);
    const int columns = K + call.pose_columns();
    const T* directions = m.tile_directions(tile);
    for (int column = t; column < columns; column += jacobian_threads) {
        T acc[points][3];
        T turn[9];  // of a column of the pose: what it adds to the nine features of its joint
        int j = 0, feature = column;
        bool blends = true;  // whether it moves the mesh before skinning
        if (column < K) {
#pragma unroll
            for (int n = 0; n < points; ++n) acc[n][0] = acc[n][1] = acc[n][2] = T(0);
            // A rest joint moves what hangs on it by (G_p - G) of its own motion.
            const T* motions = call.in.joint_dirs + static_cast<index_t>(column) * 3 * J;
#pragma unroll 1
            for (int i = 0; i < J; ++i) {
                const T* G = s.world_r + 9 * i;
                const T* P = s.world_r + 9 * (i > 0 ? call.in.parents[i] : 0);
                const T motion[3] = {motions[3 * i], motions[3 * i + 1], motions[3 * i + 2]};
                T moved[3];
                for (int r = 0; r < 3; ++r) {
                    moved[r] = T(0);
                    for (int c = 0; c < 3; ++c) moved[r] += ((i > 0 ? P[3 * r + c] : r == c ? T(1) : T(0)) - G[3 * r + c]) * motion[c];
                }
#pragma unroll
                for (int n = 0; n < points; ++n)
                    for (int r = 0; r < 3; ++r) acc[n][r] += weight[n * J + i] * moved[r];
            }
        } else {
            const int of_pose = column - K, axes = call.p.axis_angle ? 3 : 9;
            j = of_pose / axes;
            const int axis = of_pose % axes;
            T lever[9];  // G_p times the turn
            if (call.p.axis_angle) {
                T dR[3][9];
                rodrigues_jacobian(call.in.pose + b * call.in.pose_stride + 3 * j, dR);
#pragma unroll
                for (int i = 0; i < 9; ++i) turn[i] = axis == 0 ? dR[0][i] : axis == 1 ? dR[1][i] : dR[2][i];
            } else {
#pragma unroll
                for (int i = 0; i < 9; ++i) turn[i] = i == axis ? T(1) : T(0);
            }
            if (j > 0) {
                matmul3(s.world_r + 9 * call.in.parents[j], turn, lever);
            } else {
                for (int i = 0; i < 9; ++i) lever[i] = turn[i];
            }
#pragma unroll
            for (int n = 0; n < points; ++n) {
                const T* a = arm + 3 * (n * J + j);
                for (int r = 0; r < 3; ++r) acc[n][r] = lever[3 * r] * a[0] + lever[3 * r + 1] * a[1] + lever[3 * r + 2] * a[2];
            }
            blends = j > 0;
            feature = K + 9 * (j - 1);
        }
        if (blends) {
#pragma unroll
            for (int c = 0; c < 3; ++c) {
#pragma unroll
                for (int lane = 0; lane < 3 * points; lane += W) {
                    const T* from = directions + static_cast<index_t>(feature) * tile_columns + c * lanes + lane;
                    Vec<T> d;
                    if (column < K) {
                        d = load_vec(from);
                    } else {
#pragma unroll
                        for (int i = 0; i < W; ++i) d.v[i] = T(0);
#pragma unroll 1
                        for (int f = 0; f < 9; ++f) {
                            const Vec<T> part = load_vec(from + f * tile_columns);
                            const T by = f == 0   ? turn[0]
                                         : f == 1 ? turn[1]
                                         : f == 2 ? turn[2]
                                         : f == 3 ? turn[3]
                                         : f == 4 ? turn[4]
                                         : f == 5 ? turn[5]
                                         : f == 6 ? turn[6]
                                         : f == 7 ? turn[7]
                                                  : turn[8];
#pragma unroll
                            for (int i = 0; i < W; ++i) d.v[i] += by * part.v[i];
                        }
                    }
#pragma unroll
                    for (int i = 0; i < W; ++i) {
                        if (lane + i >= 3 * points) continue;
                        const T* M = corners + (lane + i) * corner_pitch;
                        for (int r = 0; r < 3; ++r) acc[(lane + i) / 3][r] += M[4 * r + c] * d.v[i];
                    }
                }
            }
        }
        const int width = column < K ? K : call.pose_columns();
        T* out = (column < K ? call.p.d_betas + column : call.p.d_pose + (column - K)) +
                 (b * (call.landmarks.L + call.landmarks.C) + first) * 3 * width;
#pragma unroll
        for (int n = 0; n < points; ++n)
            if (n < count)
                for (int r = 0; r < 3; ++r) out[(3 * n + r) * width] = acc[n][r];
    }
}

}  // namespace

template <class T>
index_t landmarks_jacobian_workspace_size(index_t B, index_t K, index_t J, index_t L, index_t C) {
    return B * landmarks_state_size<T>(K, J, L, C, true);
}

template <class T>
void landmarks_jacobian(const LandmarksJacobian<T>& p, stream_t stream) {
    if (p.B == 0 || p.model.L + p.model.C == 0) return;
    const index_t K = p.model.K, J = p.model.J;
    landmarks_forward(
        LandmarksForward<T>{p.model, p.B, p.betas, p.betas_stride, p.pose, p.pose_stride, p.axis_angle, true, p.workspace, p.landmarks},
        stream);
    const TileModel<T> model = tile_model(landmark_tiles(p.model.L, p.model.C).packed(), K, J, p.model.packed, p.model.index);
    const JacobianCall<T> call{p,
                               {p.model.L, p.model.C, nullptr, nullptr, {0, 0, 0}},
                               model,
                               pose_input(p, p.model.joint_template, 0),
                               state_of(p.workspace, p.B, K, J, true)};
    const auto bytes = static_cast<std::size_t>(jacobian_values(J)) * sizeof(T);
    launch("landmarks_jacobian", landmarks_jacobian_kernel<T>, p.B * call.landmarks.slots(), jacobian_threads, bytes, stream, call);
}

#define RN_INSTANTIATE(T)                                                                               \
    template index_t landmarks_jacobian_workspace_size<T>(index_t, index_t, index_t, index_t, index_t); \
    template void landmarks_jacobian<T>(const LandmarksJacobian<T>&, stream_t);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)
#undef RN_INSTANTIATE

}  // namespace ringnet::cuda
