// The public API of the core: one parameter struct per operator and direction, entry points in cpu:: and cuda::.
//
// Everywhere
//   T is float or double. Sizes and strides are int64, in elements. V vertices, K betas, J joints, B batch.
//   F = K + 9 (J - 1) features of a batch element: the betas, then vec(R_j - I), row-major, of joints 1 .. J-1.
//   Rows are contiguous inside; "stride" is the distance between batch elements, 0 where all share one.
//   Pointers are host pointers for cpu:: and device pointers for cuda:: unless marked (host).
//   The caller has checked every shape and index; an entry point trusts its parameters. B == 0 returns at once.
//   cuda:: entry points launch on the given stream, allocate nothing and never synchronise; they throw
//   std::runtime_error with the CUDA error's name. cpu:: entry points use `threads` threads at most.
//   Results don't depend on the number of threads, bit for bit, and are the same run to run: no floating-point atomics.
//
// Who allocates
//   The caller, everything. The buffers below have private layouts, each back end its own; the size functions depend on
//   sizes only (never on values, never on the device's state), so that shapes can be inferred and graphs captured.
//   packed   (T) and index (int32): the constants of a model, written once by pack_*.
//   state    (T): B rows of *_state_size elements each, 64-byte aligned. Written by the forward call and read by the
//                 backward call; with keep = false it is the forward's scratch only (smaller: nothing is kept). An output of
//                 the operator as torch sees it, so every element is written, padding too, the same run to run.
//   workspace(T): scratch of a backward call.
//   Where a size is 0, the pointer may be null. On the CPU that is so of all that nobody reads after the call: it takes its own
//   memory, for less than a tensor costs.
//
// What is kept for the backward pass (keep = true)
//   The features, the transforms (J, 12) and the blended vertices before skinning. Everything else of the pose is cheap and is
//   computed again from betas and pose. No (B, V, J) or (B, V, 12) array exists at any time.
#pragma once

#include <cstddef>

#include "common.h"

