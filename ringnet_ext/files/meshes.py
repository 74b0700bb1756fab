"""Mesh files, in the order in which they have their vertices and triangles: a head's index is its meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import _ringnet_core as core
import numpy as np

MESHES = (".obj", ".ply", ".stl", ".off", ".glb")


class Mesh(NamedTuple):
    """Triangles in 3D, with texture coordinates where there are any.

    vertices (V, 3) float64. faces (F, 3) int64. uv (T, 2) float64, v up, and uv_faces (F, 3) int64, the texture
    coordinate of each corner; or None both. Along a seam a vertex has several texture coordinates. normals (V, 3), unit
    vectors, to be written; files are read without theirs.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None = None
    uv_faces: np.ndarray | None = None
    normals: np.ndarray | None = None


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
        elements = mesh.metadata.get("_ply_raw", {})
        for name in elements.keys() & {"vertex", "face"}:
            data, said = elements[name].get("data", {}), elements[name]["length"]
            there = len(data) if isinstance(data, np.ndarray) else min(map(len, data.values()), default=0)
            if there < said:  # trimesh takes a text that was cut off as it is
                raise ValueError(f"it has {there} lines of {name}, and should have {said}")
        return Mesh(vertices, faces, *_ply_texture(elements, faces))
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


# What is written. The comments of a file say its units and axes, which its format doesn't.

_POINTS, _INDICES = 34962, 34963  # what a GLB's buffers are for, by the numbers of OpenGL
_MESH_DECIMALS, _NORMAL_DECIMALS = 8, 4


def obj_bytes(mesh: Mesh, comments: Sequence[str] = ()) -> bytes:
    """The mesh as an OBJ file, see :func:`obj_parts`."""
    return b"".join(obj_parts(mesh, comments))


def obj_parts(mesh: Mesh, comments: Sequence[str] = ()) -> Iterator[bytes]:
    """The mesh as an OBJ file, in parts that follow each other: vertices and texture coordinates to 1e-8, normals to
    1e-4. Seams keep their vertices whole, as each corner of a triangle names its texture coordinate."""
    yield from (b"# %s\n" % comment.encode() for comment in comments)
    yield number_lines(b"v", mesh.vertices, _MESH_DECIMALS)
    if mesh.uv is not None:
        yield number_lines(b"vt", mesh.uv, _MESH_DECIMALS)
    if mesh.normals is not None:
        yield number_lines(b"vn", mesh.normals, _NORMAL_DECIMALS)
    textures = None if mesh.uv_faces is None else _Indices(mesh.uv_faces)
    yield _corners(_Indices(mesh.faces), textures, mesh.normals is not None)


