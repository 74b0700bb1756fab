"""NoW's error against what is known of made-up scans, and the benchmark's files; the command on both."""

import csv
import os
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from ringnet_ext import RingNet
from ringnet_ext.commands.evaluate import main
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.evaluation.now import face_ball, face_of, scan_errors
from ringnet_ext.evaluation.now_files import (
    Dataset,
    Entry,
    read_distances,
    read_list,
    read_picked_points,
    read_prediction,
    write_distances,
)
from ringnet_ext.flame import FLAME, builtin_head
from ringnet_ext.geometry.alignment import procrustes
from ringnet_ext.geometry.surface import Surface
from ringnet_ext.inference.outputs import NOW_LANDMARKS

igl = pytest.importorskip("igl", reason="needs libigl")

HEAD = builtin_head()


def person(seed):
    """Vertices and NoW's landmarks of somebody's neutral head; metres."""
    shape = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed))
    head = FLAME(HEAD)(shape)
    points = head.landmarks[0, 17:][list(NOW_LANDMARKS)]
    return head.vertices[0].double().numpy(), points.double().numpy()


def scanned(vertices, landmarks, seed=0):
    """A scan of a head: other vertices of the same surface, in mm, elsewhere and turned."""
    points, _ = trimesh.remesh.subdivide(vertices, HEAD.faces)
    random = np.random.default_rng(seed)
    turn, shift = Rotation.random(random_state=seed).as_matrix(), random.normal(0, 100, 3)
    move = lambda given: 1000 * given @ turn.T + shift
    return move(points), move(landmarks)