namespace ringnet {

// The constants of a model as the user has them, contiguous. Input of pack_lbs.
template <class T>
struct LbsConstants {
    index_t V, K, J;
    const T* shapedirs;    // (V, 3, K)
    const T* posedirs;     // (9 (J - 1), 3 V)
    const T* lbs_weights;  // (V, J)
};

// Directions of `count` features as the user has them, with any strides: of row 3 v + xyz and feature k, values[row * row_stride + k *
// feature_stride]. (V, 3, K) shapedirs have strides K and 1, (9 (J - 1), 3 V) posedirs 1 and 3 V.
template <class T>
struct DirectionsSource {
    index_t V, count;
    const T* values;
    index_t row_stride, feature_stride;
};

// The same, and packed where they have been. Only cpu::.
template <class T>
struct FeatureDirections {
    DirectionsSource<T> source;  // not read where packed
    const T* packed;             // directions_packed_size elements
    const std::int32_t* index;   // directions_index_size elements; null where not packed
};

// A prepared model.
template <class T>
struct LbsModel {
    index_t V, K, J;
    const std::int32_t* parents;       // (J); topological order, parents[0] not read
    const T* joint_dirs;               // (K, 3 J): J_regressor . shapedirs, summed in double
    const T* packed;                   // lbs_packed_size elements
    const std::int32_t* index;         // lbs_index_size elements
    FeatureDirections<T> shape, pose;  // of the betas; of vec(R_j - I). Only cpu::
};

// Landmarks of a mesh that is computed anyway, given by the corners of their triangles: those of the L static ones, then those of
// each row of the contour table, in the order of their vertices. Only cpu::.
template <class T>
struct MeshLandmarks {
    index_t L, C;
    index_t neck_joint;            // chooses the contour row, as in LandmarkModel
    const std::int32_t* vertices;  // (3 L), then (79, 3 C), each ascending
    const std::int32_t* points;    // the landmark of the corner: 0 .. C - 1 in a row of the table, C .. C + L - 1 before
    const T* bary;
};

template <class T>
struct LbsForward {
    LbsModel<T> model;
    index_t B;
    const T* betas;  // rows of K
    index_t betas_stride;
    const T* pose;  // rows of 3 J (axis_angle) or 9 J (matrices)
    index_t pose_stride;
    bool axis_angle;
    const T* v_template;  // rows of 3 V
    index_t v_template_stride;
    const T* joint_template;  // rows of 3 J: J_regressor . v_template
    index_t joint_template_stride;
    bool keep;
    T* state;
    T* vertices;  // (B, V, 3)
    T* joints;    // (B, J, 3)
    MeshLandmarks<T> mesh_landmarks;
    T* landmarks;  // (B, C + L, 3): contour points first; null where not wanted. Only cpu::
};

// Gradients of what the forward call with the same model, betas, pose and joint_template computed.
template <class T>
struct LbsBackward {
    LbsModel<T> model;
    index_t B;
    const T* betas;
    index_t betas_stride;
    const T* pose;
    index_t pose_stride;
    bool axis_angle;
    const T* joint_template;
    index_t joint_template_stride;
    const T* state;          // as the forward call left it, keep = true
    const T* grad_vertices;  // any strides (0 where expanded); null for zero
    index_t grad_vertices_stride[3];
    const T* grad_joints;  // (B, J, 3) contiguous; null for zero
    MeshLandmarks<T> mesh_landmarks;
    const T* grad_landmarks;  // any strides; null for zero, and where grad_vertices is. Only cpu::
    index_t grad_landmarks_stride[3];
    // Outputs, contiguous, overwritten. Null where not wanted.
    T* grad_betas;       // (B, K)
    T* grad_pose;        // (B, 3 J) or (B, 9 J)
    T* grad_v_template;  // (B, V, 3), or (V, 3) summed over the batch where grad_v_template_shared. Only the direct part:
    bool grad_v_template_shared;
    T* grad_joint_template;  // (B, J, 3): the caller adds J_regressor^T of it to grad_v_template
    T* workspace;            // lbs_workspace_size elements
};

// The landmarks of a model, input of pack_landmarks: points of triangles, by vertex and barycentric coordinate.
template <class T>
struct LandmarkConstants {
    LbsConstants<T> lbs;
    const T* v_template;                   // (V, 3)
    index_t L, C;                          // static landmarks; contour landmarks (0 for no contour)
    const std::int64_t* static_vertices;   // (L, 3) vertex ids
    const T* static_bary;                  // (L, 3)
    const std::int64_t* contour_vertices;  // (79, C, 3)
    const T* contour_bary;                 // (79, C, 3)
};

// A model prepared for its landmarks alone: only the vertices that a landmark touches, the template included.
template <class T>
struct LandmarkModel {
    index_t K, J, L, C;
    index_t neck_joint;           // the contour row is chosen by the rotation from the root to this joint; unused where C == 0
    const std::int32_t* parents;  // as in LbsModel
    const T* joint_dirs;
    const T* joint_template;    // (3 J)
    const T* packed;            // landmarks_packed_size elements
    const std::int32_t* index;  // landmarks_index_size elements
};

template <class T>
struct LandmarksForward {
    LandmarkModel<T> model;
    index_t B;
    const T* betas;
    index_t betas_stride;
    const T* pose;
    index_t pose_stride;
    bool axis_angle;
    bool keep;
    T* state;
    T* landmarks;  // (B, C + L, 3): contour points first
};

// The same of a mesh that was computed: they are read off its vertices. Only cuda::; cpu::lbs_forward does it itself.
template <class T>
struct LandmarksOnMesh {
    LandmarkModel<T> model;
    const std::int64_t* static_vertices;  // as in LandmarkConstants
    const std::int64_t* contour_vertices;
    index_t B, V;
    const T* vertices;    // (B, V, 3), and
    const T* mesh_state;  // the state, as lbs_forward left them with the same keep
    bool keep;
    T* state;      // what landmarks_forward would leave with keep = true; null where not keep
    T* landmarks;  // (B, C + L, 3): contour points first
};

template <class T>
struct LandmarksBackward {
    LandmarkModel<T> model;
    index_t B;
    const T* betas;
    index_t betas_stride;
    const T* pose;
    index_t pose_stride;
    bool axis_angle;
    const T* state;
    const T* grad_landmarks;  // any strides
    index_t grad_landmarks_stride[3];
    T* grad_betas;  // (B, K) or null
    T* grad_pose;   // (B, 3 J) or (B, 9 J), or null
    T* workspace;   // landmarks_workspace_size elements
};

// Landmarks, and their derivatives: at the row of the contour table that the pose picks.
template <class T>
struct LandmarksJacobian {
    LandmarkModel<T> model;
    index_t B;
    const T* betas;
    index_t betas_stride;
    const T* pose;
    index_t pose_stride;
    bool axis_angle;
    // Outputs, contiguous.
    T* landmarks;  // (B, C + L, 3)
    T* d_betas;    // (B, C + L, 3, K)
    T* d_pose;     // (B, C + L, 3, 3 J), or (B, C + L, 3, 9 J) for matrices
    T* workspace;  // landmarks_jacobian_workspace_size elements
};

template <class T>
struct Rodrigues {
    index_t N;
    const T* rot_vecs;       // (N, 3)
    T* matrices;             // (N, 3, 3); output of the forward call
    const T* grad_matrices;  // (N, 3, 3) contiguous; input of the backward call
    T* grad_rot_vecs;        // (N, 3); output of the backward call
};

// Joints as weighted sums of vertices, or of anything that vertices have M numbers of. Only cpu::.
template <class T>
struct JointRegression {
    index_t B, V, J, M;
    const T* regressor;  // (J, V)
    const T* values;     // rows of V M
    index_t values_stride;
    T* joints;  // (B, J, M), summed in double
};

// Points on a mesh. cpu:: throws std::out_of_range for an index outside faces or vertices, before it reads anything
// there. cuda:: can't tell the host without a synchronisation: such a landmark is NaN, and has no gradient.
template <class T>
struct VerticesToLandmarks {
    index_t B, V, F, L;
    const T* vertices;  // rows of 3 V
    index_t vertices_stride;
    const std::int64_t* faces;          // (F, 3)
    const std::int64_t* lmk_faces_idx;  // rows of L
    index_t lmk_faces_idx_stride;
    const T* lmk_bary_coords;  // rows of 3 L
    index_t lmk_bary_coords_stride;
    T* landmarks;             // (B, L, 3); output of the forward call
    const T* grad_landmarks;  // (B, L, 3) contiguous; input of the backward call
    T* grad_vertices;         // (B, V, 3); output of the backward call, all of it overwritten
};

namespace cpu {

// Whether a model's directions are packed by pack_directions, or needn't be packed at all, and pack_lbs packs the rest.
bool separate_directions();

// Sizes in elements. state sizes are per batch element, and multiples of 16.
template <class T> index_t directions_packed_size(index_t V, index_t count);
template <class T> index_t directions_index_size(index_t V, index_t count);
template <class T> index_t lbs_packed_size(index_t V, index_t K, index_t J);
template <class T> index_t lbs_index_size(index_t V, index_t K, index_t J);
template <class T> index_t lbs_state_size(index_t V, index_t K, index_t J, bool keep);
template <class T> index_t lbs_workspace_size(index_t B, index_t V, index_t K, index_t J, bool grad_v_template_shared);
template <class T> index_t landmarks_packed_size(index_t K, index_t J, index_t L, index_t C);
template <class T> index_t landmarks_index_size(index_t K, index_t J, index_t L, index_t C);
template <class T> index_t landmarks_state_size(index_t K, index_t J, index_t L, index_t C, bool keep);
template <class T> index_t landmarks_workspace_size(index_t B, index_t K, index_t J, index_t L, index_t C);
template <class T> index_t landmarks_jacobian_workspace_size(index_t B, index_t K, index_t J, index_t L, index_t C);

template <class T> void pack_directions(const DirectionsSource<T>&, T* packed, std::int32_t* index, int threads);
template <class T> void pack_lbs(const LbsConstants<T>&, T* packed, std::int32_t* index, int threads);  // reads the weights only
template <class T> void pack_landmarks(const LandmarkConstants<T>&, T* packed, std::int32_t* index, int threads);

template <class T> void lbs_forward(const LbsForward<T>&, int threads);
template <class T> void lbs_backward(const LbsBackward<T>&, int threads);
template <class T> void landmarks_forward(const LandmarksForward<T>&, int threads);
template <class T> void landmarks_backward(const LandmarksBackward<T>&, int threads);
template <class T> void landmarks_jacobian(const LandmarksJacobian<T>&, int threads);
template <class T> void regress_joints(const JointRegression<T>&, int threads);
template <class T> void rodrigues_forward(const Rodrigues<T>&, int threads);
template <class T> void rodrigues_backward(const Rodrigues<T>&, int threads);
template <class T> void vertices2landmarks_forward(const VerticesToLandmarks<T>&, int threads);
template <class T> void vertices2landmarks_backward(const VerticesToLandmarks<T>&, int threads);

constexpr index_t digest_piece = 4096;  // bytes
// One of every piece of so much memory, of the last one's rest too: equal where the values are.
void digests(const void* memory, index_t bytes, std::uint64_t* digest, int threads);

const char* simd_level();  // "avx512", "avx2" or "baseline": what the machine has, or what RINGNET_SIMD asked for

}  // namespace cpu

namespace cuda {

using stream_t = void*;  // a cudaStream_t

template <class T> index_t lbs_packed_size(index_t V, index_t K, index_t J);
template <class T> index_t lbs_index_size(index_t V, index_t K, index_t J);
template <class T> index_t lbs_state_size(index_t V, index_t K, index_t J, bool keep);
template <class T> index_t lbs_workspace_size(index_t B, index_t V, index_t K, index_t J, bool grad_v_template_shared);
template <class T> index_t landmarks_packed_size(index_t K, index_t J, index_t L, index_t C);
template <class T> index_t landmarks_index_size(index_t K, index_t J, index_t L, index_t C);
template <class T> index_t landmarks_state_size(index_t K, index_t J, index_t L, index_t C, bool keep);
template <class T> index_t landmarks_workspace_size(index_t B, index_t K, index_t J, index_t L, index_t C);
template <class T> index_t landmarks_jacobian_workspace_size(index_t B, index_t K, index_t J, index_t L, index_t C);

template <class T> void pack_lbs(const LbsConstants<T>&, T* packed, std::int32_t* index, stream_t);
template <class T> void pack_landmarks(const LandmarkConstants<T>&, T* packed, std::int32_t* index, stream_t);

template <class T> void lbs_forward(const LbsForward<T>&, stream_t);
template <class T> void lbs_backward(const LbsBackward<T>&, stream_t);
template <class T> void landmarks_forward(const LandmarksForward<T>&, stream_t);
template <class T> void landmarks_on_mesh(const LandmarksOnMesh<T>&, stream_t);
template <class T> void landmarks_backward(const LandmarksBackward<T>&, stream_t);
template <class T> void landmarks_jacobian(const LandmarksJacobian<T>&, stream_t);
template <class T> void rodrigues_forward(const Rodrigues<T>&, stream_t);
template <class T> void rodrigues_backward(const Rodrigues<T>&, stream_t);
template <class T> void vertices2landmarks_forward(const VerticesToLandmarks<T>&, stream_t);
template <class T> void vertices2landmarks_backward(const VerticesToLandmarks<T>&, stream_t);

}  // namespace cuda
}  // namespace ringnet
