import numpy as np
import pytest
import trimesh

from ringnet_ext.commands.pose import main as flame_command
from ringnet_ext.files.meshes import MESHES, Mesh, glb_bytes, obj_bytes, ply_bytes, read_mesh, without_seams
from ringnet_ext.flame import FlameModel
from ringnet_ext.flame.sources import load_head


@pytest.fixture(scope="module")
def seamed():
    """A ball whose vertices have several texture coordinates each, all in an order that means something."""
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    random = np.random.default_rng(0)
    order = random.permutation(len(ball.vertices))
    place = np.argsort(order)
    faces = place[ball.faces][random.permutation(len(ball.faces))]
    uv = random.uniform(0, 1, (len(order) + 40, 2))
    uv_faces = faces.copy()
    seam = random.choice(len(faces), 40, replace=False)
    uv_faces[seam, random.integers(0, 3, 40)] = len(order) + np.arange(40)
    return Mesh(ball.vertices[order], faces, uv, uv_faces)


def published(mesh, path, *, materials=False, normals=False):
    """An OBJ as modelling programs write it: a line of its own for every vertex, texture coordinate and face."""
    lines = ["# a comment", "mtllib x.mtl", "o head"]
    lines += [f"v {x!r} {y!r} {z!r}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u!r} {v!r}" for u, v in mesh.uv.tolist()]
    lines += ["vn 0 0 1"] if normals else []
    for i, (face, seen) in enumerate(zip(mesh.faces + 1, mesh.uv_faces + 1, strict=True)):
        if materials and i % 7 == 0:
            lines.append(f"usemtl material_{i % 3}")
        lines.append("f " + " ".join(f"{a}/{b}/1" if normals else f"{a}/{b}" for a, b in zip(face, seen, strict=True)))
    path.write_text("\n".join(lines) + "\n")
    return path


def same(ours, expected, tolerance=0.0):
    assert ours.vertices.shape == expected.vertices.shape
    assert np.abs(ours.vertices - expected.vertices).max() <= tolerance
    assert np.array_equal(ours.faces, expected.faces)
    # Texture coordinates may be numbered otherwise: what every corner has counts.
    assert np.abs(ours.uv[ours.uv_faces] - expected.uv[expected.uv_faces]).max() <= max(tolerance, 1e-7)
    return True


@pytest.mark.parametrize("kinds", [{}, {"materials": True}, {"normals": True}])
def test_an_obj_with_seams_keeps_its_order(seamed, kinds, tmp_path):
    path = published(seamed, tmp_path / "head_template.obj", **kinds)
    assert same(read_mesh(path), seamed)
    head = load_head(path)
    assert np.array_equal(head.v_template, seamed.vertices) and np.array_equal(head.faces, seamed.faces)


def test_texture_coordinates_are_kept_to_the_end(seamed, tmp_path):
    path = published(seamed, tmp_path / "head.obj")
    head = load_head(path)
    head.save(tmp_path / "head.npz")
    again = FlameModel.load(tmp_path / "head.npz")
    assert np.array_equal(again.uv, seamed.uv) and np.array_equal(again.uv_faces, seamed.uv_faces)
    assert (
        flame_command(
            ["--model", str(tmp_path / "head.npz"), "--translation", "0", "0", "0", "--out", str(tmp_path / "out.obj")]
        )
        == 0
    )
    assert same(read_mesh(tmp_path / "out.obj"), seamed, 1e-8)


@pytest.mark.parametrize("suffix", MESHES)
def test_every_format_keeps_its_order(seamed, suffix, tmp_path):
    """But for STL, which has no vertices: there each triangle has its own three."""
    trimesh.Trimesh(seamed.vertices, seamed.faces, process=False).export(tmp_path / f"a{suffix}")
    ours = read_mesh(tmp_path / f"a{suffix}")
    corners = seamed.vertices[seamed.faces]
    assert np.allclose(ours.vertices[ours.faces], corners, atol=1e-7) and ours.uv is None
    if suffix != ".stl":
        assert np.allclose(ours.vertices, seamed.vertices, atol=1e-7) and np.array_equal(ours.faces, seamed.faces)


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("places", ["corners", "vertices"])
def test_a_ply_with_texture_keeps_its_order(seamed, places, encoding, tmp_path):
    corners = places == "corners"
    header = [
        "ply",
        f"format {encoding} 1.0",
        f"element vertex {len(seamed.vertices)}",
        *(f"property double {c}" for c in "xyz"),
    ]
    header += [] if corners else ["property double s", "property double t"]
    header += [f"element face {len(seamed.faces)}", "property list uchar int vertex_indices"]
    header += ["property list uchar double texcoord"] if corners else []
    vertices = [[*vertex, *([] if corners else seamed.uv[i])] for i, vertex in enumerate(seamed.vertices)]
    with open(tmp_path / "head.ply", "wb") as file:
        file.write("\n".join([*header, "end_header\n"]).encode())
        if encoding == "ascii":
            file.writelines((" ".join(map(repr, map(float, row))) + "\n").encode() for row in vertices)
        else:
            file.write(np.array(vertices, "<f8").tobytes())
        for face, seen in zip(seamed.faces, seamed.uv_faces, strict=True):
            texture = seamed.uv[seen].ravel()
            if encoding == "ascii":
                row = ["3", *map(str, face), *(["6", *map(repr, texture.tolist())] if corners else [])]
                file.write((" ".join(row) + "\n").encode())
            else:
                file.write(
                    b"\x03"
                    + face.astype("<i4").tobytes()
                    + (b"\x06" + texture.astype("<f8").tobytes() if corners else b"")
                )
    expected = seamed if corners else seamed._replace(uv_faces=seamed.faces)
    assert same(read_mesh(tmp_path / "head.ply"), expected, 1e-7)