class TestErrors:
    @pytest.mark.parametrize("unit", [None, "m"])
    def test_a_person_s_own_head_has_none_wherever_it_lies(self, unit):
        scan, marks = scanned(*person(0))
        turn = Rotation.from_euler("yxz", [150, 20, -10], degrees=True).as_matrix()
        size = 3.7 if unit is None else 1.0
        vertices, landmarks = (size * points @ turn.T + 5 for points in person(0))
        landmarks += size * np.random.default_rng(1).normal(0, 0.003, (7, 3))  # clicked by hand
        errors = scan_errors(scan, marks, vertices, HEAD.faces, landmarks, unit)
        assert errors.distances.max() < 1e-6 and not errors.mirrored
        assert errors.alignment.scale == pytest.approx(1000 / size, rel=1e-9)
        assert np.abs(errors.alignment(vertices) - scan[: len(vertices)]).max() < 1e-6  # a subdivision keeps its first
        centre, radius = face_ball(marks)
        assert len(errors.points) == (np.linalg.norm(scan - centre, axis=1) <= radius).sum() > 3000

    def test_it_is_the_least_sum_of_squares(self):
        """Against SciPy, which knows no derivatives, with another library's distances."""
        scan, marks = scanned(*person(0))
        scan = scan[::7]
        vertices, landmarks = person(1)
        errors = scan_errors(scan, marks, vertices, HEAD.faces, landmarks)
        start = procrustes(landmarks, marks)

        def distances(x):
            turn = Rotation.from_rotvec(x[3:6]).as_matrix() @ start.rotation
            there = start.scale * np.exp(x[6]) * vertices @ turn.T + start.translation + x[:3]
            return np.sqrt(igl.point_mesh_squared_distance(errors.points, there, HEAD.faces)[0])

        found = least_squares(distances, np.zeros(7), x_scale=[1, 1, 1, 0.01, 0.01, 0.01, 0.01], xtol=1e-12, ftol=1e-12)
        assert np.square(errors.distances).sum() == pytest.approx(2 * found.cost, rel=1e-6)
        assert np.abs(errors.distances - distances(found.x)).max() < 0.01
        assert 0.2 < np.median(errors.distances) < 2
        with_trimesh = trimesh.Trimesh(errors.alignment(vertices), HEAD.faces, process=False)
        some = slice(0, 50)
        assert np.allclose(
            trimesh.proximity.closest_point(with_trimesh, errors.points[some])[1], errors.distances[some], atol=1e-9
        )

    def test_where_sizes_count_a_larger_head_has_an_error(self):
        scan, marks = scanned(*person(0))
        vertices, landmarks = (1.1 * points for points in person(0))
        free, metrical = (scan_errors(scan, marks, vertices, HEAD.faces, landmarks, unit) for unit in (None, "m"))
        assert free.distances.max() < 1e-6 and metrical.alignment.scale == 1000
        assert np.median(metrical.distances) > 0.5
        centimetres = scan_errors(scan, marks, 100 * vertices, HEAD.faces, 100 * landmarks, "cm")
        assert np.allclose(centimetres.distances, metrical.distances, atol=1e-6)

    def test_a_mirror_image_is_noticed(self):
        scan, marks = scanned(*person(0))
        vertices, landmarks = (points * (-1, 1, 1) for points in person(0))
        errors = scan_errors(scan, marks, vertices, HEAD.faces[:, ::-1], landmarks)
        assert errors.mirrored and errors.distances.max() < 1e-6

    def test_triangles_without_area_are_as_if_they_were_not_there(self):
        scan, marks = scanned(*person(0))
        vertices, landmarks = person(1)
        more = np.concatenate([HEAD.faces, [[0, 0, 1], [5, 5, 5]]])
        plain, odd = (scan_errors(scan, marks, vertices, faces, landmarks) for faces in (HEAD.faces, more))
        assert np.allclose(plain.distances, odd.distances, atol=1e-9)
        with pytest.raises(ValueError, match="triangles: expected some with an area"):
            Surface(np.zeros((3, 3)), np.array([[0, 1, 2]]))
        with pytest.raises(ValueError, match="no vertex of the scan lies in the ball"):
            scan_errors(scan, marks + 1e4, vertices, HEAD.faces, landmarks)

    @pytest.mark.parametrize("unit", [None, "m"])
    def test_landmarks_that_are_one_point_are_an_error(self, unit):
        scan, marks = scanned(*person(0))
        with pytest.raises(ValueError, match=r"landmarks: expected seven points, got \[0.0, 0.0, 0.0\] seven times"):
            scan_errors(scan[::50], marks, person(1)[0], HEAD.faces, np.zeros((7, 3)), unit)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("vertices, landmarks", [(1, 1000), (1000, 1), (1, 1e-12)])
    def test_landmarks_of_another_unit_have_finite_errors(self, vertices, landmarks):
        """Large ones, but the best step from there is far too long."""
        scan, marks = scanned(*person(0))
        head, points = person(1)
        errors = scan_errors(scan[::10], marks, vertices * head, HEAD.faces, landmarks * points)
        assert np.isfinite(errors.distances).all() and np.median(errors.distances) > 1

    @pytest.mark.filterwarnings("error")
    def test_a_scan_of_one_vertex(self):
        marks = scanned(*person(0))[1]
        errors = scan_errors(marks[4:5], marks, person(1)[0], HEAD.faces, person(1)[1])
        assert errors.distances == pytest.approx([0], abs=1e-6)


def points_of(vertices):
    """NoW's landmarks of a neutral head with the built-in one's triangles."""
    corners = vertices[HEAD.faces[HEAD.landmarks.static_faces_idx]]
    return (HEAD.landmarks.static_bary_coords[:, :, None] * corners).sum(1)[list(NOW_LANDMARKS)]


PICKED = """<!DOCTYPE PickedPoints>
<PickedPoints>
 <DocumentData>
  <DateTime time="16:00:00" date="2018-11-15"/>
  <User name="somebody"/>
  <DataFileName name="scan.obj"/>
  <templateName name=""/>
 </DocumentData>
{}
</PickedPoints>
"""


def write_picked(path, points):
    lines = [f' <point x="{x}" active="1" name="{i}" z="{z}" y="{y}"/>' for i, (x, y, z) in enumerate(points)]
    path.write_text(PICKED.format("\n".join(lines)))


def write_obj(path, vertices, faces=()):
    lines = ["# a scan", *("v {} {} {} 0.5 0.5 0.5".format(*map(float, row)) for row in vertices)]
    path.write_text("\n".join(lines + [f"f {a + 1}//{a + 1} {b + 1} {c + 1}" for a, b, c in faces]) + "\n")


