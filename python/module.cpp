// _ringnet_core: where Python meets the core, which knows no torch. The caller (ringnet_ext.ops) has checked the tensors, some of it
// by means of tensors.h, and keeps them alive; here only their addresses, sizes and strides are read.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "buffers.h"
#include "marks.h"
#include "meshes.h"
#include "ops.h"
#include "place.h"
#include "tensors.h"

namespace py = pybind11;
using namespace ringnet;

namespace {

// Of points (N, 3), which all batch elements share, or (B, N, 3).
template <class T>
index_t batch_stride(const Array<T>& points) {
    return points.ndim == 3 ? points.stride[0] : 0;
}

[[noreturn]] [[maybe_unused]] void throw_no_cuda() {
    throw std::runtime_error("ringnet_ext was built without CUDA; reinstall it with CUDA: pip install . -C cmake.define.RINGNET_CUDA=ON");
}

#define RN_STRIDES(array) (array).stride[0], (array).stride[1], (array).stride[2]

// Calls FUNCTION of cpu:: or cuda:: with the arguments, where `tensor`, one of them, lives.
#if defined(RN_WITH_CUDA)
#define RN_RUN(FUNCTION, is_cuda, tensor, ...)              \
    do {                                                    \
        if (is_cuda) {                                      \
            const OnCuda place((tensor).object);            \
            const py::gil_scoped_release release;           \
            cuda::FUNCTION<T>(__VA_ARGS__, place.stream()); \
        } else {                                            \
            const int threads = number_of_threads();        \
            const py::gil_scoped_release release;           \
            cpu::FUNCTION<T>(__VA_ARGS__, threads);         \
        }                                                   \
    } while (0)
#define RN_RUN_CUDA(FUNCTION, tensor, ...)              \
    do {                                                \
        const OnCuda place((tensor).object);            \
        const py::gil_scoped_release release;           \
        cuda::FUNCTION<T>(__VA_ARGS__, place.stream()); \
    } while (0)
#define RN_SIZE(FUNCTION, is_cuda, ...) ((is_cuda) ? cuda::FUNCTION<T>(__VA_ARGS__) : cpu::FUNCTION<T>(__VA_ARGS__))
#else
#define RN_RUN_CUDA(FUNCTION, tensor, ...) ((void)(tensor), (void)(__VA_ARGS__), throw_no_cuda())
#define RN_RUN(FUNCTION, is_cuda, tensor, ...)   \
    do {                                         \
        if (is_cuda) throw_no_cuda();            \
        const int threads = number_of_threads(); \
        const py::gil_scoped_release release;    \
        cpu::FUNCTION<T>(__VA_ARGS__, threads);  \
    } while (0)
#define RN_SIZE(FUNCTION, is_cuda, ...) ((is_cuda) ? (throw_no_cuda(), index_t(0)) : cpu::FUNCTION<T>(__VA_ARGS__))
#endif

// Directions of shapedirs (V, 3, K), of which a row of K is at 3 v + xyz times their second stride, or posedirs (9 (J - 1), 3 V).
template <class T>
struct BoundDirections {
    FeatureDirections<T> directions;

