"""The files of a face: read back by the programs that they are for, and by our own readers."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from ringnet_ext.detection.landmark_files import read_landmarks
from ringnet_ext.detection.squares import cut_square
from ringnet_ext.files.images import read_image, read_png, write_image
from ringnet_ext.files.meshes import read_mesh
from ringnet_ext.flame import FLAME, builtin_head
from ringnet_ext.flame.landmarks import contour_row
from ringnet_ext.flame.parameters import HeadParams, read_parameters
from ringnet_ext.geometry.rotations import matrix_from_axis_angle
from ringnet_ext.inference import outputs
from ringnet_ext.inference.outputs import DEFAULT, KINDS, read_map, write
from ringnet_ext.inference.reconstruction import FRAMES, reconstruction


@pytest.fixture(scope="module")
def flame():
    return FLAME(builtin_head())


@pytest.fixture(scope="module")
def face(flame):
    """A head that looks aside and up with its mouth open, in a square that hangs over the edge of a photograph."""
    random = np.random.default_rng(0)
    original = random.integers(0, 256, (180, 300, 3), dtype=np.uint8)
    g = torch.Generator().manual_seed(0)
    neck, eyes = torch.tensor([[0.05, 0.1, 0.02]]), torch.tensor([[0.1, 0.2, 0.0, 0.0, 0.2, 0.1]])
    params = HeadParams(
        camera=torch.tensor([[6.5, 0.0, 0.0]]),
        global_pose=torch.tensor([[np.pi, 0.0, 0.0]]) * 0.95 + torch.tensor([[0.1, 0.15, 0.5]]),
        jaw_pose=torch.tensor([[0.2, 0.02, 0.0]]),
        shape=torch.randn(1, 100, generator=g),
        expression=torch.randn(1, 50, generator=g),
    )
    points = flame.landmarks(params.shape, params.expression, params.global_pose, neck, params.jaw_pose, eyes)
    params.camera[0, 1:] = torch.tensor([0.01, -0.02]) - (points.amin(1) + points.amax(1))[0, :2] / 2
    square = cut_square(original, np.array([170.0, 95.5]), 190.3)
    return reconstruction(flame, builtin_head(), square, params, neck, eyes, original)


@pytest.fixture(scope="module")
def networks(flame, face):
    """The same head as a network says it, without neck and eyes."""
    return reconstruction(flame, face.head, face.square, face.params)


@pytest.fixture(scope="module")
def with_uv(face):
    """Texture coordinates with a seam: the left half's are numbered on their own."""
    left = face.head.v_template[face.head.faces].mean(1)[:, 0] > 0
    count = len(face.head.v_template)
    uv = np.random.default_rng(1).uniform(0, 1, (2 * count, 2))
    return replace(face, head=replace(face.head, uv=uv, uv_faces=face.head.faces + count * left[:, None]))


def loaded(path):
    """As trimesh reads it; of a scene its one mesh."""
    found = trimesh.load(path, process=False, maintain_order=True)
    return next(iter(found.geometry.values())) if isinstance(found, trimesh.Scene) else found


