#include "mesh_backward.cuh"
#include "mesh_forward_tensor.cuh"
#include "pack.cuh"
#include "small.cuh"

namespace ringnet::cuda {
namespace {

index_t mesh_tiles(index_t V) { return ceil_div(V, tile_vertices); }

struct MeshSource {
    index_t V;
    __device__ index_t operator()(index_t tile, int lane) const {
        const index_t v = tile * tile_vertices + lane;
        return v < V ? v : -1;
    }
};

template <class T>
TileModel<T> tile_model_of(const LbsModel<T>& model) {
    return tile_model(mesh_tiles(model.V), model.K, model.J, model.packed, model.index);
}

// Whether the products of large batches run on tensor cores: layout.h's rule for the device at hand, where the code is for sm_80 or above.
// Code for older devices, translated for this one, lacks the instruction.
bool tensor_cores(const char* name) {
    if (!tensor_cores_pay(compute_capability(name))) return false;
    cudaFuncAttributes code;
    check(cudaFuncGetAttributes(&code, mesh_forward_tensor_kernel<float>), name);
    return code.ptxVersion >= 80;
}

}  // namespace

template <class T>
index_t lbs_packed_size(index_t V, index_t K, index_t J) {
    return packed_size(mesh_tiles(V), K, J, false);
}

template <class T>
index_t lbs_index_size(index_t V, index_t, index_t J) {
    return index_size(mesh_tiles(V), J);
}

template <class T>
index_t lbs_state_size(index_t V, index_t K, index_t J, bool keep) {
    return state_size(mesh_tiles(V), K, J, keep);
}

template <class T>
index_t lbs_workspace_size(index_t B, index_t V, index_t K, index_t J, bool grad_v_template_shared) {
    return B == 0 ? 0 : workspace_size(mesh_backward_plan<T>(B, V, K, J), B, K, J, grad_v_template_shared ? mesh_tiles(V) : 0);
}

template <class T>
void pack_lbs(const LbsConstants<T>& c, T* packed, std::int32_t* index, stream_t stream) {
    const TileModel<T> model = tile_model<T>(mesh_tiles(c.V), c.K, c.J, packed, index);
    launch("pack_lbs", pack_tiles_kernel<T, MeshSource>, model.tiles, pack_threads, 0, stream, c, MeshSource{c.V}, model, packed, index);
}

template <class T>
void lbs_forward(const LbsForward<T>& p, stream_t stream) {
    if (p.B == 0) return;
    const index_t V = p.model.V, K = p.model.K, J = p.model.J;
    const TileModel<T> model = tile_model_of(p.model);
    const State<T> state = state_of(p.state, p.B, K, J, p.keep);
    const PoseInput<T> in = pose_input(p, p.joint_template, p.joint_template_stride);
    const ForwardPlan plan = mesh_forward_plan<T>(p.B, V, K, J);
    if (!plan.fused || V == 0) launch_pose(in, p.B, state, p.joints, -1, stream);
    if (plan.small) {
        const Mesh<T> mesh{V, p.v_template, p.v_template_stride, p.vertices, nullptr, {0, 0, 0}, nullptr, false};
        launch_small_forward("lbs_forward",
                             SmallForward<T, Mesh<T>>{mesh, model, in, state, p.B, plan.fused, p.keep, plan.workers, p.joints, -1}, plan,
                             stream);
    } else {
        const MeshForward<T> mesh{model, state, p.B, V, p.v_template, p.v_template_stride, p.keep, p.vertices};
        launch_mesh_forward("lbs_forward", mesh, plan.elements, plan.elements == 16 && tensor_cores("lbs_forward"), stream);
    }
}

template <class T>
void lbs_backward(const LbsBackward<T>& p, stream_t stream) {
    const index_t V = p.model.V, K = p.model.K, J = p.model.J;
    const bool sum_rest = p.grad_v_template && p.grad_v_template_shared;
    const auto rest_bytes = static_cast<std::size_t>((sum_rest ? 1 : p.B) * V * 3) * sizeof(T);
    if (p.grad_v_template && rest_bytes > 0 && (!p.grad_vertices || p.B == 0))
        check(cudaMemsetAsync(p.grad_v_template, 0, rest_bytes, static_cast<cudaStream_t>(stream)), "lbs_backward");
    if (p.B == 0) return;

    const TileModel<T> model = tile_model_of(p.model);
    // The state is only read: State's pointers serve both directions.
    const State<T> state = state_of(const_cast<T*>(p.state), p.B, K, J, true);
    const BackwardPlan plan = mesh_backward_plan<T>(p.B, V, K, J);
    const Workspace<T> workspace = workspace_of(p.workspace, plan, p.B, K, J);
    const auto& stride = p.grad_vertices_stride;
    if (p.grad_vertices && plan.small) {
        const Mesh<T> mesh{V, nullptr, 0, nullptr, p.grad_vertices, {stride[0], stride[1], stride[2]}, p.grad_v_template, sum_rest};
        launch_small_backward("lbs_backward", SmallBackward<T, Mesh<T>>{mesh, model, state, workspace, p.B}, plan, stream);
    } else if (p.grad_vertices) {
        const MeshBackward<T> mesh{
            model, state, workspace, plan, p.B, V, p.grad_vertices, {stride[0], stride[1], stride[2]}, p.grad_v_template, sum_rest};
        launch_mesh_backward("lbs_backward", mesh, plan.elements == 8 && tensor_cores("lbs_backward"), stream);
    }
    if (p.grad_vertices && sum_rest)
        launch("lbs_backward", sum_rest_kernel<T>, ceil_div(3 * V, 256), 256, 0, stream, static_cast<const T*>(workspace.rest), plan.groups,
               model.tiles, V, p.grad_v_template);
    launch_pose_backward(
        PoseBackward<T>{pose_input(p, p.joint_template, p.joint_template_stride), p.B, p.grad_vertices ? plan.chunks : 0,
                        workspace.features, workspace.transforms, p.grad_joints, p.grad_betas, p.grad_pose, p.grad_joint_template},
        stream);
}

#define RN_INSTANTIATE(T)                                                             \
    template index_t lbs_packed_size<T>(index_t, index_t, index_t);                   \
    template index_t lbs_index_size<T>(index_t, index_t, index_t);                    \
    template index_t lbs_state_size<T>(index_t, index_t, index_t, bool);              \
    template index_t lbs_workspace_size<T>(index_t, index_t, index_t, index_t, bool); \
    template void pack_lbs<T>(const LbsConstants<T>&, T*, std::int32_t*, stream_t);   \
    template void lbs_forward<T>(const LbsForward<T>&, stream_t);                     \
    template void lbs_backward<T>(const LbsBackward<T>&, stream_t);
RN_INSTANTIATE(float)
RN_INSTANTIATE(double)
#undef RN_INSTANTIATE

}  // namespace ringnet::cuda