    static BoundDirections of(const Array<const T>& s, const Optional<const T>& packed, const Optional<const std::int32_t>& index) {
        if (s.ndim == 3) return {{{s.shape[0], s.shape[2], s.data, s.stride[1], s.stride[2]}, packed.data, index.data}};
        if (s.ndim == 2) return {{{s.shape[1] / 3, s.shape[0], s.data, s.stride[1], s.stride[0]}, packed.data, index.data}};
        throw std::invalid_argument("source: expected (V, 3, K) or (9 (J - 1), 3 V)");
    }
    static void bind(py::module_& m, const char* name) {
        using namespace py::literals;
        py::class_<BoundDirections>(m, name)
            .def(py::init(&of), py::kw_only(), "source"_a, "packed"_a, "index"_a)
            .def_static("packed_size", &cpu::directions_packed_size<T>)
            .def_static("index_size", &cpu::directions_index_size<T>)
            .def_static(
                "pack",
                [](Array<const T> source, Array<T> packed, Array<std::int32_t> index) {
                    const DirectionsSource<T> s = of(source, {}, {}).directions.source;
                    const int threads = number_of_threads();
                    const py::gil_scoped_release release;
                    cpu::pack_directions<T>(s, packed.data, index.data, threads);
                },
                py::kw_only(), "source"_a, "packed"_a, "index"_a);
    }
};

// Every argument of a call that computes goes by its name, and a tensor as it is: its sizes and strides are read here.
template <class T>
struct BoundLbs {
    bool is_cuda;
    LbsModel<T> model;
    MeshLandmarks<T> landmarks;

