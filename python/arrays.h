// Tensors as the arguments of a bound function: where the values of one are, and how they lie there.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "tensors.h"

namespace ringnet {
namespace {

template <class T>
struct Array {
    py::handle object;
    T* data = nullptr;
    int ndim = 0;
    std::int64_t shape[View::max_ndim] = {}, stride[View::max_ndim] = {};
};

// One that may be None.
template <class T>
struct Optional : Array<T> {};

}  // namespace
}  // namespace ringnet

namespace pybind11 {
namespace detail {

template <class A, class T>
bool load_array(handle source, A& array) {
    ringnet::View view;
    if (!ringnet::read(source, view)) return false;
    array.object = source;
    array.data = reinterpret_cast<T*>(view.address);
    array.ndim = view.ndim;
    for (int i = 0; i < view.ndim; ++i) array.shape[i] = view.shape[i], array.stride[i] = view.stride[i];
    return true;
}

template <class T>
struct type_caster<ringnet::Array<T>> {
    PYBIND11_TYPE_CASTER(ringnet::Array<T>, const_name("torch.Tensor"));
    bool load(handle source, bool) { return load_array<ringnet::Array<T>, T>(source, value); }
};

template <class T>
struct type_caster<ringnet::Optional<T>> {
    PYBIND11_TYPE_CASTER(ringnet::Optional<T>, const_name("torch.Tensor | None"));
    bool load(handle source, bool) { return source.is_none() || load_array<ringnet::Optional<T>, T>(source, value); }
};

}  // namespace detail
}  // namespace pybind11