class TestMeshes:
    @pytest.mark.parametrize("kind", ["mesh", "ply", "glb", "neutral", "neutral-ply"])
    def test_trimesh_reads_the_same_head_wound_outward_with_its_normals(self, face, kind, tmp_path):
        (path,) = write(tmp_path, "a", face, [kind])
        mesh = loaded(path)
        expected = face.neutral_vertices if kind.startswith("neutral") else face.vertices
        assert np.abs(mesh.vertices - expected).max() < 1e-8 + 1e-8 * (path.suffix == ".obj")
        assert np.array_equal(mesh.faces, face.faces)
        parts = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split(only_watertight=True)
        assert len(parts) and all(part.volume > 0 for part in parts) and mesh.volume > 0.001
        assert "vertex_normals" in mesh._cache.cache  # read, not computed
        weighted = mesh.face_normals * mesh.area_faces[:, None]
        normals = trimesh.geometry.mean_vertex_normals(len(mesh.vertices), mesh.faces, weighted)
        assert np.abs(mesh.vertex_normals - normals).max() < 1e-4

    @pytest.mark.parametrize("kind", ["mesh", "ply", "glb"])
    def test_texture_coordinates_are_those_of_the_corners(self, with_uv, kind, tmp_path):
        (path,) = write(tmp_path, "a", with_uv, [kind])
        mesh, head = read_mesh(path), with_uv.head
        assert np.abs(mesh.uv[mesh.uv_faces] - head.uv[head.uv_faces]).max() < 1e-6
        assert np.abs(mesh.vertices[mesh.faces] - with_uv.vertices[head.faces]).max() < 2e-8
        count = len(with_uv.vertices)
        assert np.abs(mesh.vertices[:count] - with_uv.vertices).max() < 2e-8
        assert (len(mesh.vertices) > count) == (kind == "glb")  # the others keep a vertex on a seam whole

    def test_units_and_axes_are_said(self, face, tmp_path):
        for frame in FRAMES:
            obj, ply, glb = write(tmp_path, "a", face, ["mesh", "ply", "glb"], frame=frame)
            texts = [obj.read_text().partition("\nv ")[0], ply.read_bytes().partition(b"end_header")[0].decode()]
            for text in texts:
                assert "units: metres" in text and f"axes: {FRAMES[frame]}" in text
            header = glb.read_bytes()[20:]
            extras = json.JSONDecoder().raw_decode(header.decode("latin1"))[0]["asset"]["extras"]
            assert extras["units"] == "metres" and extras["axes"] == FRAMES["flame"]  # its format has no other

    def test_ringnets_frame(self, face, tmp_path):
        obj, ply, glb = write(tmp_path, "a", face, ["mesh", "ply", "glb"], frame="ringnet")
        for path in (obj, ply):
            assert np.abs(loaded(path).vertices - face.image_vertices).max() < 1e-6 and loaded(path).volume > 0.001
        assert np.abs(loaded(glb).vertices - face.vertices).max() < 1e-8

    def test_the_khronos_validator(self, face, with_uv, tmp_path):
        """Where Node and the package gltf-validator are, which NODE_PATH may say."""
        script = (
            "require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync(0)))"
            ".then(report => console.log(JSON.stringify(report.issues)))"
        )
        if (
            not shutil.which("node")
            or subprocess.run(["node", "-e", "require('gltf-validator')"], capture_output=True).returncode
        ):
            pytest.skip("needs node and its package gltf-validator")
        for each in (face, with_uv):
            (path,) = write(tmp_path, "a", each, ["glb"])
            report = subprocess.run(["node", "-e", script], input=path.read_bytes(), capture_output=True, check=True)
            issues = json.loads(report.stdout)
            assert issues["numErrors"] == issues["numWarnings"] == 0, issues

    def test_as_an_object(self, face):
        mesh = face.mesh()
        assert np.array_equal(mesh.vertices, face.vertices) and np.array_equal(mesh.faces, face.faces)
        assert "vertex_normals" in mesh._cache.cache and len(mesh.vertex_normals) == len(face.vertices)


class TestParameters:
    @pytest.mark.parametrize("kind", ["parameters", "json", "ringnet", "vhap"])
    def test_they_are_the_head_again(self, face, networks, flame, kind, tmp_path):
        seen = networks if kind == "ringnet" else face  # RingNet's have neither neck nor eyes
        (path,) = write(tmp_path, "a", seen, [kind])
        params = read_parameters(path).resized(100, 50)._replace(static_offset=torch.zeros(1, 0, 3))
        again = flame(*params).vertices[0].numpy()
        assert np.abs(again - seen.vertices).max() < 2e-6

    def test_an_npz_and_a_json_say_the_same(self, face, tmp_path):
        npz, text = write(tmp_path, "a", face, ["parameters", "json"], more={"shape_std": np.full(100, 0.5)})
        arrays, content = dict(np.load(npz)), json.loads(text.read_text())
        assert arrays.keys() == content.keys() and {"cam", "pose", "shape", "expression", "shape_std"} < arrays.keys()
        for name, value in arrays.items():
            if name == "about":
                said = dict(line.split(": ", 1) for line in str(value).splitlines())
                assert said == content["about"] and arrays.keys() - {"about"} == said.keys()
            else:
                assert np.allclose(value, content[name], rtol=0, atol=1e-12)
        assert FRAMES["flame"] in said["projection"] and "metre" in said["cam"] and "pixels" in said["landmarks"]

    @pytest.mark.parametrize("kind", ["parameters", "vhap", "maps"])
    def test_every_array_is_described(self, face, kind, tmp_path):
        (path,) = write(tmp_path, "a", face, [kind])
        arrays = np.load(path)
        described = {line.partition(": ")[0] for line in str(arrays["about"]).splitlines()}
        assert described == set(arrays) - {"about"}

    def test_ringnets_dictionary(self, networks, tmp_path):
        """As RingNet's code reads it; the pickle names NumPy's module as NumPy did then."""
        (path,) = write(tmp_path, "a", networks, ["ringnet"])
        content = np.load(path, allow_pickle=True, encoding="latin1")[()]
        assert {name: value.shape for name, value in content.items()} == {
            "cam": (3,), "pose": (6,), "shape": (100,), "expression": (50,)
        }  # fmt: skip
        vector = np.concatenate([content[name] for name in ("cam", "pose", "shape", "expression")])
        assert np.array_equal(vector, networks.params.to_vector()[0].numpy())
        assert b"numpy._core" not in path.read_bytes()

    def test_a_dictionary_that_is_not_the_head_is_refused(self, face, tmp_path):
        with pytest.raises(ValueError, match="ringnet: its file has no neck_pose, expected zeros"):
            write(tmp_path, "a", face, ["mesh", "ringnet"])
        assert not list(tmp_path.iterdir())

    def test_vhaps_shapes(self, face, tmp_path):
        (path,) = write(tmp_path, "a", face, ["vhap"])
        shapes = {name: value.shape for name, value in np.load(path).items() if name != "about"}
        assert shapes == {
            "shape": (300,), "expr": (1, 100), "rotation": (1, 3), "neck_pose": (1, 3), "jaw_pose": (1, 3),
            "eyes_pose": (1, 6), "translation": (1, 3), "static_offset": (1, 5023, 3),
        }  # fmt: skip


