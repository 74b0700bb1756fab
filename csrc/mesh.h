// Triangle meshes on their way into files. As everywhere in the core the caller has checked shapes and indices.
#pragma once

#include "common.h"

namespace ringnet {

// Area-weighted unit normals of a mesh, along its winding. Summed in double, in the order of the triangles, without contraction: the
// same bits on every processor.
template <class T>
struct VertexNormals {
    index_t V, F;
    const T* vertices;              // (V, 3)
    const std::int64_t* triangles;  // (F, 3)
    T* normals;                     // (V, 3)
};

// A line for each row of numbers: a word, then the numbers with that many decimals, each after a space.
template <class T>
struct NumberLines {
    index_t rows, columns;
    const T* numbers;  // (rows, columns)
    const char* word;
    index_t word_size;  // 4 at most
    int decimals;       // 4 or 8
};

namespace cpu {

template <class T>
void vertex_normals(const VertexNormals<T>& p);

// How many bytes the lines take at most.
template <class T>
index_t number_lines_size(const NumberLines<T>& p);

// Writes the lines and returns how many bytes they take; or -1 where a number has more than 15 digits or is not finite.
template <class T>
index_t number_lines(const NumberLines<T>& p, char* text);

}  // namespace cpu
}  // namespace ringnet