    static bool separate_directions(bool is_cuda) { return !is_cuda && cpu::separate_directions(); }
    static void bind(py::module_& m, const char* name) {
        using namespace py::literals;
        py::class_<BoundLbs>(m, name)
            .def(py::init([](bool is_cuda, index_t V, Array<const std::int32_t> parents, Array<const T> joint_dirs, Array<const T> packed,
                             Array<const std::int32_t> index, const BoundDirections<T>* shape, const BoundDirections<T>* pose) {
                     const index_t K = joint_dirs.shape[0], J = joint_dirs.shape[1];
                     if (V < 1 || J < 1) throw std::invalid_argument("V, J: expected at least 1");
                     if (separate_directions(is_cuda) && !(shape && pose)) throw std::invalid_argument("shape, pose: expected directions");
                     return BoundLbs{is_cuda,
                                     {V, K, J, parents.data, joint_dirs.data, packed.data, index.data,
                                      shape ? shape->directions : FeatureDirections<T>{}, pose ? pose->directions : FeatureDirections<T>{}},
                                     {}};
                 }),
                 py::kw_only(), "is_cuda"_a, "V"_a, "parents"_a, "joint_dirs"_a, "packed"_a, "index"_a, "shape"_a, "pose"_a)
            .def_static("separate_directions", &separate_directions)
            .def_static("packed_size",
                        [](bool is_cuda, index_t V, index_t K, index_t J) { return RN_SIZE(lbs_packed_size, is_cuda, V, K, J); })
            .def_static("index_size",
                        [](bool is_cuda, index_t V, index_t K, index_t J) { return RN_SIZE(lbs_index_size, is_cuda, V, K, J); })
            .def_static("state_size", [](bool is_cuda, index_t V, index_t K, index_t J,
                                         bool keep) { return RN_SIZE(lbs_state_size, is_cuda, V, K, J, keep); })
            .def_static("workspace_size",
                        [](bool is_cuda, index_t B, index_t V, index_t K, index_t J, bool template_shared) {
                            return RN_SIZE(lbs_workspace_size, is_cuda, B, V, K, J, template_shared);
                        })
            .def_static(
                "pack",
                [](bool is_cuda, Optional<const T> shapedirs, Optional<const T> posedirs, Array<const T> lbs_weights, Array<T> packed,
                   Array<std::int32_t> index) {
                    if (!separate_directions(is_cuda) && !(shapedirs.object && posedirs.object))
                        throw std::invalid_argument("directions: expected");
                    const LbsConstants<T> c{lbs_weights.shape[0], shapedirs.shape[2], lbs_weights.shape[1],
                                            shapedirs.data,       posedirs.data,      lbs_weights.data};
                    RN_RUN(pack_lbs, is_cuda, packed, c, packed.data, index.data);
                },
                py::kw_only(), "is_cuda"_a, "shapedirs"_a, "posedirs"_a, "lbs_weights"_a, "packed"_a, "index"_a)
            .def(
                "with_landmarks",
                [](const BoundLbs& self, index_t L, index_t C, index_t neck_joint, Array<const std::int32_t> vertices,
                   Array<const std::int32_t> points, Array<const T> bary) {
                    if (self.is_cuda) throw std::invalid_argument("with_landmarks: on a CUDA device they are a model of their own");
                    if (L < 0 || C < 0) throw std::invalid_argument("L, C: expected at least 0");
                    if (C > 0 && (neck_joint < 0 || neck_joint >= self.model.J))
                        throw std::invalid_argument("neck_joint: expected a joint");
                    return BoundLbs{self.is_cuda, self.model, {L, C, neck_joint, vertices.data, points.data, bary.data}};
                },
                py::kw_only(), "L"_a, "C"_a, "neck_joint"_a, "vertices"_a, "points"_a, "bary"_a)
            .def(
                "forward",
                [](const BoundLbs& self, Array<const T> betas, Array<const T> pose, bool axis_angle, Array<const T> v_template,
                   Array<const T> joint_template, bool keep, Optional<T> state, Array<T> vertices, Array<T> joints, Optional<T> landmarks) {
                    const LbsForward<T> p{self.model,
                                          betas.shape[0],
                                          betas.data,
                                          betas.stride[0],
                                          pose.data,
                                          pose.stride[0],
                                          axis_angle,
                                          v_template.data,
                                          batch_stride(v_template),
                                          joint_template.data,
                                          batch_stride(joint_template),
                                          keep,
                                          state.data,
                                          vertices.data,
                                          joints.data,
                                          self.landmarks,
                                          landmarks.data};
                    RN_RUN(lbs_forward, self.is_cuda, betas, p);
                },
                py::kw_only(), "betas"_a, "pose"_a, "axis_angle"_a, "v_template"_a, "joint_template"_a, "keep"_a, "state"_a, "vertices"_a,
                "joints"_a, "landmarks"_a)
            .def(
                "backward",
                [](const BoundLbs& self, Array<const T> betas, Array<const T> pose, bool axis_angle, Array<const T> joint_template,
                   Array<const T> state, Optional<const T> grad_vertices, Optional<const T> grad_joints, Optional<const T> grad_landmarks,
                   Optional<T> grad_betas, Optional<T> grad_pose, Optional<T> grad_v_template, Optional<T> grad_joint_template,
                   Optional<T> workspace) {
                    const LbsBackward<T> p{self.model,
                                           betas.shape[0],
                                           betas.data,
                                           betas.stride[0],
                                           pose.data,
                                           pose.stride[0],
                                           axis_angle,
                                           joint_template.data,
                                           batch_stride(joint_template),
                                           state.data,
                                           grad_vertices.data,
                                           {RN_STRIDES(grad_vertices)},
                                           grad_joints.data,
                                           self.landmarks,
                                           grad_landmarks.data,
                                           {RN_STRIDES(grad_landmarks)},
                                           grad_betas.data,
                                           grad_pose.data,
                                           grad_v_template.data,
                                           grad_v_template.ndim == 2,
                                           grad_joint_template.data,
                                           workspace.data};
                    RN_RUN(lbs_backward, self.is_cuda, betas, p);
                },
                py::kw_only(), "betas"_a, "pose"_a, "axis_angle"_a, "joint_template"_a, "state"_a, "grad_vertices"_a, "grad_joints"_a,
                "grad_landmarks"_a, "grad_betas"_a, "grad_pose"_a, "grad_v_template"_a, "grad_joint_template"_a, "workspace"_a);
    }
};

template <class T>
struct BoundLandmarks {
    bool is_cuda;
    LandmarkModel<T> model;

