"""Detectors of landmarks: their interface, MediaPipe's mesh as 68 points, and MediaPipe itself where there is one."""

import os
import sys
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from ringnet_ext.data.augment import FLIP
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.detectors import MESH_POINTS, Detectors, FaceLandmarker, of_mesh
from ringnet_ext.detection.landmark_files import LandmarkError, NoFaceError
from ringnet_ext.flame import FLAME

MODEL = os.environ.get("RINGNET_FACE_LANDMARKER")  # a file face_landmarker.task


def finder(found):
    """A kind of detector that always finds this."""

    def detector(image):
        return found

    detector.version = "1"
    return lambda: detector


class TestDetectors:
    image = np.zeros((8, 8, 3), np.uint8)

    def test_one_each(self):
        """Each detector is made once and never used twice at a time."""
        made, face = [], 200 * FLAME().landmarks()[0, :, :2].numpy() * (1, -1)

        class Detector:
            version = "2"

            def __init__(self):
                made.append(self)
                self.busy = False

            def __call__(self, image):
                assert not self.busy
                self.busy = True
                points = detectors(image)[0] if image.all() else face  # another needs one meanwhile
                self.busy = False
                return points + len(made), np.ones(68)

        detectors = Detectors(Detector, 3)
        assert len(made) == 3 and detectors.version == "2"
        points, confidence = detectors(self.image)
        assert np.allclose(points, face + 3) and points.dtype == confidence.dtype == np.float32

    def test_all_faces_from_left_to_right_without_those_that_are_none(self):
        face, confidence = 200 * FLAME().landmarks()[0, :, :2].numpy() * (1, -1), np.ones(68)

        class Several:
            version = "1"

            def __call__(self, image):
                return self.found[0] if self.found else None

            def faces(self, image):
                return self.found

        def found(*faces):
            Several.found = list(faces)
            return Detectors(Several, 1).faces(self.image)

        middle, left, scrambled = (face + 90, confidence), (face + [10, 500], confidence), (face[::-1], confidence)
        faces = found(middle, scrambled, left)
        assert len(faces) == 2 and np.allclose(faces[0][0], left[0]) and np.allclose(faces[1][0], middle[0])
        with pytest.raises(LandmarkError, match=r"outer eye distances off those of a head|seen from behind"):
            found(scrambled)
        with pytest.raises(NoFaceError, match="the detector found no face"):
            found()
        # One that finds the largest alone gives that one.
        only = Detectors(finder(middle), 1).faces(self.image)
        assert len(only) == 1 and np.allclose(only[0][0], middle[0])
        with pytest.raises(NoFaceError, match="the detector found no face"):
            Detectors(finder(None), 1).faces(self.image)

    def test_no_face(self):
        with pytest.raises(NoFaceError, match="it found none"):
            Detectors(finder(None), 1)(self.image)

    def test_what_is_found_is_checked_as_a_file_is(self):
        for value, confidence, wrong in (
            (np.nan, 1, "not finite"),
            (1e9, 1, "a coordinate of"),
            (1, -1, "is negative"),
        ):
            with pytest.raises(LandmarkError, match=wrong):
                Detectors(finder((np.full((68, 2), value), np.full(68, confidence))), 1)(self.image)
        with pytest.raises(NoFaceError, match="no point has a confidence above 0"):
            Detectors(finder((np.ones((68, 2)), np.zeros(68))), 1)(self.image)

    @pytest.mark.parametrize("points, confidence", [((478, 2), (478,)), ((68, 3), (68,)), ((68, 2), (68, 1))])
    def test_wrong_sizes_are_the_detectors_fault(self, points, confidence):
        with pytest.raises(TypeError, match=r"expected points \(68, 2\).*got"):
            Detectors(finder((np.ones(points), np.ones(confidence))), 1)(self.image)


def turned(yaw: float) -> np.ndarray:
    """A mesh (478, 3) as wide as it is deep, turned to the subject's left, which is the image's right."""
    mesh = np.random.default_rng(0).uniform(-50, 50, (478, 3))
    mesh[MESH_POINTS[1]], mesh[MESH_POINTS[15]] = (-70, 0, 0), (70, 0, 0)
    cos, sin = np.cos(yaw), np.sin(yaw)
    return mesh @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


