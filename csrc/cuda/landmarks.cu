#include "pack.cuh"
#include "small.cuh"

namespace ringnet::cuda {
namespace {

constexpr int corners = 3;

// Landmarks of packed tiles: all rows of the contour table, then the static ones. `landmark` is the row of a lane's landmark
// in the contour table, flattened, or among the static ones; -1 for an idle lane.
struct LandmarkLanes {
    index_t L, C;
    __device__ bool is_contour(index_t tile) const { return tile < contour_table_rows * landmark_tiles(L, C).contour; }
    __device__ index_t landmark(index_t tile, int lane) const {
        const index_t contour = landmark_tiles(L, C).contour;
        const index_t in_tile = lane / corners;
        if (in_tile >= tile_landmarks) return -1;
        if (is_contour(tile)) {
            const index_t l = tile % contour * tile_landmarks + in_tile;
            return l < C ? tile / contour * C + l : -1;
        }
        const index_t l = (tile - contour_table_rows * contour) * tile_landmarks + in_tile;
        return l < L ? l : -1;
    }
};

struct LandmarkSource {
    LandmarkLanes where;
    const std::int64_t *fixed, *contour;
    __device__ index_t operator()(index_t tile, int lane) const {
        const index_t l = where.landmark(tile, lane);
        const std::int64_t* vertices = where.is_contour(tile) ? contour : fixed;
        return l < 0 ? -1 : vertices[corners * l + lane % corners];
    }
};

// A warp per tile: the template and the barycentric coordinates of its lanes.
template <class T>
__global__ void pack_points_kernel(LandmarkConstants<T> c, LandmarkSource source, T* rest, T* bary) {
    const index_t tile = blockIdx.x;
    const int lane = static_cast<int>(threadIdx.x);
    const index_t v = source(tile, lane), l = source.where.landmark(tile, lane);
    for (int i = 0; i < 3; ++i) rest[tile * tile_columns + i * lanes + lane] = v < 0 ? T(0) : c.v_template[3 * v + i];
    const T* from = source.where.is_contour(tile) ? c.contour_bary : c.static_bary;
    bary[tile * tile_vertices + lane] = l < 0 ? T(0) : from[corners * l + lane % corners];
}

template <class T>
TileModel<T> tile_model_of(const LandmarkModel<T>& model) {
    return tile_model(landmark_tiles(model.L, model.C).packed(), model.K, model.J, model.packed, model.index);
}

template <class T>
struct ReadLandmarks {
    Landmarks<T> landmarks;
    TileModel<T> model;
    LandmarkSource source;
    index_t B, V, neck_joint;
    const T* vertices;
    State<T> mesh, state;  // state.blended is null where nothing is kept
};

constexpr int read_warps = 4;  // of a block

// A warp per slot of an element, a lane per corner. The transforms' rotations are the joints' in the world, so they tell the contour's row.
template <class T>
__global__ void __launch_bounds__(read_warps* lanes) read_landmarks_kernel(ReadLandmarks<T> p) {
    __shared__ T staged[read_warps * tile_columns];
    const int warp = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
    const unsigned slots = static_cast<unsigned>(p.landmarks.slots()),
                   i = blockIdx.x * read_warps + warp;  // 2^32 of them would be over 400 GB
    const index_t b = i / slots, slot = i % slots, pitch = transform_pitch(p.model.J), Fp = p.model.Fp;
    if (b >= p.B) return;  // a whole warp: no barrier below spans more than one
    const T* transforms = p.mesh.transforms + b * pitch;
    index_t row = 0;
    if (p.neck_joint >= 0) {
        T R[9];
        for (int n = 0; n < 9; ++n) R[n] = transforms[12 * p.neck_joint + n / 3 * 4 + n % 3];
        row = contour_row(R);
    }
    const index_t tile = p.landmarks.tile(slot, row), v = p.source(tile, lane);
    T point[3] = {T(0), T(0), T(0)};
    if (v >= 0)
        for (int c = 0; c < 3; ++c) point[c] = p.vertices[(b * p.V + v) * 3 + c];
    p.landmarks.store(p.model, b, slot, tile, lane, point, staged + warp * tile_columns);
    if (!p.state.blended) return;

    const T* blended = p.mesh.blended + (b * ceil_div(p.V, tile_vertices) + v / tile_vertices) * tile_columns + v % lanes;
    for (int c = 0; c < 3; ++c) p.state.blended[index_t(i) * tile_columns + c * lanes + lane] = v < 0 ? T(0) : blended[c * lanes];
    if (slot > 0) return;
    for (index_t k = lane; k < Fp; k += lanes) p.state.features[b * Fp + k] = p.mesh.features[b * Fp + k];
    for (index_t n = lane; n < pitch; n += lanes) p.state.transforms[b * pitch + n] = transform_value(transforms, p.model.J, row, n);
}

}  // namespace

template <class T>
index_t landmarks_packed_size(index_t K, index_t J, index_t L, index_t C) {
    return packed_size(landmark_tiles(L, C).packed(), K, J, true);
}

template <class T>
index_t landmarks_index_size(index_t, index_t J, index_t L, index_t C) {
    return index_size(landmark_tiles(L, C).packed(), J);
}

template <class T>
index_t landmarks_state_size(index_t K, index_t J, index_t L, index_t C, bool keep) {
    return state_size(landmark_tiles(L, C).per_element(), K, J, keep);
}

template <class T>
index_t landmarks_workspace_size(index_t B, index_t K, index_t J, index_t L, index_t C) {
    return B == 0 ? 0 : workspace_size(small_backward_plan<T>(B, landmark_tiles(L, C).per_element(), K, J), B, K, J, 0);
}

template <class T>
void pack_landmarks(const LandmarkConstants<T>& c, T* packed, std::int32_t* index, stream_t stream) {
    const TileModel<T> model = tile_model<T>(landmark_tiles(c.L, c.C).packed(), c.lbs.K, c.lbs.J, packed, index);
    const LandmarkSource source{{c.L, c.C}, c.static_vertices, c.contour_vertices};
    launch("pack_landmarks", pack_tiles_kernel<T, LandmarkSource>, model.tiles, pack_threads, 0, stream, c.lbs, source, model, packed,
           index);
    launch("pack_landmarks", pack_points_kernel<T>, model.tiles, lanes, 0, stream, c, source, packed + (model.rest - model.directions),
           packed + (model.bary - model.directions));
}

template <class T>
void landmarks_forward(const LandmarksForward<T>& p, stream_t stream) {
    if (p.B == 0) return;
    const index_t K = p.model.K, J = p.model.J, neck_joint = p.model.C > 0 ? p.model.neck_joint : -1;
    const State<T> state = state_of(p.state, p.B, K, J, p.keep);
    const PoseInput<T> in = pose_input(p, p.model.joint_template, 0);
    const ForwardPlan plan = landmarks_forward_plan<T>(p.B, landmark_tiles(p.model.L, p.model.C).per_element(), K, J);
    const bool empty = p.model.L + p.model.C == 0;  // the state is written all the same
    if (!plan.fused || empty) launch_pose(in, p.B, state, static_cast<T*>(nullptr), neck_joint, stream);
    const Landmarks<T> landmarks{p.model.L, p.model.C, p.landmarks, nullptr, {0, 0, 0}};
    launch_small_forward("landmarks_forward",
                         SmallForward<T, Landmarks<T>>{landmarks, tile_model_of(p.model), in, state, p.B, plan.fused, p.keep, plan.workers,
                                                       nullptr, neck_joint},
                         plan, stream);
}

template <class T>
void landmarks_on_mesh(const LandmarksOnMesh<T>& p, stream_t stream) {
    const auto& m = p.model;
    const index_t slots = landmark_tiles(m.L, m.C).per_element();
    if (p.B == 0 || slots == 0) return;                                                   // without landmarks nothing reads the state
    const State<T> mesh = state_of(const_cast<T*>(p.mesh_state), p.B, m.K, m.J, p.keep);  // only read
    const State<T> state = p.keep ? state_of(p.state, p.B, m.K, m.J, true) : State<T>{nullptr, nullptr, nullptr};
    const ReadLandmarks<T> read{{m.L, m.C, p.landmarks, nullptr, {0, 0, 0}},
                                tile_model_of(m),
                                {{m.L, m.C}, p.static_vertices, p.contour_vertices},
                                p.B,
                                p.V,
                                m.C > 0 ? m.neck_joint : -1,
                                p.vertices,
                                mesh,
                                state};
    launch("landmarks_on_mesh", read_landmarks_kernel<T>, ceil_div(p.B * slots, read_warps), read_warps * lanes, 0, stream, read);
}

template <class T>
void landmarks_backward(const LandmarksBackward<T>& p, stream_t stream) {
    if (p.B == 0) return;
    const index_t K = p.model.K, J = p.model.J, slots = landmark_tiles(p.model.L, p.model.C).per_element();
    const State<T> state = state_of(const_cast<T*>(p.state), p.B, K, J, true);  // only read
    const BackwardPlan plan = small_backward_plan<T>(p.B, slots, K, J);
    const Workspace<T> workspace = workspace_of(p.workspace, plan, p.B, K, J);
    const auto& stride = p.grad_landmarks_stride;
    const Landmarks<T> landmarks{p.model.L, p.model.C, nullptr, p.grad_landmarks, {stride[0], stride[1], stride[2]}};
    launch_small_backward("landmarks_backward", SmallBackward<T, Landmarks<T>>{landmarks, tile_model_of(p.model), state, workspace, p.B},
                          plan, stream);
    launch_pose_backward(PoseBackward<T>{pose_input(p, p.model.joint_template, 0), p.B, slots, workspace.features, workspace.transforms,
                                         nullptr, p.grad_betas, p.grad_pose, nullptr},
                         stream);
}

#define RN_INSTANTIATE(T)                                                                      \
    template index_t landmarks_packed_size<T>(index_t, index_t, index_t, index_t);             \
    template index_t landmarks_index_size<T>(index_t, index_t, index_t, index_t);              \
    template index_t landmarks_state_size<T>(index_t, index_t, index_t, index_t, bool);        \
    template index_t landmarks_workspace_size<T>(index_t, index_t, index_t, index_t, index_t); \
    template void pack_landmarks<T>(const LandmarkConstants<T>&, T*, std::int32_t*, stream_t); \
    template void landmarks_forward<T>(const LandmarksForward<T>&, stream_t);                  \
    template void landmarks_on_mesh<T>(const LandmarksOnMesh<T>&, stream_t);                   \
    template void landmarks_backward<T>(const LandmarksBackward<T>&, stream_t);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)
#undef RN_INSTANTIATE

}  // namespace ringnet::cuda