class _Indices:
    """Told apart by comparing them, which takes a tenth of the time that hashing them does, and none for the same array
    that can't be written to."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __hash__(self) -> int:
        return self.values.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Indices) and (
            self.values is other.values or np.array_equal(self.values, other.values)
        )

    def kept(self) -> np.ndarray:
        """The numbers, as they stay."""
        if self.values.flags.writeable:
            self.values = self.values.copy()
        return self.values


def number_lines(word: bytes, rows: np.ndarray, decimals: int) -> bytes:
    """A line for each row of (N, C) numbers: the word, of up to four letters, and after a space each number with 4 or 8
    decimals. The core writes them a hundred times as fast as Python does."""
    text = core.number_lines(word, rows, decimals)
    if text is None:  # a number of more than 15 digits, or none
        template = b" ".join([word] + [b"%%.%df" % decimals] * rows.shape[1]) + b"\n"
        text = b"".join(template % tuple(row) for row in rows.tolist())
    return text


@lru_cache(4)  # the meshes of one topology have the same triangles
def _corners(faces: _Indices, textures: _Indices | None, normals: bool) -> bytes:
    corners = faces.kept().ravel() + 1
    columns, corner = [corners], "{0}"
    if textures is not None:
        columns, corner = [corners, textures.kept().ravel() + 1], "{0}/{1}"
    if normals:
        corner = "{0}//{0}" if textures is None else "{0}/{1}/{0}"
    words = [corner.format(*row) for row in np.stack(columns, 1).tolist()]
    return "".join(f"f {a} {b} {c}\n" for a, b, c in zip(*[iter(words)] * 3, strict=True)).encode()


def ply_bytes(mesh: Mesh, comments: Sequence[str] = ()) -> bytes:
    """The mesh as a binary PLY file of float32. Texture coordinates are the corners', as MeshLab has them, so that
    seams keep their vertices whole."""
    vertex, names = [mesh.vertices], ["x", "y", "z"]
    if mesh.normals is not None:
        vertex, names = [*vertex, mesh.normals], [*names, "nx", "ny", "nz"]
    fields = [("count", "u1"), ("corners", "<i4", 3)]
    if mesh.uv is not None:
        fields += [("numbers", "u1"), ("texcoord", "<f4", 6)]
    triangles = np.zeros(len(mesh.faces), np.dtype(fields))
    triangles["count"], triangles["corners"] = 3, mesh.faces
    if mesh.uv is not None:
        triangles["numbers"], triangles["texcoord"] = 6, mesh.uv[mesh.uv_faces].reshape(-1, 6)
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments)]
    header += [f"element vertex {len(mesh.vertices)}", *(f"property float {name}" for name in names)]
    header += [f"element face {len(mesh.faces)}", "property list uchar int vertex_indices"]
    header += [] if mesh.uv is None else ["property list uchar float texcoord"]
    rows = np.concatenate(vertex, axis=1).astype("<f4")
    return "\n".join([*header, "end_header\n"]).encode() + rows.tobytes() + triangles.tobytes()


def glb_bytes(mesh: Mesh, extras: Mapping[str, str] | None = None) -> bytes:
    """The mesh as a GLB file, whose format says metres and y up.

    It knows one texture coordinate a vertex: vertices on seams are repeated at the end, the others keep their order.

    Args:
        extras: facts about the file, which it gets as its asset's.
    """
    import trimesh

    mesh = without_seams(mesh)
    # glTF's own default is a metal, which looks black in most viewers.
    matt = trimesh.visual.material.PBRMaterial(
        name="matt", baseColorFactor=[0.74, 0.72, 0.70, 1.0], metallicFactor=0.0, roughnessFactor=0.9
    )
    visual = trimesh.visual.TextureVisuals(uv=mesh.uv, material=matt)
    head = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, visual=visual, process=False)

    def finish(tree: dict) -> None:
        tree["asset"] |= {"extras": dict(extras)} if extras else {}
        for accessor in tree["accessors"]:
            tree["bufferViews"][accessor["bufferView"]]["target"] = (
                _INDICES if accessor["type"] == "SCALAR" else _POINTS
            )

    content = trimesh.exchange.gltf.export_glb(
        trimesh.Scene(head), include_normals=mesh.normals is not None, tree_postprocessor=finish
    )
    return bytes(content)


def without_seams(mesh: Mesh) -> Mesh:
    """The mesh with one texture coordinate a vertex: the vertices in their order, then those on seams again."""
    if mesh.uv is None or mesh.uv_faces is None:
        return mesh
    count = len(mesh.vertices)
    pairs, inverse = np.unique(mesh.faces.ravel() * len(mesh.uv) + mesh.uv_faces.ravel(), return_inverse=True)
    vertex, texture = np.divmod(pairs, len(mesh.uv))
    again = np.append(False, vertex[1:] == vertex[:-1])
    place = np.where(again, count + np.cumsum(again) - 1, vertex)
    source = np.concatenate([np.arange(count), vertex[again]])
    uv = np.zeros((len(source), 2))
    uv[place] = mesh.uv[texture]
    faces = place[inverse.reshape(-1)].reshape(-1, 3)
    normals = None if mesh.normals is None else mesh.normals[source]
    return Mesh(mesh.vertices[source], faces, uv, faces, normals)
