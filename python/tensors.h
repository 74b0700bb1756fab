// PyTorch's tensors as Python has them, read without its headers: through DLPack's C exchange interface, a table of functions
// that their type offers from PyTorch 2.10 on (https://dmlc.github.io/dlpack/latest/c_api.html), or else through their
// attributes, ten times as slowly. At batch 1 that is what a call's checks cost.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>

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
    py::object tensor, parameter, cpu, int32, int64;
    py::str version{"_version"}, requires_grad{"requires_grad"}, is_neg{"is_neg"}, data_ptr{"data_ptr"}, shape{"shape"}, stride{"stride"},
        dtype{"dtype"}, device{"device"}, element_size{"element_size"};
    const dlpack::Exchange* exchange = nullptr;

    Torch() {
        const py::module_ torch = py::module_::import("torch");
        tensor = torch.attr("Tensor"), parameter = torch.attr("nn").attr("Parameter"), cpu = torch.attr("device")("cpu");
        int32 = torch.attr("int32"), int64 = torch.attr("int64");
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
    bool host = false;        // on the CPU
    bool integer = false;     // signed
    int ndim = -1, item = 0;  // bytes of an element
    std::int64_t shape[max_ndim] = {}, stride[max_ndim] = {};

    bool operator==(const View& o) const {
        if (address != o.address || dtype != o.dtype || device != o.device || ndim != o.ndim) return false;
        for (int i = 0; i < ndim; ++i)
            if (shape[i] != o.shape[i] || stride[i] != o.stride[i]) return false;
        return true;
    }
    // Bytes from the first element to the end of the last one.
    std::size_t span() const {
        std::int64_t last = 0;
        for (int i = 0; i < ndim; ++i) {
            if (shape[i] == 0) return 0;
            last += (shape[i] - 1) * stride[i];
        }
        return ndim < 0 ? 0 : static_cast<std::size_t>(last + 1) * item;
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
            view.host = d.device_type == 1 && d.data, view.integer = d.type_code == 0, view.item = (d.type_bits * d.type_lanes + 7) / 8;
            view.ndim = d.ndim;
            for (int i = 0; i < d.ndim; ++i) view.shape[i] = d.shape[i], view.stride[i] = d.strides[i];
            return view.has_memory();
        }
        const py::tuple shape = t.attr(torch.shape), stride = t.attr(torch.stride)();
        if (shape.size() > View::max_ndim) return false;
        view.address = t.attr(torch.data_ptr)().cast<std::uintptr_t>();
        const py::object dtype = t.attr(torch.dtype);
        view.dtype = reinterpret_cast<std::intptr_t>(dtype.ptr());  // one object a type
        view.integer = dtype.is(torch.int32) || dtype.is(torch.int64);
        const py::object device = t.attr(torch.device);
        view.device = py::hash(device), view.host = device.equal(torch.cpu) && view.address;
        view.item = t.attr(torch.element_size)().cast<int>();
        view.ndim = static_cast<int>(shape.size());
        for (int i = 0; i < view.ndim; ++i) view.shape[i] = shape[i].cast<std::int64_t>(), view.stride[i] = stride[i].cast<std::int64_t>();
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