class TestMesh:
    def test_points_are_68_others(self):
        assert MESH_POINTS.shape == (68,) and len(set(MESH_POINTS.tolist())) == 68
        assert 0 <= MESH_POINTS.min() and MESH_POINTS.max() < 468

    def test_the_averted_contour_counts_less_the_further_it_is_turned(self):
        for degrees in (0, 10, 20, 40, 80):
            for sign, averted, other in ((1, slice(9, 17), slice(0, 9)), (-1, slice(0, 8), slice(8, 17))):
                mesh = turned(sign * np.radians(degrees))
                points, confidence = of_mesh(mesh)
                assert np.array_equal(points, mesh[MESH_POINTS, :2])
                assert confidence[averted] == pytest.approx(max(0, 1 - degrees / 30))
                assert (confidence[other] == 1).all() and (confidence[17:] == 1).all()

    def test_mirror_images_and_order_on_the_published_mesh(self):
        """Mirroring keeps all distances along the mesh's edges; outlines follow MediaPipe's own."""
        vision = pytest.importorskip("mediapipe.tasks.python.vision", reason="needs MediaPipe")
        mesh = vision.FaceLandmarksConnections
        pairs = np.array([(edge.start, edge.end) for edge in mesh.FACE_LANDMARKS_TESSELATION])
        near = np.full((468, 468), np.inf)
        near[pairs[:, 0], pairs[:, 1]] = near[pairs[:, 1], pairs[:, 0]] = 1
        np.fill_diagonal(near, 0)
        for middle in range(468):  # Floyd and Warshall
            np.minimum(near, near[:, middle, None] + near[middle], out=near)
        between = near[np.ix_(MESH_POINTS, MESH_POINTS)]
        assert np.isfinite(between).all() and np.array_equal(between, between[np.ix_(FLIP, FLIP)])

        def along(connections, start, end):
            """Numbers of steps from the point `start` on an outline, with none going back past `end`."""
            edges = {(edge.start, edge.end) for edge in connections}
            neighbours = {}
            for a, b in edges | {(b, a) for a, b in edges}:
                neighbours.setdefault(a, []).append(b)
            steps, front = {start: 0}, [start]
            for vertex in front:
                for other in neighbours[vertex] if vertex != end else ():
                    if other not in steps:
                        steps[other] = steps[vertex] + 1
                        front.append(other)
            return steps

        def rising(connections, numbers):
            points = MESH_POINTS[numbers]
            steps = along(connections, points[0], points[-1])
            return (np.diff([steps[point] for point in points]) > 0).all()

        oval, lips = mesh.FACE_LANDMARKS_FACE_OVAL, mesh.FACE_LANDMARKS_LIPS
        assert rising(oval, range(0, 9)) and rising(oval, range(8, 17))
        for eye, first in ((mesh.FACE_LANDMARKS_RIGHT_EYE, 36), (mesh.FACE_LANDMARKS_LEFT_EYE, 42)):
            assert rising(eye, range(first, first + 4)) and rising(eye, [first + 3, first + 4, first + 5])
            assert rising(eye, [first, first + 5, first + 4, first + 3])
        for brow, first in ((mesh.FACE_LANDMARKS_RIGHT_EYEBROW, 17), (mesh.FACE_LANDMARKS_LEFT_EYEBROW, 22)):
            assert rising(brow, range(first, first + 5))
        for first, corner, last in ((48, 54, 59), (60, 64, 67)):
            assert rising(lips, range(first, corner + 1)) and rising(lips, [first, *range(last, corner - 1, -1)])
        nose = {edge.start for edge in mesh.FACE_LANDMARKS_NOSE} | {edge.end for edge in mesh.FACE_LANDMARKS_NOSE}
        assert set(MESH_POINTS[27:36].tolist()) <= nose


