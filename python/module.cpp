// _ringnet_core: where Python meets the core, which knows no torch: to it, tensors come as addresses, and the caller
// (ringnet_ext.ops) has checked what they point to, some of it by means of tensors.h, and keeps them alive. `where` is the last argument of every call that computes: the number of
// threads on the CPU, the stream's handle on a CUDA device.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "buffers.h"
#include "ops.h"
#include "tensors.h"

namespace py = pybind11;
using namespace ringnet;

namespace {

using address = std::uintptr_t;

template <class T>
T* at(address a) {
    return reinterpret_cast<T*>(a);
}

[[noreturn]] [[maybe_unused]] void throw_no_cuda() {
    throw std::runtime_error("ringnet_ext was built without CUDA; reinstall it with CUDA: pip install . -C cmake.define.RINGNET_CUDA=ON");
}

// Calls FUNCTION of cpu:: or cuda:: with the arguments and, last, where to run.
#if defined(RN_WITH_CUDA)
#define RN_RUN(FUNCTION, is_cuda, where, ...)                              \
    do {                                                                   \
        if (is_cuda)                                                       \
            cuda::FUNCTION<T>(__VA_ARGS__, reinterpret_cast<void*>(where)); \
        else                                                               \
            cpu::FUNCTION<T>(__VA_ARGS__, static_cast<int>(where));        \
    } while (0)
#define RN_SIZE(FUNCTION, is_cuda, ...) ((is_cuda) ? cuda::FUNCTION<T>(__VA_ARGS__) : cpu::FUNCTION<T>(__VA_ARGS__))
#else
#define RN_RUN(FUNCTION, is_cuda, where, ...)                       \
    do {                                                            \
        if (is_cuda) throw_no_cuda();                               \
        cpu::FUNCTION<T>(__VA_ARGS__, static_cast<int>(where));     \
    } while (0)
#define RN_SIZE(FUNCTION, is_cuda, ...) ((is_cuda) ? (throw_no_cuda(), index_t(0)) : cpu::FUNCTION<T>(__VA_ARGS__))
#endif

template <class T>
struct BoundLbs {
    bool is_cuda;
    LbsModel<T> model;
    MeshLandmarks<T> landmarks;

