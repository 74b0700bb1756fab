// Meshes as NumPy has them: their normals, and their numbers as text. Both let other Python threads run.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "mesh.h"

namespace ringnet {
namespace {

namespace py = pybind11;

template <class T>
using Rows = py::array_t<T, py::array::c_style>;

template <class T>
Rows<T> vertex_normals(const Rows<T>& vertices, const Rows<std::int64_t>& triangles) {
    if (vertices.ndim() != 2 || vertices.shape(1) != 3) throw std::invalid_argument("vertices: expected shape (V, 3)");
    if (triangles.ndim() != 2 || triangles.shape(1) != 3) throw std::invalid_argument("triangles: expected shape (F, 3)");
    Rows<T> normals({vertices.shape(0), py::ssize_t(3)});
    const VertexNormals<T> p{vertices.shape(0), triangles.shape(0), vertices.data(), triangles.data(), normals.mutable_data()};
    const py::gil_scoped_release release;
    for (index_t i = 0; i < 3 * p.F; ++i)
        if (p.triangles[i] < 0 || p.triangles[i] >= p.V)
            throw std::out_of_range("triangles: expected vertices from 0 to " + std::to_string(p.V - 1) + ", got " +
                                    std::to_string(p.triangles[i]));
    cpu::vertex_normals(p);
    return normals;
}

// None where a number has more than 15 digits or is not finite.
template <class T>
py::object number_lines(const py::bytes& word, const Rows<T>& numbers, int decimals) {
    if (numbers.ndim() != 2) throw std::invalid_argument("numbers: expected two dimensions");
    if (decimals != 4 && decimals != 8) throw std::invalid_argument("decimals: expected 4 or 8");
    const std::string_view name = word;
    if (name.size() > 4) throw std::invalid_argument("word: expected four characters at most");
    const NumberLines<T> p{numbers.shape(0), numbers.shape(1), numbers.data(), name.data(), index_t(name.size()), decimals};
    PyObject* text = PyBytes_FromStringAndSize(nullptr, cpu::number_lines_size(p));
    if (!text) throw py::error_already_set();
    index_t size = 0;
    {
        const py::gil_scoped_release release;
        size = cpu::number_lines(p, PyBytes_AS_STRING(text));
    }
    if (size < 0) {
        Py_DECREF(text);
        return py::none();
    }
    if (_PyBytes_Resize(&text, size) < 0) throw py::error_already_set();
    return py::reinterpret_steal<py::bytes>(text);
}

inline void bind_meshes(py::module_& m) {
    using namespace py::literals;
    m.def("vertex_normals", &vertex_normals<float>, "vertices"_a.noconvert(), "triangles"_a);
    m.def("vertex_normals", &vertex_normals<double>, "vertices"_a, "triangles"_a);
    m.def("number_lines", &number_lines<float>, "word"_a, "numbers"_a.noconvert(), "decimals"_a);
    m.def("number_lines", &number_lines<double>, "word"_a, "numbers"_a, "decimals"_a);
}

}  // namespace
}  // namespace ringnet