ENTRIES = [
    Entry("FaMoS_1", "multiview_neutral", "IMG_1.jpg"),
    Entry("FaMoS_1", "selfie", "IMG_2.jpg"),
    Entry("FaMoS_2", "multiview_neutral", "IMG_1.jpg"),
]


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    """The benchmark's folder with two people, whose photographs are rendered, and a list of its images."""
    root = tmp_path_factory.mktemp("now")
    faces = SyntheticFaces(identities=3, images_per_identity=1, size=96, color=True).load(cache=root / "cache")
    for seed, subject in enumerate(("FaMoS_1", "FaMoS_2")):
        scan, marks = scanned(*person(seed), seed)
        for folder in ("scans", "scans_lmks_onlypp"):
            (root / folder / subject).mkdir(parents=True)
        write_obj(root / "scans" / subject / "natural_head.obj", scan, HEAD.faces[:2])
        write_picked(root / "scans_lmks_onlypp" / subject / "natural_head_picked_points.pp", marks)
    release = root / "NoW_Dataset" / "final_release_version"
    for i, entry in enumerate(ENTRIES):
        for folder in ("iphone_pictures", "detected_face"):
            (release / folder / entry.subject / entry.challenge).mkdir(parents=True, exist_ok=True)
        picture = release / "iphone_pictures" / entry.subject / entry.challenge / entry.image
        canvas = np.full((200, 180, 3), 90, np.uint8)
        canvas[40:136, 30:126] = faces.images[i]
        cv2.imwrite(str(picture), canvas[..., ::-1])
        box = {"left": 36, "top": 46, "right": 120, "bottom": 130}
        np.save(release / "detected_face" / entry.subject / entry.challenge / "IMG_1.npy", np.array(box, object))
        np.save(release / "detected_face" / entry.subject / entry.challenge / "IMG_2.npy", np.array(box, object))
    lines = [f"{entry.subject}/{entry.challenge}/{entry.image}" for entry in ENTRIES]
    (root / "imagepathsvalidation.txt").write_text("\n".join(lines) + "\n")
    return root


def predict(folder, entry, seed, suffix=".obj", landmarks=".npy"):
    vertices, points = person(seed)
    path = folder / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Trimesh(vertices, HEAD.faces, process=False).export(path.with_suffix(suffix))
    if landmarks == ".npy":
        np.save(path.with_suffix(".npy"), points)
    else:
        np.savetxt(path.with_suffix(".txt"), points)