def on_mesh(vertices, head, faces_idx, bary_coords):
    return (vertices[head.faces[faces_idx]] * bary_coords[..., None]).sum(1)


class TestLandmarks:
    def test_in_the_image(self, face, tmp_path):
        (path,) = write(tmp_path, "a", face, ["landmarks"])
        points, confidence = read_landmarks(path)
        assert np.abs(points - face.landmarks).max() < 1e-3 and (confidence == 1).all()

    @pytest.mark.parametrize("frame", FRAMES)
    def test_the_saved_camera_projects_the_saved_meshs_landmarks_onto_them(self, face, frame, tmp_path):
        obj, npz, pts = write(tmp_path, "a", face, ["mesh", "parameters", "landmarks"], frame=frame)
        vertices, arrays = read_mesh(obj).vertices, np.load(npz)
        embedding = face.head.landmarks
        # RingNet's pose and neck; the contour by where the head looks, in y up.
        root = np.diag([1, -1, -1]) @ matrix_from_axis_angle(torch.from_numpy(arrays["pose"][:3])).numpy()
        facing = root @ matrix_from_axis_angle(torch.from_numpy(arrays["neck_pose"])).numpy()
        angle = np.degrees(np.arctan2(facing[0, 2], facing[2, 2]))
        assert abs(angle) > 15
        row = contour_row(angle)
        points = np.concatenate([
            on_mesh(vertices, face.head, embedding.contour_faces_idx[row], embedding.contour_bary_coords[row]),
            on_mesh(vertices, face.head, embedding.static_faces_idx, embedding.static_bary_coords),
        ])  # fmt: skip
        seen = np.column_stack([points, np.ones(68)]) @ arrays["projection"].T
        assert np.abs(seen - read_landmarks(pts)[0]).max() < 0.01
        assert np.abs(seen - arrays["landmarks"]).max() < 0.01
        assert np.abs(points - arrays["landmarks_3d"]).max() < 1e-6
        # The camera of RingNet's parameters, over the square, says the same.
        s, *shift = arrays["cam"]
        left, top, side = arrays["square"]
        upside_down = points if frame == "ringnet" else face.in_frame(points, "ringnet")
        again = (s * (upside_down[:, :2] + shift) + 1) * (side / 2) + (left, top)
        assert np.abs(again - arrays["landmarks"]).max() < 0.01

    def test_nows_are_on_the_neutral_mesh(self, face, tmp_path):
        obj, npy = write(tmp_path, "FaMoS_1/selfie/IMG_1", face, ["neutral", "now"])
        assert obj.with_suffix("") == npy.with_suffix("") == tmp_path / "neutral_mesh" / "FaMoS_1" / "selfie" / "IMG_1"
        points, embedding = np.load(npy), face.head.landmarks
        chosen = np.array([19, 22, 25, 28, 16, 31, 37])
        static = embedding.static_faces_idx[chosen], embedding.static_bary_coords[chosen]
        assert np.abs(points - on_mesh(read_mesh(obj).vertices, face.head, *static)).max() < 1e-6
        assert (np.diff(points[:4, 0]) > 0).all() and points[4, 1] < points[:4, 1].min()  # eyes, then the nose below
        assert points[5, 0] < points[6, 0] and (points[5:, 1] < points[4, 1]).all()  # the mouth below that