def test_what_obj_allows(tmp_path):
    """Polygons, indices from the end, continued lines, colours after the coordinates, CRLF, faces partly without
    texture."""
    (tmp_path / "a.obj").write_bytes(
        b"v 0 0 0 0.5 0.5 0.5\r\nv 1 0 0\r\nv 1 1 0 1.0\r\nv 0 1 0\r\nv 0 2 0\r\n"
        b"f 1 2 3 \\\r\n 4 5\r\nl 1 2\r\nf -1//1 -2//1 -5//1 # end\r\n"
    )
    mesh = read_mesh(tmp_path / "a.obj")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [4, 3, 0]] and mesh.uv is None
    assert mesh.vertices[2].tolist() == [1, 1, 0]
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0.5 0.25\nf 1/1 2/1 3/1\nf 1 2 3\n")
    assert len(read_mesh(tmp_path / "a.obj").faces) == 2 and read_mesh(tmp_path / "a.obj").uv is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no triangles in it"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no triangles in it"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "a corner outside of the 3 that there are"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "a corner outside of the 3 that there are"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/2 3/1\n", "a corner outside of the 1 that there are"),
        ("v 0 0 0\nv 1 0 0\nf 1 2\n", "a face of 2 corners: 'f 1 2'"),
        ("v 0 0 zero\nf 1 1 1\n", "could not convert"),
        ("v 0 0\nv 0 0 0\nf 1 1 1\n", "inhomogeneous"),
    ],
)
def test_broken_meshes_are_named(text, message, tmp_path):
    (tmp_path / "broken.obj").write_text(text)
    with pytest.raises(ValueError, match=f"broken.obj: not a mesh that can be read: .*{message}"):
        load_head(tmp_path / "broken.obj")


def test_other_files_are_named(tmp_path):
    header = ["ply", "format ascii 1.0", "element vertex 3", *(f"property float {axis}" for axis in "xyz")]
    header += ["element face 2", "property list uchar int vertex_indices", "end_header"]
    (tmp_path / "cut.ply").write_text("\n".join([*header, "0 0 0", "1 0 0", "0 1 0", "3 0 1 2"]) + "\n")
    with pytest.raises(ValueError, match=r"cut.ply: not a mesh that can be read: it has 1 lines of face, and should"):
        read_mesh(tmp_path / "cut.ply")
    (tmp_path / "x.ply").write_bytes(b"ply\nnothing")
    with pytest.raises(ValueError, match=r"x.ply: not a mesh"):
        read_mesh(tmp_path / "x.ply")
    with pytest.raises(FileNotFoundError, match=r"none.obj"):
        read_mesh(tmp_path / "none.obj")
    with pytest.raises(ValueError, match=r"x.fbx: expected a name that ends in one of .obj"):
        read_mesh(tmp_path / "x.fbx")


