// PyTorch's tensors as Python has them, read without its headers: through DLPack's C exchange interface, a table of functions
// that their type offers from PyTorch 2.10 on (https://dmlc.github.io/dlpack/latest/c_api.html), or else through their
// attributes, ten times as slowly. At batch 1 that is what a call's checks cost.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ringnet {
namespace {

namespace py = pybind11;

// Memory layout of the interface's structures, version 1.
namespace dlpack {
struct Tensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t ndim;
    std::uint8_t type_code, type_bits;
    std::uint16_t type_lanes;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};
struct Exchange {
    std::uint32_t major, minor;
    Exchange* older;
    void *allocate, *owning_from_object, *owning_to_object;
    int (*from_object)(void* object, Tensor* out);
    int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};
}  // namespace dlpack

// What every call asks PyTorch for, looked up once.
struct Torch {
    py::object tensor, parameter;
    py::str version{"_version"}, requires_grad{"requires_grad"}, is_neg{"is_neg"}, data_ptr{"data_ptr"}, shape{"shape"},
        stride{"stride"}, dtype{"dtype"}, device{"device"};
    const dlpack::Exchange* exchange = nullptr;

    Torch() {
        const py::module_ torch = py::module_::import("torch");
        tensor = torch.attr("Tensor"), parameter = torch.attr("nn").attr("Parameter");
        use_exchange(true);
    }
    static Torch& get() {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> once;
        return once.call_once_and_store_result([] { return Torch(); }).get_stored();
    }
    void use_exchange(bool wanted) {
        exchange = nullptr;
        const py::object table = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
        if (!wanted || !PyCapsule_IsValid(table.ptr(), "dlpack_exchange_api")) return;
        auto* offered = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
        while (offered && offered->major != 1) offered = offered->older;
        if (offered && offered->from_object) exchange = offered;
    }
    // Of no subclass, which might mean something else by its memory.
    bool plain(py::handle t) const {
        const void* type = Py_TYPE(t.ptr());
        return type == tensor.ptr() || type == parameter.ptr();
    }
};

// Where a dense tensor's values are and how they lie there. `dtype` and `device` can be compared and tell nothing else.
struct View {
    static constexpr int max_ndim = 4;
    std::uintptr_t address = 0;
    std::int64_t dtype = 0, device = 0;
    int ndim = -1;
    std::int64_t shape[max_ndim] = {}, stride[max_ndim] = {};

    bool operator==(const View& o) const {
        if (address != o.address || dtype != o.dtype || device != o.device || ndim != o.ndim) return false;
        for (int i = 0; i < ndim; ++i)
            if (shape[i] != o.shape[i] || stride[i] != o.stride[i]) return false;
        return true;
    }
    bool like(const View& o) const { return dtype == o.dtype && device == o.device; }
    bool empty() const { return std::find(shape, shape + ndim, 0) != shape + ndim; }
    bool has_memory() const { return address != 0 || empty(); }  // a ZeroTensor has none
    bool contiguous() const {
        std::int64_t expected = 1;
        for (int i = ndim - 1; i >= 0; expected *= shape[i--])
            if (shape[i] != 1 && stride[i] != expected) return empty();
        return true;
    }
    // Of two dimensions: whether the values of a row lie one after the other.
    bool contiguous_rows() const { return shape[1] <= 1 || stride[1] == 1; }
};

// False for what isn't a tensor with memory and at most max_ndim dimensions.
bool read(py::handle t, View& view) {
    const Torch& torch = Torch::get();
    try {
        if (torch.exchange) {
            dlpack::Tensor d;
            if (!torch.plain(t) && !py::isinstance(t, torch.tensor)) return false;
            if (torch.exchange->from_object(t.ptr(), &d) != 0) throw py::error_already_set();
            if (d.ndim > View::max_ndim || (d.ndim > 0 && !d.strides)) return false;
            view.address = reinterpret_cast<std::uintptr_t>(d.data) + d.byte_offset;
            view.dtype = d.type_code << 24 | d.type_bits << 16 | d.type_lanes;
            view.device = std::int64_t(d.device_type) << 32 | d.device_id;
            view.ndim = d.ndim;
            for (int i = 0; i < d.ndim; ++i) view.shape[i] = d.shape[i], view.stride[i] = d.strides[i];
            return view.has_memory();
        }
        const py::tuple shape = t.attr(torch.shape), stride = t.attr(torch.stride)();
        if (shape.size() > View::max_ndim) return false;
        view.address = t.attr(torch.data_ptr)().cast<std::uintptr_t>();
        view.dtype = reinterpret_cast<std::intptr_t>(py::object(t.attr(torch.dtype)).ptr());  // one object a type
        view.device = py::hash(t.attr(torch.device));
        view.ndim = static_cast<int>(shape.size());
        for (int i = 0; i < view.ndim; ++i)
            view.shape[i] = shape[i].cast<std::int64_t>(), view.stride[i] = stride[i].cast<std::int64_t>();
        return view.has_memory();
    } catch (const py::error_already_set&) {
        return false;
    }
}