    static void bind(py::module_& m, const char* name) {
        const auto release = py::call_guard<py::gil_scoped_release>();
        py::class_<BoundLbs>(m, name)
            .def(py::init([](bool is_cuda, index_t V, index_t K, index_t J, address parents, address joint_dirs, address packed,
                             address index) {
                     if (V < 1 || K < 0 || J < 1) throw std::invalid_argument("V, J: expected at least 1; K: at least 0");
                     return BoundLbs{is_cuda, {V, K, J, at<const std::int32_t>(parents), at<const T>(joint_dirs),
                                               at<const T>(packed), at<const std::int32_t>(index)}, {}};
                 }),
                 py::arg("is_cuda"), py::arg("V"), py::arg("K"), py::arg("J"), py::arg("parents"), py::arg("joint_dirs"),
                 py::arg("packed"), py::arg("index"))
            .def_static("packed_size", [](bool is_cuda, index_t V, index_t K, index_t J) {
                return RN_SIZE(lbs_packed_size, is_cuda, V, K, J);
            })
            .def_static("index_size", [](bool is_cuda, index_t V, index_t K, index_t J) {
                return RN_SIZE(lbs_index_size, is_cuda, V, K, J);
            })
            .def_static("state_size", [](bool is_cuda, index_t V, index_t K, index_t J, bool keep) {
                return RN_SIZE(lbs_state_size, is_cuda, V, K, J, keep);
            })
            .def_static("workspace_size", [](bool is_cuda, index_t B, index_t V, index_t K, index_t J, bool template_shared) {
                return RN_SIZE(lbs_workspace_size, is_cuda, B, V, K, J, template_shared);
            })
            .def_static("pack", [](bool is_cuda, index_t V, index_t K, index_t J, address shapedirs, address posedirs,
                                   address lbs_weights, address packed, address index, address where) {
                const LbsConstants<T> c{V, K, J, at<const T>(shapedirs), at<const T>(posedirs), at<const T>(lbs_weights)};
                RN_RUN(pack_lbs, is_cuda, where, c, at<T>(packed), at<std::int32_t>(index));
            }, release)
            .def("with_landmarks", [](const BoundLbs& self, index_t L, index_t C, index_t neck_joint, address vertices, address points,
                                      address bary) {
                if (self.is_cuda) throw std::invalid_argument("with_landmarks: on a CUDA device they are a model of their own");
                if (L < 0 || C < 0) throw std::invalid_argument("L, C: expected at least 0");
                if (C > 0 && (neck_joint < 0 || neck_joint >= self.model.J)) throw std::invalid_argument("neck_joint: expected a joint");
                return BoundLbs{self.is_cuda, self.model, {L, C, neck_joint, at<const std::int32_t>(vertices),
                                                           at<const std::int32_t>(points), at<const T>(bary)}};
            })
            .def("forward", [](const BoundLbs& self, index_t B, address betas, index_t betas_stride, address pose,
                               index_t pose_stride, bool axis_angle, address v_template, index_t v_template_stride,
                               address joint_template, index_t joint_template_stride, bool keep, address state,
                               address vertices, address joints, address landmarks, address where) {
                const LbsForward<T> p{self.model, B, at<const T>(betas), betas_stride, at<const T>(pose), pose_stride,
                                      axis_angle, at<const T>(v_template), v_template_stride, at<const T>(joint_template),
                                      joint_template_stride, keep, at<T>(state), at<T>(vertices), at<T>(joints),
                                      self.landmarks, at<T>(landmarks)};
                RN_RUN(lbs_forward, self.is_cuda, where, p);
            }, release)
            .def("backward", [](const BoundLbs& self, index_t B, address betas, index_t betas_stride, address pose,
                                index_t pose_stride, bool axis_angle, address joint_template, index_t joint_template_stride,
                                address state, address grad_vertices, index_t stride_b, index_t stride_v, index_t stride_c,
                                address grad_joints, address grad_landmarks, index_t landmarks_stride_b,
                                index_t landmarks_stride_l, index_t landmarks_stride_c, address grad_betas, address grad_pose,
                                address grad_v_template,
                                bool grad_v_template_shared, address grad_joint_template, address workspace, address where) {
                const LbsBackward<T> p{self.model, B, at<const T>(betas), betas_stride, at<const T>(pose), pose_stride,
                                       axis_angle, at<const T>(joint_template), joint_template_stride, at<const T>(state),
                                       at<const T>(grad_vertices), {stride_b, stride_v, stride_c}, at<const T>(grad_joints),
                                       self.landmarks, at<const T>(grad_landmarks),
                                       {landmarks_stride_b, landmarks_stride_l, landmarks_stride_c},
                                       at<T>(grad_betas), at<T>(grad_pose), at<T>(grad_v_template), grad_v_template_shared,
                                       at<T>(grad_joint_template), at<T>(workspace)};
                RN_RUN(lbs_backward, self.is_cuda, where, p);
            }, release);
    }
};

template <class T>
struct BoundLandmarks {
    bool is_cuda;
    LandmarkModel<T> model;