class TestFiles:
    def test_the_list_and_what_it_names(self, now, tmp_path):
        assert read_list(now / "imagepathsvalidation.txt") == ENTRIES
        dataset = Dataset(now, now / "scans", now / "scans_lmks_onlypp")
        assert all(dataset.image(entry).is_file() for entry in ENTRIES)
        assert dataset.box(ENTRIES[0]) == (36, 46, 120, 130)
        scan, marks = dataset.scan("FaMoS_2")
        whole, expected = scanned(*person(1), 1)
        assert np.allclose(scan, face_of(whole, expected)) and np.allclose(marks, expected)
        assert dataset.scan("FaMoS_2")[0] is scan  # many images of a subject take no more memory
        (tmp_path / "list").write_text("C:\\data\\FaMoS_1\\selfie\\IMG_2.jpg\n\n")
        assert read_list(tmp_path / "list") == [ENTRIES[1]]
        for text in ("", "FaMoS_1/IMG.jpg", "a/frontal/IMG.jpg", "../selfie/a.jpg\n../selfie/b", "/selfie/a.b", "\xe4"):
            (tmp_path / "list").write_text(text, "latin1")
            with pytest.raises(ValueError, match=r"list(, line \d)?: (expected SUBJECT|no images)"):
                read_list(tmp_path / "list")

    @pytest.mark.parametrize("text", ["", '<point x="1" y="2"/>' * 7, '<point x="1" y="2" z="?"/>' * 7])
    def test_seven_points_or_an_error(self, text, tmp_path):
        (tmp_path / "a.pp").write_text(text)
        with pytest.raises(ValueError, match=r"a\.pp: expected seven points"):
            read_picked_points(tmp_path / "a.pp")

    @pytest.mark.parametrize(
        "content, said",
        [
            (np.full((7, 3), np.nan), r"\(7, 3\) of float64"),
            (np.zeros((68, 3)), r"\(68, 3\) of float64"),
            ([[1, 2], [3]], r"\(0,\)"),
        ],
    )
    def test_seven_landmarks_of_a_prediction_or_an_error(self, content, said, tmp_path):
        predict(tmp_path, ENTRIES[0], 0)
        with open((tmp_path / ENTRIES[0].name).with_suffix(".npy"), "wb") as file:
            np.save(file, content) if isinstance(content, np.ndarray) else pickle.dump(content, file)
        with pytest.raises(ValueError, match=rf"IMG_1\.npy: expected seven points of finite x, y and z, got {said}"):
            read_prediction(tmp_path, ENTRIES[0])

    def test_a_batch_of_one_is_taken_as_now_evaluation_takes_it(self, tmp_path):
        predict(tmp_path, ENTRIES[0], 0)
        np.save((tmp_path / ENTRIES[0].name).with_suffix(".npy"), person(0)[1][None])
        assert np.array_equal(read_prediction(tmp_path, ENTRIES[0])[1], person(0)[1])

    def test_distances_are_as_now_evaluation_reads_them(self, tmp_path):
        each = [np.array([1.0, 2.0]), np.array([3.0]), np.array([4.0, 5.0])]
        write_distances(tmp_path / "a.npy", each, 2, ["a", "b", "c"])
        content = np.load(tmp_path / "a.npy", allow_pickle=True, encoding="latin1").item()
        assert np.hstack(content["computed_distances"]).tolist() == [1, 2, 3, 4, 5]
        assert content["num_missing_files"] == 2 and content["input_files"] == ["a", "b", "c"]
        assert read_distances(tmp_path / "a.npy").tolist() == [1, 2, 3, 4, 5]
        write_distances(tmp_path / "a.npy", each[:1] * 2, 0, ["a", "b"])  # of one length: no table of them
        assert read_distances(tmp_path / "a.npy").tolist() == [1, 2, 1, 2]
        np.save(tmp_path / "b.npy", np.zeros(3))
        with pytest.raises(ValueError, match=r"b\.npy: expected a dictionary with computed_distances"):
            read_distances(tmp_path / "b.npy")

    def test_predictions_of_others(self, tmp_path):
        for suffix, landmarks in ((".obj", ".npy"), (".ply", ".txt")):
            folder = tmp_path / suffix[1:]
            predict(folder, ENTRIES[0], 0, suffix, landmarks)
            mesh, points = read_prediction(folder, ENTRIES[0])
            assert np.allclose(mesh.vertices, person(0)[0], atol=1e-6) and np.allclose(points, person(0)[1])
            assert read_prediction(folder, ENTRIES[1]) is None
        (folder / ENTRIES[0].name).with_suffix(".txt").unlink()
        assert read_prediction(folder, ENTRIES[0]) is None


def run(*arguments):
    return main([str(argument) for argument in arguments])