// The same of a tensor of PyTorch's own types whose memory holds its values as they are, not negated.
bool read_plain(py::handle t, View& view) {
    const Torch& torch = Torch::get();
    return torch.plain(t) && read(t, view) && !t.attr(torch.is_neg)().cast<bool>();
}

std::int64_t attribute(py::handle t, const py::str& name) {
    const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(t.ptr(), name.ptr()));
    const std::int64_t number = value ? PyLong_AsLongLong(value.ptr()) : -1;
    if (PyErr_Occurred()) throw py::error_already_set();
    return number;
}

// What tensors (or None) were when something was made of them: which, where, and how often written to.
class Marks {
  public:
    // on_death is called when one of the tensors goes.
    Marks(const py::tuple& tensors, const py::object& on_death) {
        const Torch& torch = Torch::get();
        for (const py::handle t : tensors) {
            Mark mark;
            if (!t.is_none()) {
                mark.reference = py::reinterpret_steal<py::object>(PyWeakref_NewRef(t.ptr(), on_death.ptr()));
                if (!mark.reference) throw py::error_already_set();
                mark.version = attribute(t, torch.version);
                mark.requires_grad = attribute(t, torch.requires_grad);
                readable_ = read(t, mark.view) && readable_;
                constant_ = constant_ && torch.plain(t) && !mark.requires_grad;
            }
            marks_.push_back(std::move(mark));
        }
    }
    // Whether these are the same, and nothing has happened to them.
    bool unchanged(const py::tuple& tensors) const {
        if (!readable_ || tensors.size() != marks_.size()) return false;
        const Torch& torch = Torch::get();
        for (std::size_t i = 0; i < marks_.size(); ++i) {
            const Mark& mark = marks_[i];
            const py::handle t = PyTuple_GET_ITEM(tensors.ptr(), i);
            if (!mark.reference) {
                if (!t.is_none()) return false;
                continue;
            }
            View now;
            const bool same = t.ptr() == referent(mark.reference) && read(t, now) && now == mark.view &&
                              attribute(t, torch.version) == mark.version &&
                              attribute(t, torch.requires_grad) == mark.requires_grad;
            if (!same) return false;
        }
        return true;
    }
    // Whether they are all of PyTorch's own types, and autograd doesn't follow any.
    bool constant() const { return constant_; }

  private:
    static PyObject* referent(const py::object& reference) {
#if PY_VERSION_HEX >= 0x030D0000
        PyObject* object = nullptr;
        if (PyWeakref_GetRef(reference.ptr(), &object) == 1) Py_DECREF(object);  // the caller's tuple holds it, if it is there
        return object;
#else
        return PyWeakref_GetObject(reference.ptr());
#endif
    }
    struct Mark {
        py::object reference;
        std::int64_t version = 0;
        std::int64_t requires_grad = 0;
        View view;
    };
    std::vector<Mark> marks_;
    bool readable_ = true, constant_ = true;
};

// B, where every tensor (or None) is (B, its width), of the dtype and device of `like`, plain and with contiguous rows; -1 where
// anything is different, or there is none.
std::int64_t batch_size(const py::tuple& tensors, const py::tuple& widths, py::handle like) {
    View l;
    if (tensors.size() != widths.size() || !read(like, l)) return -1;
    std::int64_t B = -1;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const py::handle t = PyTuple_GET_ITEM(tensors.ptr(), i);
        if (t.is_none()) continue;
        View v;
        if (!read_plain(t, v) || !v.like(l) || v.ndim != 2 || !v.contiguous_rows() || (B >= 0 && v.shape[0] != B)) return -1;
        if (v.shape[1] != PyLong_AsLongLong(PyTuple_GET_ITEM(widths.ptr(), i))) return -1;
        B = v.shape[0];
    }
    return B;
}

// Whether tensors (or None) have these shapes and the dtype and device of `like`, and are plain; and contiguous, where that is asked for.
bool shaped_like(const py::tuple& tensors, const py::tuple& shapes, py::handle like, bool contiguous) {
    View l;
    if (tensors.size() != shapes.size() || !read(like, l)) return false;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const py::handle t = PyTuple_GET_ITEM(tensors.ptr(), i), shape = PyTuple_GET_ITEM(shapes.ptr(), i);
        if (t.is_none()) continue;
        View v;
        if (!read_plain(t, v) || !v.like(l) || v.ndim != PyTuple_GET_SIZE(shape.ptr())) return false;
        for (int d = 0; d < v.ndim; ++d)
            if (v.shape[d] != PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d))) return false;
        if (contiguous && !v.contiguous()) return false;
    }
    return true;
}

}  // namespace
}  // namespace ringnet