    static void bind(py::module_& m, const char* name) {
        using namespace py::literals;
        py::class_<BoundLandmarks>(m, name)
            .def(py::init([](bool is_cuda, index_t L, index_t C, index_t neck_joint, Array<const std::int32_t> parents,
                             Array<const T> joint_dirs, Array<const T> joint_template, Array<const T> packed,
                             Array<const std::int32_t> index) {
                     const index_t K = joint_dirs.shape[0], J = joint_dirs.shape[1];
                     if (J < 1 || L < 0 || C < 0) throw std::invalid_argument("J: expected at least 1; L, C: at least 0");
                     if (C > 0 && (neck_joint < 0 || neck_joint >= J)) throw std::invalid_argument("neck_joint: expected a joint");
                     return BoundLandmarks{
                         is_cuda, {K, J, L, C, neck_joint, parents.data, joint_dirs.data, joint_template.data, packed.data, index.data}};
                 }),
                 py::kw_only(), "is_cuda"_a, "L"_a, "C"_a, "neck_joint"_a, "parents"_a, "joint_dirs"_a, "joint_template"_a, "packed"_a,
                 "index"_a)
            .def_static("packed_size", [](bool is_cuda, index_t K, index_t J, index_t L,
                                          index_t C) { return RN_SIZE(landmarks_packed_size, is_cuda, K, J, L, C); })
            .def_static("index_size", [](bool is_cuda, index_t K, index_t J, index_t L,
                                         index_t C) { return RN_SIZE(landmarks_index_size, is_cuda, K, J, L, C); })
            .def_static("state_size", [](bool is_cuda, index_t K, index_t J, index_t L, index_t C,
                                         bool keep) { return RN_SIZE(landmarks_state_size, is_cuda, K, J, L, C, keep); })
            .def_static("workspace_size", [](bool is_cuda, index_t B, index_t K, index_t J, index_t L,
                                             index_t C) { return RN_SIZE(landmarks_workspace_size, is_cuda, B, K, J, L, C); })
            .def_static(
                "pack",
                [](bool is_cuda, Array<const T> shapedirs, Array<const T> posedirs, Array<const T> lbs_weights, Array<const T> v_template,
                   Array<const std::int64_t> static_vertices, Array<const T> static_bary, Optional<const std::int64_t> contour_vertices,
                   Optional<const T> contour_bary, Array<T> packed, Array<std::int32_t> index) {
                    const index_t L = static_bary.shape[0], C = contour_bary.data ? contour_bary.shape[1] : 0;
                    const LandmarkConstants<T> c{
                        {shapedirs.shape[0], shapedirs.shape[2], lbs_weights.shape[1], shapedirs.data, posedirs.data, lbs_weights.data},
                        v_template.data,
                        L,
                        C,
                        static_vertices.data,
                        static_bary.data,
                        contour_vertices.data,
                        contour_bary.data};
                    RN_RUN(pack_landmarks, is_cuda, packed, c, packed.data, index.data);
                },
                py::kw_only(), "is_cuda"_a, "shapedirs"_a, "posedirs"_a, "lbs_weights"_a, "v_template"_a, "static_vertices"_a,
                "static_bary"_a, "contour_vertices"_a, "contour_bary"_a, "packed"_a, "index"_a)
            .def(
                "forward",
                [](const BoundLandmarks& self, Array<const T> betas, Array<const T> pose, bool axis_angle, bool keep, Optional<T> state,
                   Array<T> landmarks) {
                    const LandmarksForward<T> p{self.model,     betas.shape[0], betas.data, betas.stride[0], pose.data,
                                                pose.stride[0], axis_angle,     keep,       state.data,      landmarks.data};
                    RN_RUN(landmarks_forward, self.is_cuda, betas, p);
                },
                py::kw_only(), "betas"_a, "pose"_a, "axis_angle"_a, "keep"_a, "state"_a, "landmarks"_a)
            .def(
                "on_mesh",
                [](const BoundLandmarks& self, Array<const std::int64_t> static_vertices, Optional<const std::int64_t> contour_vertices,
                   Array<const T> vertices, Array<const T> mesh_state, bool keep, Optional<T> state, Array<T> landmarks) {
                    const LandmarksOnMesh<T> p{self.model,        static_vertices.data, contour_vertices.data, vertices.shape[0],
                                               vertices.shape[1], vertices.data,        mesh_state.data,       keep,
                                               state.data,        landmarks.data};
                    RN_RUN_CUDA(landmarks_on_mesh, vertices, p);
                },
                py::kw_only(), "static_vertices"_a, "contour_vertices"_a, "vertices"_a, "mesh_state"_a, "keep"_a, "state"_a, "landmarks"_a)
            .def_static("jacobian_workspace_size",
                        [](bool is_cuda, index_t B, index_t K, index_t J, index_t L, index_t C) {
                            return RN_SIZE(landmarks_jacobian_workspace_size, is_cuda, B, K, J, L, C);
                        })
            .def(
                "jacobian",
                [](const BoundLandmarks& self, Array<const T> betas, Array<const T> pose, bool axis_angle, Array<T> landmarks,
                   Array<T> d_betas, Array<T> d_pose, Optional<T> workspace) {
                    const LandmarksJacobian<T> p{self.model, betas.shape[0], betas.data,   betas.stride[0], pose.data,     pose.stride[0],
                                                 axis_angle, landmarks.data, d_betas.data, d_pose.data,     workspace.data};
                    RN_RUN(landmarks_jacobian, self.is_cuda, betas, p);
                },
                py::kw_only(), "betas"_a, "pose"_a, "axis_angle"_a, "landmarks"_a, "d_betas"_a, "d_pose"_a, "workspace"_a)
            .def(
                "backward",
                [](const BoundLandmarks& self, Array<const T> betas, Array<const T> pose, bool axis_angle, Array<const T> state,
                   Array<const T> grad_landmarks, Optional<T> grad_betas, Optional<T> grad_pose, Optional<T> workspace) {
                    const LandmarksBackward<T> p{
                        self.model,      betas.shape[0], betas.data,    betas.stride[0],     pose.data,
                        pose.stride[0],  axis_angle,     state.data,    grad_landmarks.data, {RN_STRIDES(grad_landmarks)},
                        grad_betas.data, grad_pose.data, workspace.data};
                    RN_RUN(landmarks_backward, self.is_cuda, betas, p);
                },
                py::kw_only(), "betas"_a, "pose"_a, "axis_angle"_a, "state"_a, "grad_landmarks"_a, "grad_betas"_a, "grad_pose"_a,
                "workspace"_a);
    }
};

template <class T>
void bind_points(py::module_& m, const std::string& suffix) {
    using namespace py::literals;
    m.def(("regress_joints_" + suffix).c_str(),
          [](Array<const T> regressor, Array<const T> values, Array<T> joints) {
              const JointRegression<T> p{values.shape[0], values.shape[1], regressor.shape[0], values.shape[2],
                                         regressor.data,  values.data,     values.stride[0],   joints.data};
              const int threads = number_of_threads();
              const py::gil_scoped_release release;
              cpu::regress_joints<T>(p, threads);
          },
          py::kw_only(), "regressor"_a, "values"_a, "joints"_a);
    m.def(("rodrigues_forward_" + suffix).c_str(),
          [](bool is_cuda, Array<const T> rot_vecs, Array<T> matrices) {
              RN_RUN(rodrigues_forward, is_cuda, rot_vecs, Rodrigues<T>{rot_vecs.shape[0], rot_vecs.data, matrices.data, nullptr, nullptr});
          },
          py::kw_only(), "is_cuda"_a, "rot_vecs"_a, "matrices"_a);
    m.def(("rodrigues_backward_" + suffix).c_str(),
          [](bool is_cuda, Array<const T> rot_vecs, Array<const T> grad_matrices, Array<T> grad_rot_vecs) {
              const Rodrigues<T> p{rot_vecs.shape[0], rot_vecs.data, nullptr, grad_matrices.data, grad_rot_vecs.data};
              RN_RUN(rodrigues_backward, is_cuda, rot_vecs, p);
          },
          py::kw_only(), "is_cuda"_a, "rot_vecs"_a, "grad_matrices"_a, "grad_rot_vecs"_a);
    m.def(("vertices2landmarks_forward_" + suffix).c_str(),
          [](bool is_cuda, Array<const T> vertices, Array<const std::int64_t> faces, Array<const std::int64_t> lmk_faces_idx,
             Array<const T> lmk_bary_coords, Array<T> landmarks) {
              const VerticesToLandmarks<T> p{vertices.shape[0],
                                             vertices.shape[1],
                                             faces.shape[0],
                                             lmk_faces_idx.shape[1],
                                             vertices.data,
                                             vertices.stride[0],
                                             faces.data,
                                             lmk_faces_idx.data,
                                             lmk_faces_idx.stride[0],
                                             lmk_bary_coords.data,
                                             lmk_bary_coords.stride[0],
                                             landmarks.data,
                                             nullptr,
                                             nullptr};
              RN_RUN(vertices2landmarks_forward, is_cuda, vertices, p);
          },
          py::kw_only(), "is_cuda"_a, "vertices"_a, "faces"_a, "lmk_faces_idx"_a, "lmk_bary_coords"_a, "landmarks"_a);
    m.def(("vertices2landmarks_backward_" + suffix).c_str(),
          [](bool is_cuda, Array<const std::int64_t> faces, Array<const std::int64_t> lmk_faces_idx, Array<const T> lmk_bary_coords,
             Array<const T> grad_landmarks, Array<T> grad_vertices) {
              const VerticesToLandmarks<T> p{grad_vertices.shape[0],
                                             grad_vertices.shape[1],
                                             faces.shape[0],
                                             lmk_faces_idx.shape[1],
                                             nullptr,
                                             0,
                                             faces.data,
                                             lmk_faces_idx.data,
                                             lmk_faces_idx.stride[0],
                                             lmk_bary_coords.data,
                                             lmk_bary_coords.stride[0],
                                             nullptr,
                                             grad_landmarks.data,
                                             grad_vertices.data};
              RN_RUN(vertices2landmarks_backward, is_cuda, grad_vertices, p);
          },
          py::kw_only(), "is_cuda"_a, "faces"_a, "lmk_faces_idx"_a, "lmk_bary_coords"_a, "grad_landmarks"_a, "grad_vertices"_a);
}

}  // namespace