class TestCommand:
    def test_predictions_are_measured(self, now, tmp_path, capsys):
        predictions, out = tmp_path / "predictions", tmp_path / "out"
        for entry, seed in zip(ENTRIES, (0, 2, 1), strict=True):  # the second is somebody else's head
            predict(predictions, entry, seed)
        assert run(now, "--predictions", predictions, "--out", out, "--name", "mine") == 0
        text = capsys.readouterr().out
        assert (out / "now.txt").read_text() in text
        rows = {line.split()[0]: line.split()[1:] for line in (out / "now.txt").read_text().splitlines()}
        assert rows["multiview_neutral"] == ["2", "0", "0.00", "0.00", "0.00"]
        assert rows["selfie"][:2] == ["1", "0"] and float(rows["selfie"][2]) > 0.2
        pooled = read_distances(out / "mine_computed_distances.npy")
        figures = np.median(pooled), pooled.mean(), pooled.std()
        assert rows["all"] == ["3", "0", *(f"{value:.2f}" for value in figures)]
        with open(out / "now.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        assert [(line["subject"], line["challenge"], line["image"]) for line in lines] == ENTRIES
        assert sum(int(line["points"]) for line in lines) == len(pooled)
        assert cv2.imread(str(out / "now.png")).shape[1] > 1000
        again = tmp_path / "again"
        compare = ["--compare", out / "mine_computed_distances.npy", "--challenge", "selfie", "--metrical", "m"]
        assert run(now, "--predictions", predictions, "--out", again, *compare) == 0
        text = capsys.readouterr().out
        assert "mine " in text and "multiview" not in text
        assert (again / "ringnet_ext_metrical_computed_distances.npy").is_file()

    def test_what_is_missing_or_broken_is_said_and_left_out(self, now, tmp_path, capsys):
        predictions, out = tmp_path / "predictions", tmp_path / "out"
        predict(predictions, ENTRIES[0], 0)
        predict(predictions, ENTRIES[1], 0)
        (predictions / ENTRIES[1].name).with_suffix(".obj").write_text("v 0 0 0\n")
        assert run(now, "--predictions", predictions, "--out", out) == 1
        said = capsys.readouterr()
        assert f"1 of 3 images have no prediction in {predictions}" in said.err
        broken = (predictions / ENTRIES[1].name).with_suffix(".obj")
        assert f"error: {ENTRIES[1].name}: {broken}: not a mesh that can be read: no triangles in it" in said.err
        assert "all                            3        2    0.00" in said.out
        content = np.load(out / "ringnet_ext_computed_distances.npy", allow_pickle=True).item()
        assert content["num_missing_files"] == 2 and content["input_files"] == ["FaMoS_1/multiview_neutral/IMG_1.jpg"]

    @pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read")
    def test_a_file_that_cannot_be_read_leaves_the_others(self, now, tmp_path, capsys):
        predictions = tmp_path / "predictions"
        for entry in ENTRIES:
            predict(predictions, entry, 0)
        broken = (predictions / ENTRIES[1].name).with_suffix(".npy")
        broken.unlink()
        broken.symlink_to("/proc/self/mem")
        assert run(now, "--predictions", predictions, "--out", tmp_path / "out") == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {ENTRIES[1].name}: ") and said.err.count("\n") == 1
        assert "all                            3        1 " in said.out

    def test_an_image_twice_in_the_list_is_predicted_once_and_counts_twice(self, now, tmp_path, capsys):
        RingNet().save(tmp_path / "model.safetensors")
        (tmp_path / "list").write_text("FaMoS_1/selfie/IMG_2.jpg\r\n\r\n/data/FaMoS_1/selfie/IMG_2.jpg\r\n")
        asked = ["--checkpoint", tmp_path / "model.safetensors", "--list", tmp_path / "list"]
        assert run(now, *asked, "--out", tmp_path / "out") == 0
        assert "all                            2        0 " in capsys.readouterr().out

    def test_methods_of_one_name_are_told_apart_by_their_folders(self, now, tmp_path, capsys):
        files = [tmp_path / folder / "ringnet_ext_computed_distances.npy" for folder in "ab"]
        for file, distance in zip(files, (3.25, 4.5), strict=True):
            file.parent.mkdir()
            write_distances(file, [np.full(2, distance)], 0, ["a"])
        predict(tmp_path, ENTRIES[0], 0)
        run(now, "--predictions", tmp_path, "--out", tmp_path / "out", "--compare", *files)
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        for file, median in zip(files, ("3.25", "4.50"), strict=True):
            assert [str(file.parent / "ringnet_ext"), median, median, "0.00"] in rows

    def test_of_a_subject_without_a_scan_nothing_is_measured(self, now, tmp_path, capsys):
        """As it is with the test set, beside whose images the validation set's scans lie."""
        RingNet().save(tmp_path / "model.safetensors")
        shutil.copytree(now / "NoW_Dataset", tmp_path / "NoW_Dataset")
        shutil.copytree(now / "scans" / "FaMoS_2", tmp_path / "scans" / "FaMoS_2")
        shutil.copytree(now / "scans_lmks_onlypp", tmp_path / "scans_lmks_onlypp")
        (tmp_path / "imagepathstest.txt").write_text("FaMoS_1/selfie/IMG_2.jpg\n")
        checkpoint = ["--checkpoint", tmp_path / "model.safetensors"]
        assert run(tmp_path, *checkpoint, "--out", tmp_path / "out", "--split", "test") == 0
        assert "so nothing is measured" in capsys.readouterr().out
        assert read_prediction(tmp_path / "out" / "neutral_mesh", ENTRIES[1])
        # Where some have one, the others' are missed before the work is done.
        asked = [*checkpoint, "--list", now / "imagepathsvalidation.txt", "--out", tmp_path / "again"]
        assert run(tmp_path, *asked) == 1
        assert capsys.readouterr().err == f"error: {tmp_path / 'scans' / 'FaMoS_1'}: no .obj file in it\n"
        assert not (tmp_path / "again").exists()

    def test_libigl_has_as_many_threads_as_are_asked_for(self, now, tmp_path, monkeypatch):
        monkeypatch.setenv("IGL_NUM_THREADS", "")  # as it is now it is restored
        monkeypatch.delenv("IGL_NUM_THREADS")
        before = torch.get_num_threads()
        try:
            run(now, "--predictions", tmp_path, "--out", tmp_path / "out", "--threads", 3)
            assert os.environ["IGL_NUM_THREADS"] == "3"
        finally:
            torch.set_num_threads(before)

    @pytest.mark.filterwarnings("error")
    def test_no_prediction_at_all(self, now, tmp_path, capsys):
        assert run(now, "--predictions", tmp_path, "--out", tmp_path / "out") == 1
        said = capsys.readouterr()
        assert said.err == f"error: 3 of 3 images have no prediction in {tmp_path}, or no landmarks of it\n"
        assert "all                            3        3       -       -       -" in said.out

    def test_a_network_s_heads_are_predicted_and_measured(self, now, tmp_path, capsys):
        model, out = RingNet(), tmp_path / "out"
        model.limit = 0.0  # it is sure of no face; the benchmark is, of all
        model.save(tmp_path / "model.safetensors")
        assert run(now, "--checkpoint", tmp_path / "model.safetensors", "--out", out) == 0
        text = capsys.readouterr().out
        for entry in ENTRIES:
            mesh, points = read_prediction(out / "neutral_mesh", entry)
            assert len(mesh.vertices) == 5023
            assert np.allclose(points, points_of(mesh.vertices), atol=1e-6)
        assert "all                            3        0" in text
        mean = scan_errors(*scanned(*person(0), 0), HEAD.v_template, HEAD.faces, points_of(HEAD.v_template))
        with open(out / "now.csv", newline="") as file:
            first = next(csv.DictReader(file))
        assert float(first["median"]) == pytest.approx(np.median(mean.distances), abs=0.05)  # it has learnt nothing

    def test_without_scans_there_are_predictions(self, now, tmp_path, capsys):
        RingNet().save(tmp_path / "model.safetensors")
        out = tmp_path / "out"
        checkpoint = ["--checkpoint", tmp_path / "model.safetensors"]
        leftover = out / "neutral_mesh" / "FaMoS_1" / "selfie" / ".IMG_2.obj.12345.tmp"  # of a run that was killed
        leftover.parent.mkdir(parents=True)
        leftover.write_text("half")
        assert run(now, *checkpoint, "--out", out, "--scans", tmp_path / "no") == 0
        assert not leftover.exists()
        assert f"the predictions are in {out / 'neutral_mesh'}" in capsys.readouterr().out
        assert all(read_prediction(out / "neutral_mesh", entry) for entry in ENTRIES)
        assert not (out / "now.txt").exists()

    @pytest.mark.parametrize(
        "arguments, code, said",
        [
            (["{now}/nowhere", "--predictions", "{now}"], 2, "NOW: {now}/nowhere: no such folder"),
            (["{now}", "--predictions", "{now}/nowhere"], 2, "--predictions: {now}/nowhere: no such folder"),
            (["{now}", "--predictions", "{now}", "--split", "test"], 1, "{now}/imagepathstest.txt: No such file"),
            (["{now}", "--predictions", "{now}", "--scans", "{now}/x"], 1, "{now}/x: no subject's folder in it"),
            (["{now}", "--predictions", "{now}", "--scan-landmarks", "{now}"], 1, "{now}/FaMoS_1: no .pp file in it"),
            (["{now}", "--predictions", "{now}", "--name", "a/b"], 2, "--name: expected letters"),
            (["{now}", "--predictions", "{now}", "--challenge", "multiview_occlusions"], 2, "--challenge: "),
            (["{now}", "--predictions", "{now}", "--compare", "{now}/x.npy"], 1, "{now}/x.npy: No such file"),
        ],
    )  # fmt: skip
    def test_what_can_t_be_followed(self, arguments, code, said, now, tmp_path, capsys):
        given = [argument.format(now=now) for argument in arguments]
        assert run(*given, "--out", tmp_path / "out") == code
        assert capsys.readouterr().err.startswith(f"error: {said.format(now=now)}")
