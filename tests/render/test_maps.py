"""Which triangle a pixel sees, and where on it."""

import numpy as np
import pytest

from ringnet_ext.render.maps import SurfaceMap
from ringnet_ext.render.raster import triangle_map


def random_triangles(seed, count=40, width=70, height=45):
    """Triangles of all sizes that overlap without crossing: each at a depth of its own."""
    random = np.random.default_rng(seed)
    corners = random.uniform(-10, 10 + max(width, height), (count, 3, 2))
    depth = random.permutation(count).astype(float)
    points = np.concatenate([corners, np.broadcast_to(depth[:, None, None], (count, 3, 1))], axis=2).reshape(-1, 3)
    return points, np.arange(3 * count).reshape(-1, 3)


@pytest.mark.parametrize("seed", range(3))
def test_every_pixel_sees_the_nearest_triangle_that_its_middle_lies_in(seed):
    points, triangles = random_triangles(seed)
    found = triangle_map(points, triangles, 45, 70)
    y, x = np.mgrid[:45, :70] + 0.5
    corners = points[triangles]
    sides = []  # distances from each triangle's edges, by side
    for i in range(3):
        start, along = corners[:, i, :2, None, None], (corners[:, (i + 1) % 3, :2] - corners[:, i, :2])[..., None, None]
        away = along[:, 0] * (y - start[:, 1]) - along[:, 1] * (x - start[:, 0])
        sides.append(away / np.hypot(along[:, 0], along[:, 1]))
    sides = np.stack(sides)
    inside = (sides > 0).all(0) | (sides < 0).all(0)
    depth = np.where(inside, corners[:, 0, 2, None, None], np.inf)
    wanted = np.where(inside.any(0), depth.argmin(0), -1)
    sure = (np.abs(sides) > 1e-3).all((0, 1))  # the rasteriser has float32
    assert sure.mean() > 0.8 and len(np.unique(wanted)) > 10
    assert np.array_equal(found[sure], wanted[sure])


def test_what_is_linear_on_the_picture_is_so_in_a_map():
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(3, 61, 8), np.linspace(2, 38, 6)), axis=-1)
    grid[1:-1, 1:-1] += random.uniform(-2, 2, (4, 6, 2))
    x, y = grid.reshape(-1, 2).T
    index = np.arange(48).reshape(6, 8)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    surface = SurfaceMap(np.column_stack([x, y, 0.3 * x - 0.1 * y]), triangles, 41, 64)
    inside = np.zeros((41, 64), bool)
    inside[2:38, 3:61] = True
    assert np.array_equal(surface.seen, inside)
    depth, places = surface.of(0.3 * x - 0.1 * y), surface.of(np.column_stack([x, y]))
    rows, columns = np.nonzero(inside)
    assert np.abs(depth[inside] - (0.3 * (columns + 0.5) - 0.1 * (rows + 0.5))).max() < 1e-5
    assert np.abs(places[inside] - np.column_stack([columns, rows]) - 0.5).max() < 1e-4
    assert np.isnan(depth[~inside]).all() and np.isnan(places[~inside]).all()
    directions = np.column_stack([np.sin(x / 20), np.cos(x / 20), 0 * x])
    lengths = np.linalg.norm(surface.of(directions, unit=True), axis=2)
    assert (
        np.abs(lengths[inside] - 1).max() < 1e-6
        and np.linalg.norm(surface.of(directions), axis=2)[inside].min() < 0.999
    )


def test_surfaces_cross_where_their_depths_are_equal():
    """Over one triangle the depth goes from end to end: the rasteriser's perspective must not bend it."""
    flat = np.array([[-500, -500, 0.4], [1000, -500, 0.4], [0, 1500, 0.4]])
    sloping = np.array([[0, -300, 0], [100, -300, 1], [0, 300, 0], [100, 300, 1]], float)
    found = triangle_map(np.concatenate([flat, sloping]), np.array([[0, 1, 2], [3, 4, 5], [4, 6, 5]]), 50, 100)
    assert np.array_equal(found > 0, np.broadcast_to(np.arange(100) + 0.5 < 40, (50, 100)))


def test_half_a_million_triangles_keep_their_numbers():
    y, x = np.mgrid[:501, :501] / 10
    index = np.arange(501 * 501).reshape(501, 501)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    triangles = np.stack([np.stack([a, b, c], 1), np.stack([b, d, c], 1)], axis=1).reshape(-1, 3)
    points = np.column_stack([x.ravel() + 0.03, y.ravel() + 0.04, x.ravel()])  # no pixel's middle on an edge
    found = triangle_map(points, triangles, 50, 50)
    rows, columns = np.mgrid[:50, :50] * 10 + 4
    assert np.array_equal(found // 2, rows * 500 + columns)


def test_nothing_to_see():
    surface = SurfaceMap(np.array([[90.0, 0, 0], [99, 0, 0], [90, 9, 0]]), np.array([[0, 1, 2]]), 20, 30)
    assert not surface.seen.any() and surface.weights.shape == (0, 3)
    assert np.isnan(surface.of(np.ones(3))).all() and surface.of(np.ones((3, 2))).shape == (20, 30, 2)


def test_a_degenerate_triangle_beside_a_sound_one():
    points = np.array([[0.0, 0, 0], [20, 0, 0], [0, 20, 0], [5, 5, -1], [5, 5, -1], [9, 9, -1]])
    surface = SurfaceMap(points, np.array([[0, 1, 2], [3, 4, 5]]), 20, 20)
    assert np.isfinite(surface.of(points)[surface.seen]).all() and surface.seen.sum() > 150