class TestWritten:
    @pytest.mark.parametrize("most", [0.3, 999.999, 1e6])  # beyond 1,000 Python formats the numbers
    def test_numbers_of_an_obj_are_as_python_writes_them(self, most):
        random = np.random.default_rng(0)
        points = random.uniform(-most, most, (300, 3)) * 10.0 ** random.uniform(-9, 0, (300, 1))
        points[:4] = [[0, -0.0, 1], [1e-9, -1e-9, 5e-9], [-0.1, 0.1, 0.99999999], [most, -most, 0.5]]
        faces = random.integers(0, 300, (50, 3))
        lines = obj_bytes(Mesh(points, faces)).decode().splitlines()
        assert len(lines) == 350
        for line, point in zip(lines[:300], points.tolist(), strict=True):
            word, *numbers = line.split(" ")
            assert word == "v" and [float(number) for number in numbers] == pytest.approx(
                [round(value, 8) for value in point], abs=1e-8, rel=1e-15
            )
            assert all(len(number.partition(".")[2]) == 8 for number in numbers)
        assert lines[0] in ("v 0.00000000 0.00000000 1.00000000", "v 0.00000000 -0.00000000 1.00000000")
        assert lines[300:] == [f"f {a} {b} {c}" for a, b, c in faces + 1]

    def test_numbers_are_rounded_to_the_nearest(self):
        """Of two that are as near, as Python does, to the even one; a number that rounds to zero has no sign."""
        points = np.array([[0.5 / 2**13, 1.5 / 2**13, -1e-9], [12345.678, -99999.99996, 4e9]], np.float64)
        text = obj_bytes(Mesh(np.eye(3), np.array([[0, 1, 2]]), normals=points)).decode().splitlines()[3:5]
        assert text == ["vn 0.0001 0.0002 0.0000", "vn 12345.6780 -100000.0000 4000000000.0000"]
        single = np.array([[0.1, -0.2, 3.0]], np.float32)
        double = Mesh(single.astype(np.float64), np.zeros((0, 3), np.int64))
        assert obj_bytes(double._replace(vertices=single)) == obj_bytes(double)

    def test_what_is_not_finite_is_refused_or_shown(self):
        """Never a number made up."""
        points = np.array([[np.nan, 0, 0], [np.inf, 1, 0], [0, 1, 0]])
        assert obj_bytes(Mesh(points, np.array([[0, 1, 2]]))).startswith(b"v nan 0.00000000 0.00000000\nv inf ")

    def test_a_seam_repeats_its_vertices_at_the_end(self, seamed):
        normals = seamed.vertices / np.linalg.norm(seamed.vertices, axis=1, keepdims=True)
        split = without_seams(seamed._replace(normals=normals))
        count = len(seamed.vertices)
        assert np.array_equal(split.vertices[:count], seamed.vertices) and len(split.vertices) == len(split.uv)
        pairs = {pair for pair in zip(seamed.faces.ravel().tolist(), seamed.uv_faces.ravel().tolist(), strict=True)}
        assert len(split.vertices) == len(pairs)
        assert np.array_equal(split.vertices[split.faces], seamed.vertices[seamed.faces])
        assert np.array_equal(split.normals[split.faces], normals[seamed.faces])
        assert np.array_equal(split.uv[split.faces], seamed.uv[seamed.uv_faces])
        assert without_seams(seamed._replace(uv=None, uv_faces=None)).faces is seamed.faces

    def test_a_vertex_that_no_triangle_has_stays(self, seamed):
        more = seamed._replace(vertices=np.concatenate([seamed.vertices, [[7.0, 7, 7]]]))
        split = without_seams(more)
        assert np.array_equal(split.vertices[: len(more.vertices)], more.vertices)
        assert np.array_equal(split.uv[split.faces], seamed.uv[seamed.uv_faces])

    @pytest.mark.parametrize("suffix", ["obj", "ply", "glb"])
    def test_with_seams_and_normals(self, seamed, suffix, tmp_path):
        normals = seamed.vertices / np.linalg.norm(seamed.vertices, axis=1, keepdims=True)
        mesh = seamed._replace(normals=normals)
        write = {"obj": obj_bytes, "ply": ply_bytes, "glb": glb_bytes}[suffix]
        (tmp_path / f"a.{suffix}").write_bytes(write(mesh))
        again = read_mesh(tmp_path / f"a.{suffix}")
        if suffix == "glb":
            assert np.abs(again.vertices[again.faces] - seamed.vertices[seamed.faces]).max() < 1e-7
            assert np.abs(again.uv[again.uv_faces] - seamed.uv[seamed.uv_faces]).max() < 1e-6
        else:
            assert same(again, seamed, 1e-7)
        # Splitting the vertices of a PLY at its seams, trimesh would forget their normals.
        scene = trimesh.load(
            tmp_path / f"a.{suffix}", process=False, **({"fix_texture": False} if suffix == "ply" else {})
        )
        found = next(iter(scene.geometry.values())) if isinstance(scene, trimesh.Scene) else scene
        outward = found.vertices / np.linalg.norm(found.vertices, axis=1, keepdims=True)
        assert np.abs(found.vertex_normals - outward).max() < 1e-4

    def test_meshes_of_one_topology_share_their_triangles_text_and_no_other_does(self, seamed):
        first = obj_bytes(seamed)
        turned = seamed._replace(faces=seamed.faces[:, [1, 2, 0]], uv_faces=seamed.uv_faces[:, [1, 2, 0]])
        assert obj_bytes(turned) != first and obj_bytes(seamed) == first
        seamed.faces[0] = seamed.faces[0, [1, 2, 0]]  # changed in place
        try:
            assert obj_bytes(seamed) != first
        finally:
            seamed.faces[0] = seamed.faces[0, [2, 0, 1]]
        assert obj_bytes(seamed) == first
