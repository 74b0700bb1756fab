"""Normals of a mesh against a formula in float64."""

import numpy as np
import pytest

from ringnet_ext import builtin_head
from ringnet_ext.geometry.surface import vertex_normals


def expected(vertices, triangles):
    a, b, c = (vertices.astype(np.float64)[triangles[:, i]] for i in range(3))
    sums = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(sums, triangles[:, corner], np.cross(b - a, c - a))
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_normals_are_those_of_the_formula(dtype, tolerance):
    head = builtin_head()
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1e-3, head.v_template.shape)
        vertices = (head.v_template + noise).astype(dtype)
        normals = vertex_normals(vertices, head.faces)
        assert normals.dtype == dtype
        assert np.abs(normals - expected(vertices, head.faces)).max() < tolerance


def test_whatever_the_layout_and_the_type_of_the_indices():
    random = np.random.default_rng(0)
    vertices, triangles = random.normal(size=(40, 3)), random.integers(0, 40, (70, 3))
    normals = vertex_normals(vertices, triangles)
    assert np.array_equal(vertex_normals(np.asfortranarray(vertices), np.asfortranarray(triangles)), normals)
    assert np.array_equal(vertex_normals(vertices, triangles.astype(np.int32)), normals)
    assert np.array_equal(vertex_normals(np.repeat(vertices, 2, 0)[::2], triangles[::-1][::-1]), normals)


def test_a_vertex_without_a_triangle_has_none():
    vertices = np.eye(3)[[0, 1, 2, 0]]
    assert np.array_equal(vertex_normals(vertices, np.array([[0, 1, 2]]))[3], np.zeros(3))
    assert not vertex_normals(vertices, np.zeros((0, 3), np.int64)).any()
    assert vertex_normals(np.zeros((0, 3)), np.zeros((0, 3), np.int64)).shape == (0, 3)


@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_a_vertex_that_there_is_not_is_refused(wrong):
    with pytest.raises(IndexError, match=rf"triangles: expected vertices from 0 to 2, got {wrong}"):
        vertex_normals(np.eye(3), np.array([[0, 1, wrong]]))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"vertices: expected shape \(V, 3\)"):
        vertex_normals(np.zeros((3, 2)), np.zeros((1, 3), np.int64))
    with pytest.raises(ValueError, match=r"triangles: expected shape \(F, 3\)"):
        vertex_normals(np.zeros((3, 3)), np.zeros(3, np.int64))