    static void bind(py::module_& m, const char* name) {
        const auto release = py::call_guard<py::gil_scoped_release>();
        py::class_<BoundLandmarks>(m, name)
            .def(py::init([](bool is_cuda, index_t K, index_t J, index_t L, index_t C, index_t neck_joint, address parents,
                             address joint_dirs, address joint_template, address packed, address index) {
                     if (K < 0 || J < 1 || L < 0 || C < 0) throw std::invalid_argument("J: expected at least 1; K, L, C: at least 0");
                     if (C > 0 && (neck_joint < 0 || neck_joint >= J)) throw std::invalid_argument("neck_joint: expected a joint");
                     return BoundLandmarks{is_cuda, {K, J, L, C, neck_joint, at<const std::int32_t>(parents),
                                                     at<const T>(joint_dirs), at<const T>(joint_template), at<const T>(packed),
                                                     at<const std::int32_t>(index)}};
                 }),
                 py::arg("is_cuda"), py::arg("K"), py::arg("J"), py::arg("L"), py::arg("C"), py::arg("neck_joint"),
                 py::arg("parents"), py::arg("joint_dirs"), py::arg("joint_template"), py::arg("packed"), py::arg("index"))
            .def_static("packed_size", [](bool is_cuda, index_t K, index_t J, index_t L, index_t C) {
                return RN_SIZE(landmarks_packed_size, is_cuda, K, J, L, C);
            })
            .def_static("index_size", [](bool is_cuda, index_t K, index_t J, index_t L, index_t C) {
                return RN_SIZE(landmarks_index_size, is_cuda, K, J, L, C);
            })
            .def_static("state_size", [](bool is_cuda, index_t K, index_t J, index_t L, index_t C, bool keep) {
                return RN_SIZE(landmarks_state_size, is_cuda, K, J, L, C, keep);
            })
            .def_static("workspace_size", [](bool is_cuda, index_t B, index_t K, index_t J, index_t L, index_t C) {
                return RN_SIZE(landmarks_workspace_size, is_cuda, B, K, J, L, C);
            })
            .def_static("pack", [](bool is_cuda, index_t V, index_t K, index_t J, index_t L, index_t C, address shapedirs,
                                   address posedirs, address lbs_weights, address v_template, address static_vertices,
                                   address static_bary, address contour_vertices, address contour_bary, address packed,
                                   address index, address where) {
                const LandmarkConstants<T> c{
                    {V, K, J, at<const T>(shapedirs), at<const T>(posedirs), at<const T>(lbs_weights)},
                    at<const T>(v_template), L, C, at<const std::int64_t>(static_vertices), at<const T>(static_bary),
                    at<const std::int64_t>(contour_vertices), at<const T>(contour_bary)};
                RN_RUN(pack_landmarks, is_cuda, where, c, at<T>(packed), at<std::int32_t>(index));
            }, release)
            .def("forward", [](const BoundLandmarks& self, index_t B, address betas, index_t betas_stride, address pose,
                               index_t pose_stride, bool axis_angle, bool keep, address state, address landmarks, address where) {
                const LandmarksForward<T> p{self.model, B, at<const T>(betas), betas_stride, at<const T>(pose), pose_stride,
                                            axis_angle, keep, at<T>(state), at<T>(landmarks)};
                RN_RUN(landmarks_forward, self.is_cuda, where, p);
            }, release)
            .def("jacobian", [](const BoundLandmarks& self, index_t B, address betas, index_t betas_stride, address pose,
                                index_t pose_stride, bool axis_angle, address landmarks, address d_betas, address d_pose, address workspace,
                                address where) {
                const LandmarksJacobian<T> p{self.model, B, at<const T>(betas), betas_stride, at<const T>(pose), pose_stride,
                                             axis_angle, at<T>(landmarks), at<T>(d_betas), at<T>(d_pose), at<T>(workspace)};
                RN_RUN(landmarks_jacobian, self.is_cuda, where, p);
            }, release)
            .def_static("jacobian_workspace_size", [](bool is_cuda, index_t B, index_t K, index_t J, index_t L, index_t C) {
                return RN_SIZE(landmarks_jacobian_workspace_size, is_cuda, B, K, J, L, C);
            })
            .def("backward", [](const BoundLandmarks& self, index_t B, address betas, index_t betas_stride, address pose,
                                index_t pose_stride, bool axis_angle, address state, address grad_landmarks, index_t stride_b,
                                index_t stride_l, index_t stride_c, address grad_betas, address grad_pose, address workspace,
                                address where) {
                const LandmarksBackward<T> p{self.model, B, at<const T>(betas), betas_stride, at<const T>(pose), pose_stride,
                                             axis_angle, at<const T>(state), at<const T>(grad_landmarks),
                                             {stride_b, stride_l, stride_c}, at<T>(grad_betas), at<T>(grad_pose),
                                             at<T>(workspace)};
                RN_RUN(landmarks_backward, self.is_cuda, where, p);
            }, release);
    }
};

template <class T>
void bind_points(py::module_& m, const std::string& suffix) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def(("regress_joints_" + suffix).c_str(), [](index_t B, index_t V, index_t J, index_t M, address regressor, address values,
                                                   index_t values_stride, address joints, int threads) {
        cpu::regress_joints<T>({B, V, J, M, at<const T>(regressor), at<const T>(values), values_stride, at<T>(joints)}, threads);
    }, release);
    m.def(("rodrigues_forward_" + suffix).c_str(), [](bool is_cuda, index_t N, address rot_vecs, address matrices, address where) {
        RN_RUN(rodrigues_forward, is_cuda, where, Rodrigues<T>{N, at<const T>(rot_vecs), at<T>(matrices), nullptr, nullptr});
    }, release);
    m.def(("rodrigues_backward_" + suffix).c_str(), [](bool is_cuda, index_t N, address rot_vecs, address grad_matrices,
                                                       address grad_rot_vecs, address where) {
        const Rodrigues<T> p{N, at<const T>(rot_vecs), nullptr, at<const T>(grad_matrices), at<T>(grad_rot_vecs)};
        RN_RUN(rodrigues_backward, is_cuda, where, p);
    }, release);
    m.def(("vertices2landmarks_forward_" + suffix).c_str(), [](bool is_cuda, index_t B, index_t V, index_t F, index_t L,
              address vertices, index_t vertices_stride, address faces, address lmk_faces_idx, index_t lmk_faces_idx_stride,
              address lmk_bary_coords, index_t lmk_bary_coords_stride, address landmarks, address where) {
        const VerticesToLandmarks<T> p{B, V, F, L, at<const T>(vertices), vertices_stride, at<const std::int64_t>(faces),
                                       at<const std::int64_t>(lmk_faces_idx), lmk_faces_idx_stride,
                                       at<const T>(lmk_bary_coords), lmk_bary_coords_stride, at<T>(landmarks), nullptr, nullptr};
        RN_RUN(vertices2landmarks_forward, is_cuda, where, p);
    }, release);
    m.def(("vertices2landmarks_backward_" + suffix).c_str(), [](bool is_cuda, index_t B, index_t V, index_t F, index_t L,
              address faces, address lmk_faces_idx, index_t lmk_faces_idx_stride, address lmk_bary_coords,
              index_t lmk_bary_coords_stride, address grad_landmarks, address grad_vertices, address where) {
        const VerticesToLandmarks<T> p{B, V, F, L, nullptr, 0, at<const std::int64_t>(faces),
                                       at<const std::int64_t>(lmk_faces_idx), lmk_faces_idx_stride,
                                       at<const T>(lmk_bary_coords), lmk_bary_coords_stride, nullptr,
                                       at<const T>(grad_landmarks), at<T>(grad_vertices)};
        RN_RUN(vertices2landmarks_backward, is_cuda, where, p);
    }, release);
}

}  // namespace