PYBIND11_MODULE(_ringnet_core, m) {
    m.doc() = "The compute core of ringnet_ext. Trusts the tensors it is given: use ringnet_ext.ops, which checks them.";
    m.attr("__version__") = RN_VERSION;
    m.attr("compiler") = RN_COMPILER;
    m.attr("cuda_architectures") = RN_CUDA_ARCHITECTURES;  // "" where built without CUDA
    m.attr("openmp") =
#if defined(_OPENMP)
        true;
#else
        false;
#endif
    m.def("simd_level", &cpu::simd_level);
    m.def("discard", &discard);
    bind_marks(m);
    bind_meshes(m);
    m.def("batch_size", &batch_size);
    m.def("shaped_like", &shaped_like, py::arg(), py::arg(), py::arg(), py::arg("contiguous") = false);
    m.def("use_exchange", [](bool wanted) { Torch::get().use_exchange(wanted); });
    BoundDirections<float>::bind(m, "DirectionsF32");
    BoundDirections<double>::bind(m, "DirectionsF64");
    BoundLbs<float>::bind(m, "LbsModelF32");
    BoundLbs<double>::bind(m, "LbsModelF64");
    BoundLandmarks<float>::bind(m, "LandmarkModelF32");
    BoundLandmarks<double>::bind(m, "LandmarkModelF64");
    bind_points<float>(m, "f32");
    bind_points<double>(m, "f64");
}