class TestFaceLandmarker:
    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"face_landmarker.task"):
            FaceLandmarker(tmp_path / "missing.task")

    def test_missing_package(self, tmp_path, monkeypatch):
        (tmp_path / "a.task").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "mediapipe", None)
        with pytest.raises(ImportError, match="pip install 'mediapipe>="):
            FaceLandmarker(tmp_path / "a.task")

    @pytest.fixture
    def stub(self, monkeypatch):
        """MediaPipe's interface, finding the faces of a list."""
        faces = []

        class Landmarker:
            @classmethod
            def create_from_options(cls, options):
                if options.base_options.model_asset_buffer == b"broken":
                    raise RuntimeError("Unable to open zip archive.")
                assert options.num_faces > 1
                return cls()

            def detect(self, image):
                assert image.data.flags.c_contiguous
                return SimpleNamespace(face_landmarks=faces)

            def close(self):
                pass

        def module(name, **content):
            made = ModuleType(name)
            vars(made).update(content)
            monkeypatch.setitem(sys.modules, name, made)

        module("mediapipe", Image=SimpleNamespace, ImageFormat=SimpleNamespace(SRGB=1))
        module("mediapipe.tasks")
        module("mediapipe.tasks.python", BaseOptions=SimpleNamespace)
        module("mediapipe.tasks.python.vision", FaceLandmarker=Landmarker, FaceLandmarkerOptions=SimpleNamespace)
        return faces

    def test_the_largest_of_several_faces_in_pixels(self, stub, tmp_path):
        (tmp_path / "a.task").write_bytes(b"model")
        detector = FaceLandmarker(tmp_path / "a.task")
        image = np.zeros((100, 200, 3), np.uint8)[:, ::-1]
        assert detector(image) is None
        meshes = [size * turned(0.3) / 100 for size in (0.3, 0.9, 0.5)]
        meshes.append(meshes[1] * (0.95, 1, 1) + (80, 0, 0))  # elsewhere, and a little narrower
        meshes[3][:, 1] = meshes[3][:, 1].mean()
        for mesh in meshes:
            rows = zip(mesh[:, 0] / 200, mesh[:, 1] / 100, mesh[:, 2] / 200, strict=True)
            stub.append([SimpleNamespace(x=x, y=y, z=z) for x, y, z in rows])
        points, confidence = detector(image)
        expected = of_mesh(meshes[1])
        assert points == pytest.approx(expected[0]) and confidence == pytest.approx(expected[1])
        for found, mesh in zip(detector.faces(image), meshes, strict=True):
            assert found[0] == pytest.approx(of_mesh(mesh)[0])

    def test_the_version_is_the_models(self, stub, tmp_path):
        versions = []
        for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
            (tmp_path / name).write_bytes(content)
            versions.append(FaceLandmarker(tmp_path / name).version)
        assert versions[0] == versions[2] != versions[1]
        (tmp_path / "broken").write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"broken.*zip archive"):
            FaceLandmarker(tmp_path / "broken")

    @pytest.mark.skipif(
        not MODEL,
        reason="needs RINGNET_FACE_LANDMARKER, a file face_landmarker.task as MediaPipe's documentation offers it",
    )
    def test_rendered_heads(self, tmp_path):
        """The real thing finds most heads, and their points where they are."""
        pytest.importorskip("mediapipe")
        faces = SyntheticFaces(identities=8, images_per_identity=2, size=160, color=True).load(cache=tmp_path)
        detector, border, errors = FaceLandmarker(MODEL), 80, []
        for image, landmarks in zip(faces.images, faces.landmarks, strict=True):
            found = detector(cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_REPLICATE))
            if found is not None:
                true = (landmarks + 1) * 80 + border
                error = np.linalg.norm(found[0] - true, axis=1) / np.linalg.norm(true[36] - true[45])
                errors.append(np.where(found[1] > 0.5, error, np.nan))
        assert len(errors) > len(faces) / 2
        error = np.nanmedian(errors, axis=0)
        assert error[17:].max() < 0.2 and error[:17].max() < 0.3 and np.median(error[17:]) < 0.07