PYBIND11_MODULE(_ringnet_core, m) {
    m.doc() = "The compute core of ringnet_ext. Takes addresses: use ringnet_ext.ops, which checks them.";
    m.attr("__version__") = RN_VERSION;
    m.attr("cuda_architectures") = RN_CUDA_ARCHITECTURES;  // "" where built without CUDA
    m.attr("openmp") =
#if defined(_OPENMP)
        true;
#else
        false;
#endif
    m.def("simd_level", &cpu::simd_level);
    py::class_<Buffer>(m, "Buffer", py::buffer_protocol())
        .def(py::init<std::size_t>())
        .def_buffer([](const Buffer& buffer) { return buffer.info(); })
        .def_static("release_spare", &Buffer::release_spare);
    py::class_<Marks>(m, "Marks")
        .def(py::init<const py::tuple&, const py::object&>())
        .def("unchanged", &Marks::unchanged)
        .def_property_readonly("constant", &Marks::constant);
    m.def("batch_size", &batch_size);
    m.def("shaped_like", &shaped_like);
    m.def("use_exchange", [](bool wanted) { Torch::get().use_exchange(wanted); });
    BoundLbs<float>::bind(m, "LbsModelF32");
    BoundLbs<double>::bind(m, "LbsModelF64");
    BoundLandmarks<float>::bind(m, "LandmarkModelF32");
    BoundLandmarks<double>::bind(m, "LandmarkModelF64");
    bind_points<float>(m, "f32");
    bind_points<double>(m, "f64");
}