@pytest.fixture(scope="module", params=FRAMES)
def files(request, face, tmp_path_factory):
    kinds = ["mesh", "parameters", "depth", "normals", "coordinates", "maps"]
    return request.param, write(tmp_path_factory.mktemp("maps"), "a", face, kinds, frame=request.param)


class TestMaps:
    def test_a_ray_caster_sees_the_same(self, face, files):
        """Rays through the middles of 1,000 pixels, by the saved camera, onto the saved mesh."""
        pytest.importorskip("rtree", reason="needs rtree, of the test extra")
        frame, (obj, npz, *_, maps) = files
        mesh, arrays, maps = loaded(obj), np.load(npz), np.load(maps)
        y, x = np.random.default_rng(0).permutation(np.argwhere(np.isfinite(maps["depth"])))[:1000].T
        pixels = np.column_stack([x, y]) + 0.5
        left, top, side = arrays["square"]
        size = len(maps["depth"])
        image = pixels * (side / size) + (left, top)
        # x and y of the mesh that the camera sees there; it is the same for all z.
        matrix = arrays["projection"]
        starts = np.zeros((1000, 3))
        starts[:, :2] = np.linalg.solve(matrix[:, :2], (image - matrix[:, 3]).T).T
        away = 1.0 if frame == "ringnet" else -1.0
        starts[:, 2] = -away
        rays = np.tile([0, 0, away], (1000, 1))
        hit, ray, triangle = mesh.ray.intersects_location(starts, rays, multiple_hits=True)
        depth = np.full(1000, np.inf)
        np.minimum.at(depth, ray, away * hit[:, 2])
        first = depth[ray] == away * hit[:, 2]
        order = ray[first]
        assert len(np.unique(order)) >= 998  # a ray between two triangles may miss both
        hit, triangle = hit[first], triangle[first]
        at = y[order], x[order]
        assert np.abs(maps["depth"][at] - depth[order]).max() < 1e-5
        bary = trimesh.triangles.points_to_barycentric(mesh.triangles[triangle], hit)
        normals = (mesh.vertex_normals[mesh.faces[triangle]] * bary[..., None]).sum(1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        degrees = np.degrees(2 * np.arcsin(np.linalg.norm(maps["normals"][at] - normals, axis=1) / 2))
        assert degrees.max() < 0.1
        places = (face.head.v_template[mesh.faces[triangle]] * bary[..., None]).sum(1)
        assert np.abs(maps["coordinates"][at] - places).max() < 1e-5

    def test_where_the_head_is(self, files):
        """Not beyond it: the silhouette against the triangles' own, filled by OpenCV."""
        import cv2

        _, (obj, npz, *_, maps) = files
        mesh, arrays, seen = read_mesh(obj), np.load(npz), np.isfinite(np.load(maps)["depth"])
        points = np.column_stack([mesh.vertices, np.ones(len(mesh.vertices))]) @ arrays["projection"].T
        left, top, side = arrays["square"]
        points = (points - (left, top)) * (len(seen) / side) - 0.5
        filled = np.zeros(seen.shape, np.uint8)
        for triangle in np.round(points[mesh.faces] * 16).astype(np.int32):
            cv2.fillConvexPoly(filled, triangle, 1, shift=4)
        assert 0.2 < seen.mean() < 0.9 and (seen <= (filled > 0)).all()  # OpenCV fills what an edge touches too
        assert (cv2.erode(filled, np.ones((3, 3), np.uint8)) <= seen).all()

    def test_the_pictures_hold_what_the_arrays_do(self, files):
        frame, (_, _, *pictures, maps) = files
        maps = np.load(maps)
        for path, name, step in zip(
            pictures, ("depth", "normals", "coordinates"), (1e-5, 1 / 32767, 1e-5), strict=True
        ):
            numbers, text = read_png(path)
            assert numbers.dtype == np.uint16 and path.parent.name == name
            assert np.array_equal((numbers == 0).reshape(*numbers.shape[:2], -1).all(-1), np.isnan(maps["depth"]))
            values = read_map(path)
            assert np.array_equal(np.isnan(values), np.isnan(maps[name]))
            assert np.nanmax(np.abs(values - maps[name])) < 0.51 * step
            assert f"(number - 32768) * {step!r}" in text["Comment"] and "pixels of the image" in text["square"]
            assert FRAMES[frame] in text["Description"] or name != "normals"

    def test_a_giant(self, face, tmp_path):
        """What 16 bits of 0.01 mm don't hold is written in coarser steps, not cut off."""
        root = face.root
        giant = replace(
            face, image_vertices=(face.image_vertices - root) * 10 + root, vertices=(face.vertices - root) * 10 + root,
            params=face.params._replace(camera=face.params.camera * torch.tensor([0.1, 10.0, 10.0])),
        )  # fmt: skip
        path, maps = write(tmp_path, "a", giant, ["depth", "maps"])
        depth = np.load(maps)["depth"]
        assert np.nanmax(np.abs(depth)) > 0.33 and np.nanmax(np.abs(read_map(path) - depth)) < 0.51e-4
        assert "0.0001" in read_png(path)[1]["step"]

    def test_other_pictures_are_no_maps(self, face, tmp_path):
        (path,) = write(tmp_path, "a", face, ["panel"])
        with pytest.raises(ValueError, match=r"a\.png: expected a map, which says its zero and step, got another PNG"):
            read_map(path)


class TestOverlay:
    def test_it_lies_over_the_head_in_the_original(self, face, tmp_path):
        picture = face.overlay()
        changed = (picture != face.original).any(2)
        points = np.column_stack([face.vertices, np.ones(len(face.vertices))]) @ face.projection().T
        low, high = points.min(0), points.max(0)
        y, x = np.nonzero(changed)
        # Up to the edges of the head, or of the image.
        for seen, wanted, most in ((x, (low[0], high[0]), 300), (y, (low[1], high[1]), 180)):
            assert np.abs([seen.min(), seen.max() + 1] - np.clip(wanted, 0, most)).max() <= 1.5
        assert np.array_equal(face.overlay(opacity=0.0), face.original) and changed.mean() > 0.1
        write_image(tmp_path / "photo.png", face.original)
        assert np.array_equal(replace(face, original=tmp_path / "photo.png").overlay(), picture)
        assert np.array_equal(replace(face, original=None).overlay(face.original), picture)
        (path,) = write(tmp_path, "a", face, ["overlay"])
        assert read_image(path).shape == face.original.shape

    def test_over_the_square_where_the_original_is_not_known(self, face):
        picture = replace(face, original=None).overlay()
        assert picture.shape == (224, 224, 3)
        seen = (picture != face.image).any(2)
        maps = outputs._Face(face, "flame", {}).maps
        assert (seen != np.isfinite(maps["depth"])).mean() < 0.03

    def test_a_head_beside_the_image(self, face):
        away = replace(face, params=face.params._replace(camera=face.params.camera + torch.tensor([[0, 9.0, 0]])))
        assert np.array_equal(away.overlay(), face.original)


class TestWriting:
    def test_every_kind_is_there_and_named_after_the_face(self, networks, tmp_path):
        paths = write(tmp_path / "new" / "out", "a.b", networks, KINDS)
        assert len(set(paths)) == len(KINDS) and all(path.stat().st_size for path in paths)
        for path, kind in zip(paths, KINDS.values(), strict=True):
            assert path == tmp_path / "new" / "out" / kind.folder / f"a.b{kind.suffix}"
        assert sorted(file for file in (tmp_path / "new").rglob("*") if file.is_file()) == sorted(paths)

    def test_saving(self, face, tmp_path):
        assert face.save(tmp_path) == [tmp_path / KINDS[k].folder / f"face{KINDS[k].suffix}" for k in DEFAULT]
        (path,) = face.save(str(tmp_path), "b", ["ply"], frame="ringnet")
        assert np.abs(loaded(path).vertices - face.image_vertices).max() < 1e-6

    @pytest.mark.parametrize("blocked", ["mesh/a.obj", "landmarks/a.pts", "params/a.json"])
    def test_all_or_none(self, face, blocked, tmp_path):
        """A folder stands where one file should: whichever it is, none of the others is there."""
        (tmp_path / blocked).mkdir(parents=True)
        with pytest.raises(OSError, match=re.escape(blocked)):
            write(tmp_path, "a", face, ["mesh", "landmarks", "json"])
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]

    def test_wrong_kinds_and_frames_are_named_before_anything_is_written(self, face, tmp_path):
        with pytest.raises(ValueError, match=r"kinds: expected some of panel, .*, got 'fbx'"):
            write(tmp_path, "a", face, ["mesh", "fbx"])
        with pytest.raises(ValueError, match="frame: expected one of flame, ringnet, got 'up'"):
            write(tmp_path, "a", face, frame="up")
        assert not list(tmp_path.iterdir())
