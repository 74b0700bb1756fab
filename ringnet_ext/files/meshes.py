"""Mesh files, in the order in which they have their vertices and triangles: a head's index is its meaning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

MESHES = (".obj", ".ply", ".stl", ".off", ".glb")


class Mesh(NamedTuple):
    """Triangles in 3D, with texture coordinates where there are any.

    vertices (V, 3) float64. faces (F, 3) int64. uv (T, 2) float64, v up, and uv_faces (F, 3) int64, the texture
    coordinate of each corner; or None both. Along a seam a vertex has several texture coordinates.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None = None
    uv_faces: np.ndarray | None = None


def read_mesh(path: str | os.PathLike) -> Mesh:
    """Read a mesh, told by the file's suffix, one of :data:`MESHES`. Vertices are not merged, split or sorted.

    Polygons are cut into triangles around their first corner. Raises FileNotFoundError, and ValueError, naming the
    file, for what cannot be read, or has no triangles.
    """
    path = Path(path)
    if path.suffix.lower() not in MESHES:
        raise ValueError(f"{path}: expected a name that ends in one of {', '.join(MESHES)}")
    try:
        mesh = _read_obj(path.read_bytes()) if path.suffix.lower() == ".obj" else _read_with_trimesh(path)
        if not len(mesh.faces):
            raise ValueError("no triangles in it")
        for indices, pointed_at in ((mesh.faces, mesh.vertices), (mesh.uv_faces, mesh.uv)):
            if (
                indices is not None
                and pointed_at is not None
                and (indices.min() < 0 or indices.max() >= len(pointed_at))
            ):
                raise ValueError(f"a face has a corner outside of the {len(pointed_at)} that there are")
        return mesh
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever readers of broken files raise
        raise ValueError(f"{path}: not a mesh that can be read: {error}") from error


def _read_obj(data: bytes) -> Mesh:
    """Trimesh splits the vertices along seams or, asked to keep their order, loses the texture there; and sorts by
    material."""
    vertices, uv, corners, textures = [], [], [], []
    for line in data.decode("latin1").replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        kind, *values = line.partition("#")[0].split() or [""]
        if kind == "v":
            vertices.append(values[:3])
        elif kind == "vt":
            uv.append((*values[:2], "0")[:2])
        elif kind == "f":
            if len(values) < 3:
                raise ValueError(f"a face of {len(values)} corners: {line!r:.60}")
            parts = [value.split("/") for value in values]
            face = [_index(part[0], len(vertices)) for part in parts]
            seen = [_index(part[1], len(uv)) if len(part) > 1 and part[1] else None for part in parts]
            for i in range(1, len(face) - 1):
                corners.append((face[0], face[i], face[i + 1]))
                textures.append((seen[0], seen[i], seen[i + 1]))
    points = np.array(vertices, np.float64).reshape(-1, 3)
    faces = np.array(corners, np.int64).reshape(-1, 3)
    if not uv or any(None in corner for corner in textures):  # a mesh that is textured in part
        return Mesh(points, faces)
    return Mesh(points, faces, np.array(uv, np.float64), np.array(textures, np.int64).reshape(-1, 3))


def _index(text: str, count: int) -> int:
    """OBJ counts from 1, and back from the last one by negative numbers."""
    number = int(text)
    return number - 1 if number > 0 else count + number if number < 0 else -1


def _read_with_trimesh(path: Path) -> Mesh:
    import trimesh

    # Without fix_texture, which splits the vertices of a PLY along its seams; process merges them.
    mesh = trimesh.load(path, process=False, force="mesh", fix_texture=False)
    if not isinstance(mesh, trimesh.Trimesh):
        raise ValueError("no triangles in it")
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    if path.suffix.lower() == ".ply":
        return Mesh(vertices, faces, *_ply_texture(mesh.metadata.get("_ply_raw", {}), faces))
    uv = getattr(mesh.visual, "uv", None)
    if uv is None or len(uv) != len(vertices):
        return Mesh(vertices, faces)
    return Mesh(vertices, faces, np.asarray(uv, np.float64), faces)


def _ply_texture(elements, faces):
    """Texture coordinates of a PLY: each vertex's, or each corner's."""
    vertex, face = (elements.get(name, {}).get("data", {}) for name in ("vertex", "face"))
    for names in (("texture_u", "texture_v"), ("u", "v"), ("s", "t")):
        if set(names) <= set(_columns(vertex)):
            return np.stack([np.asarray(vertex[name], np.float64).reshape(-1) for name in names], 1), faces
    if "texcoord" in _columns(face):
        corners = face["texcoord"]
        corners = (
            corners["f1"] if getattr(corners.dtype, "names", None) else corners
        )  # binary files have their length beside them
        if np.size(corners) == 6 * len(faces):
            uv, index = np.unique(np.reshape(corners, (-1, 2)).astype(np.float64), axis=0, return_inverse=True)
            return uv, index.reshape(faces.shape)
    return None, None


def _columns(data):
    return (data.dtype.names or ()) if isinstance(data, np.ndarray) else data


def obj_bytes(mesh: Mesh) -> bytes:
    """The mesh as an OBJ file, vertices to 1e-8."""
    lines = [f"v {x:.8f} {y:.8f} {z:.8f}" for x, y, z in mesh.vertices]
    if mesh.uv is None or mesh.uv_faces is None:
        lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    else:
        lines += [f"vt {u:.8f} {v:.8f}" for u, v in mesh.uv]
        corners = np.stack([mesh.faces + 1, mesh.uv_faces + 1], axis=-1).reshape(-1, 6)
        lines += ["f {}/{} {}/{} {}/{}".format(*row) for row in corners.tolist()]
    return ("\n".join(lines) + "\n").encode()
