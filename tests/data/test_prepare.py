"""Training on photographs: a miniature VGGFace2 with everything that can be wrong, from prepare to infer."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ringnet_ext import RingNet
from ringnet_ext.commands import infer, train
from ringnet_ext.commands import prepare as prepare_command
from ringnet_ext.data import prepare
from ringnet_ext.data.augment import FLIP, crop
from ringnet_ext.data.face_set import Augmentation, FaceSet
from ringnet_ext.data.ledger import Ledger
from ringnet_ext.data.photographs import hold_out, load_photographs
from ringnet_ext.data.rings import RingSampler
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.landmark_files import LandmarkError, NoFaceError, read_landmarks
from ringnet_ext.detection.pose import estimate_yaw
from ringnet_ext.files.images import read_image
from ringnet_ext.flame import FLAME
from ringnet_ext.geometry.camera import yaw_of
from ringnet_ext.training.settings import PRESETS

PEOPLE, EACH, SIDE = 31, 3, 160  # the last are nobody's: 30 people and a folder of extreme poses
OPTIONS = ["--size", "96", "--anonymous", "extreme"]


def openpose(points, confidence=None):
    """OpenPose's JSON of (68, 2) pixels, with its two pupils."""
    confidence = np.full(len(points), 0.8) if confidence is None else confidence
    rows = np.column_stack([points - 0.5, confidence])
    rows = np.concatenate([rows, [[1, 1, 0.5]] * 2])
    return json.dumps({"version": 1.3, "people": [{"face_keypoints_2d": [round(v, 3) for v in rows.ravel().tolist()]}]})


def pts(points):
    body = "\n".join(f"{x:.4f} {y:.4f}" for x, y in points + 0.5)
    return f"version: 1\nn_points:  68\n{{\n{body}\n}}\n"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Faces, and their landmarks in pixels."""
    faces = SyntheticFaces(identities=PEOPLE, images_per_identity=EACH, size=SIDE, color=True)
    faces = faces.load(cache=tmp_path_factory.mktemp("cache"))
    return faces, (faces.landmarks.astype(np.float64) + 1) * SIDE / 2


#: Names of the images that must be dropped, and why.
BAD = {
    "n000001/truncated.jpg": "unreadable image",
    "n000001/empty.jpg": "unreadable image",
    "n000001/text.png": "unreadable image",
    "n000001/pixel.png": "image too small",
    "n000002/no_landmarks.jpg": "no landmarks",
    "n000002/not_json.jpg": "malformed landmarks",
    "n000002/sixty.jpg": "malformed landmarks",
    "n000002/nan.jpg": "malformed landmarks",
    "n000002/letters.jpg": "malformed landmarks",
    "n000002/pickle.jpg": "malformed landmarks",
    "n000003/nobody.jpg": "no face found",
    "n000003/guess.jpg": "too few landmarks",
    "n000003/other_image.jpg": "landmarks outside the image",
    "n000003/far.jpg": "face too small",
    "orphan.jpg": "no identity",
}


@pytest.fixture(scope="module")
def vggface2(tmp_path_factory, rendered):
    """VGGFace2's layout, with OpenPose's files beside the images and every other kind among them."""
    faces, pixels = rendered
    root = tmp_path_factory.mktemp("VGGFace2") / "train"

    def save(name, image, landmarks=None, suffix="_keypoints.json", **options):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        if landmarks is not None:
            data = landmarks if isinstance(landmarks, bytes) else landmarks.encode()
            path.with_name(path.stem + suffix).write_bytes(data)

    for index in range(len(faces)):
        person = faces.identity[index] + 1
        folder = "extreme" if person == PEOPLE else f"n{person:06d}"
        save(f"{folder}/{index:04d}_01.jpg", faces.images[index], openpose(pixels[index]), quality=95)
    image, points = faces.images[0], pixels[0]
    good = openpose(points)

    # Unusual, and fine.
    save("n000004/gray.jpg", Image.fromarray(image).convert("L"), good)
    save("n000004/cmyk.jpg", Image.fromarray(image).convert("CMYK"), good, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    lying = np.ascontiguousarray(np.rot90(image))
    save("n000004/phone.jpg", lying, good, exif=exif, quality=95)
    save("n000005/a.PNG", image, pts(points), suffix=".pts")
    save("n000005/b.jpeg", image, npy(points - 0.5), suffix=".npy")
    save("n000005/c.png", image, npz(landmarks=points - 0.5, confidence=np.ones(68)), suffix=".npz")
    save("n000005/d.jpg", image, "x,y\n" + "\n".join(f"{x},{y}" for x, y in points - 0.5), suffix=".csv")
    save("n000005/with space, and comma é.jpg", image, good)
    hidden = np.full(68, 0.9)
    hidden[:17] = 0
    save("n000005/no_contour.jpg", image, openpose(np.where(hidden[:, None] > 0, points, 0.5), hidden))

    # Not fine.
    jpeg = io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG")
    save("n000001/truncated.jpg", jpeg.getvalue()[: len(jpeg.getvalue()) // 2], good)
    save("n000001/empty.jpg", b"", good)
    save("n000001/text.png", b"<html>404</html>", good)
    save("n000001/pixel.png", image[:1, :1], good)
    save("n000002/no_landmarks.jpg", image)
    save("n000002/not_json.jpg", image, good[:200])
    save("n000002/sixty.jpg", image, pts(points[:60]), suffix=".pts")
    save("n000002/nan.jpg", image, npy(np.where(np.arange(68)[:, None] == 3, np.nan, points)), suffix=".npy")
    save("n000002/letters.jpg", image, "a,b\n1,2\n", suffix=".csv")
    save("n000002/pickle.jpg", image, npy(np.array({"a": 1}, dtype=object)), suffix=".npy")
    save("n000003/nobody.jpg", image, json.dumps({"people": [{"face_keypoints_2d": []}]}))
    save("n000003/guess.jpg", image, openpose(points, np.where(np.arange(68) < 10, 0.5, 0)))
    save("n000003/other_image.jpg", image, openpose(points + 300))
    save("n000003/far.jpg", image, openpose(points / 10 + 50))
    save("orphan.jpg", image, good)
    (root / "README.txt").write_text("not an image")
    (root / "n000001/._0000_01.jpg").write_bytes(b"what a Mac leaves behind")
    return root


@pytest.fixture(scope="module")
def prepared(vggface2, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "set"
    assert prepare_command.main([str(vggface2), "--out", str(out), *OPTIONS, "--workers", "2"]) == 0
    return out


def names(folder):
    return [path.decode() for path in np.load(folder / "manifest.npy", mmap_mode="r")["path"]]


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestPrepare:
    def test_every_bad_file_is_named_with_its_reason_and_nothing_else_is_lost(self, prepared, vggface2):
        dropped = rows(prepared / "dropped.csv")
        assert {row["image"]: row["reason"] for row in dropped} == BAD
        assert all(row["detail"] for row in dropped)
        images = {str(path.relative_to(vggface2)) for path in vggface2.rglob("*.*")
                  if path.suffix.lower() in (".jpg", ".jpeg", ".png") and not path.name.startswith(".")}  # fmt: skip
        kept = {name if name in images else name.removesuffix(".jpg") for name in names(prepared)}
        assert kept == images - BAD.keys() and len(names(prepared)) == len(kept)
        on_disk = {str(path.relative_to(prepared / "images")) for path in (prepared / "images").rglob("*.*")}
        assert on_disk == set(names(prepared))

    def test_report(self, prepared):
        report = (prepared / "report.txt").read_text()
        assert f"{len(BAD)} images (see dropped.csv)" in report
        for kind, count in Counter(BAD.values()).items():
            assert f"{count} {kind}" in report
        assert f"{EACH} images without identity" in report
        histogram = [line.split() for line in report.partition("yaw")[2].splitlines() if line.endswith("#")]
        assert sum(int(row[2]) for row in histogram) == len(names(prepared))
        assert read_image(prepared / "contact_sheet.jpg").shape[1] == 8 * 144

    def test_people(self, prepared):
        people = rows(prepared / "people.csv")
        assert sorted(row["person"] for row in people) == [f"n{i:06d}" for i in range(1, PEOPLE)]
        assert [row["person"] for row in people] != sorted(row["person"] for row in people)
        faces = load_photographs(prepared)
        for name, identity in zip(names(prepared), faces.identity, strict=True):
            folder = name.split("/")[0]
            assert folder == ("extreme" if identity < 0 else people[identity]["person"])
        assert (np.diff(faces.identity) >= 0).all()
        assert [int(row["images"]) for row in people] == np.bincount(faces.identity[faces.identity >= 0]).tolist()

    def test_pixels_and_landmarks_are_those_of_the_source(self, prepared, rendered):
        """Every crop shows what the rendering shows there: upright, in its colours, its landmarks in place."""
        faces, pixels = rendered
        prepared_faces = load_photographs(prepared)
        same = {"n000004/gray.jpg", "n000004/cmyk.jpg", "n000004/phone.jpg", "n000005/a.PNG.jpg", "n000005/b.jpeg.jpg",
                "n000005/c.png.jpg", "n000005/d.jpg", "n000005/with space, and comma é.jpg"}  # fmt: skip
        checked = 0
        for index, name in enumerate(names(prepared)):
            if name in same:
                source = 0
            elif name.endswith("_01.jpg"):
                source = int(name.split("/")[1][:4])
            else:
                continue
            points = prepared_faces.landmarks[index]
            assert np.ptp(points, axis=0).max() == pytest.approx(2 * prepare.LOOSE_FILL, rel=0.02)
            # The similarity between crop and source that the landmarks tell must be the one that the pixels tell.
            target, start = (points + 1) * 48, pixels[source]
            scale = np.ptp(target[:, 0]) / np.ptp(start[:, 0])
            shift = target.mean(0) - scale * start.mean(0)
            assert np.abs(scale * start + shift - target).max() < 0.05
            matrix = np.array([[scale, 0, shift[0] + scale / 2 - 0.5], [0, scale, shift[1] + scale / 2 - 0.5]])
            expected = cv2.warpAffine(faces.images[source], matrix, (96, 96), borderMode=cv2.BORDER_REPLICATE)
            expected = expected.astype(int)
            if name == "n000004/gray.jpg":
                expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
            difference = np.abs(prepared_faces.images[index].astype(int) - expected)
            assert difference.mean() < 6, name
            checked += 1
        assert checked == PEOPLE * EACH + len(same)

    def test_unknown_points_have_no_weight(self, prepared):
        faces = load_photographs(prepared)
        row = names(prepared).index("n000005/no_contour.jpg")
        assert (faces.confidence[row, :17] == 0).all() and (faces.landmarks[row, :17] == 0).all()
        assert faces.confidence[row, 17:] == pytest.approx(0.9)

    def test_estimated_yaw(self, rendered):
        faces, _ = rendered
        yaw = np.degrees(estimate_yaw(faces.landmarks, faces.confidence))
        truth = np.degrees(yaw_of(torch.from_numpy(faces.truth["global_pose"])).numpy())
        assert np.corrcoef(yaw, truth)[0, 1] > 0.95 and np.abs(yaw - truth).mean() < 6
        assert np.isnan(estimate_yaw(faces.landmarks[:1], 0 * faces.confidence[:1])).all()

    def test_an_interrupted_run_continues(self, prepared, vggface2, tmp_path, monkeypatch, capsys):
        done = []

        def counted(*arguments, whole=prepare.check):
            done.append(arguments[0])
            return whole(*arguments)

        def stopping(*arguments):
            if len(done) == 40:
                raise KeyboardInterrupt
            return counted(*arguments)

        command = [str(vggface2), "--out", str(tmp_path / "set"), *OPTIONS, "--workers", "1"]
        monkeypatch.setattr(prepare, "check", stopping)
        assert prepare_command.main(command) == 130 and "continues" in capsys.readouterr().err
        assert not (tmp_path / "set" / "manifest.npy").exists()
        done.clear()
        monkeypatch.setattr(prepare, "check", counted)
        assert prepare_command.main(command) == 0
        total = len(names(prepared)) + len(BAD) - 1  # the orphan is not even opened
        assert len(done) == total - 32  # a batch had been noted
        for name in ("manifest.npy", "dropped.csv", "people.csv", "report.txt"):
            assert (tmp_path / "set" / name).read_bytes() == (prepared / name).read_bytes()
        done.clear()
        assert prepare_command.main(command) == 0 and not done
        with pytest.raises(ValueError, match=r'"size": 96.*"size": 64.*another folder'):
            prepare.prepare(vggface2, tmp_path / "set", prepare.PrepareSettings(size=64))

    def test_a_changed_source_changes_the_set(self, vggface2, prepared, tmp_path):
        source, out = tmp_path / "source", tmp_path / "set"
        shutil.copytree(vggface2, source)
        arguments = (source, out, prepare.PrepareSettings(size=96))
        prepare.prepare(*arguments, anonymous="extreme")
        good = (source / "n000001/0000_01_keypoints.json").read_bytes()
        (source / "n000002/no_landmarks_keypoints.json").write_bytes(good)  # found
        (source / "n000004/gray_keypoints.json").write_text("[")  # spoilt
        (source / "n000001/0000_01.jpg").unlink()  # gone
        prepare.prepare(*arguments, anonymous="extreme")
        before, after = set(names(prepared)), set(names(out))
        assert after - before == {"n000002/no_landmarks.jpg"}
        assert before - after == {"n000004/gray.jpg", "n000001/0000_01.jpg"}
        assert {str(path.relative_to(out / "images")) for path in (out / "images").rglob("*.*")} == after

    def test_a_set_that_is_being_changed_is_none(self, rendered, tmp_path, monkeypatch):
        """Its manifest is of the crops as they were."""
        person, pixels = tmp_path / "source" / "person", rendered[1]
        person.mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rendered[0].images[index]).save(person / f"{index}.png")
            (person / f"{index}.pts").write_text(pts(pixels[index]))
        arguments = tmp_path / "source", tmp_path / "set"
        prepare.prepare(*arguments)

        def killed(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(prepare, "_finish", killed)
            with pytest.raises(KeyboardInterrupt):
                prepare.prepare(*arguments)
            assert len(load_photographs(tmp_path / "set")) == 2  # nothing was changed
            (person / "1.pts").write_text(pts(pixels[1] + 2))
            with pytest.raises(KeyboardInterrupt):
                prepare.prepare(*arguments)
            with pytest.raises(FileNotFoundError, match="ringnet prepare"):
                load_photographs(tmp_path / "set")
        prepare.prepare(*arguments)
        prepare.prepare(tmp_path / "source", tmp_path / "fresh")
        assert (tmp_path / "set" / "manifest.npy").read_bytes() == (tmp_path / "fresh" / "manifest.npy").read_bytes()

    @pytest.mark.parametrize("separator", [" ", ","])
    def test_celeba_and_lists(self, rendered, tmp_path, separator):
        """One folder of images, identities in a file, landmarks in a folder of their own."""
        faces, pixels = rendered
        images, landmarks = tmp_path / "img", tmp_path / "landmarks"
        images.mkdir(), landmarks.mkdir()
        lines = ["path,identity"] if separator == "," else []
        for index in range(6):
            Image.fromarray(faces.images[index]).save(images / f"{index:06d}.jpg")
            (landmarks / f"{index:06d}.pts").write_text(pts(pixels[index]))
            lines.append(f"{index:06d}.jpg{separator}{-1 if index == 5 else 2880 + index // 2}")
        lines += [f"./000001.jpg{separator}2880"]  # the same once more
        lines += [f"missing.jpg{separator}7", f"../img/000000.jpg{separator}7"]
        (tmp_path / "identity.txt").write_text("\n".join(lines) + "\n")
        prepare.prepare(
            images, tmp_path / "set", prepare.PrepareSettings(64, "png"), landmarks=landmarks,
            identities=tmp_path / "identity.txt",
        )  # fmt: skip
        assert sorted(names(tmp_path / "set")) == [f"{index:06d}.jpg.png" for index in range(6)]
        assert sorted(Counter(load_photographs(tmp_path / "set").identity.tolist()).values()) == [1, 1, 2, 2]
        dropped = {row["image"]: row["reason"] for row in rows(tmp_path / "set" / "dropped.csv")}
        assert dropped == {"missing.jpg": "no such image", "../img/000000.jpg": "path outside the source"}

    def test_names_that_are_no_text(self, rendered, tmp_path):
        person = os.fsencode(tmp_path) + b"/source/\xffperson"
        try:
            os.makedirs(person)
        except OSError:
            pytest.skip("a file system that takes no such names")
        Image.fromarray(rendered[0].images[0]).save(tmp_path / "a.jpg")
        shutil.copy(tmp_path / "a.jpg", person + b"/\xfe.jpg")
        Path(os.fsdecode(person + b"/\xfe.pts")).write_text(pts(rendered[1][0]))
        prepare.prepare(tmp_path / "source", tmp_path / "set")
        assert [row["reason"] for row in rows(tmp_path / "set" / "dropped.csv")] == ["name is not UTF-8"]

    def test_two_photographs_have_not_one_crop(self, rendered, tmp_path):
        person = tmp_path / "source" / "person"
        person.mkdir(parents=True)
        for index, name in enumerate(("a.png", "a.png.jpg")):
            Image.fromarray(rendered[0].images[index]).save(person / name)
            (person / name).with_suffix(".pts").write_text(pts(rendered[1][index]))
        prepare.prepare(tmp_path / "source", tmp_path / "set")
        assert [(row["image"], row["reason"]) for row in rows(tmp_path / "set" / "dropped.csv")] == [
            ("person/a.png", "two of one name")
        ]
        assert names(tmp_path / "set") == ["person/a.png.jpg"]

    def test_a_name_that_no_crop_can_have_drops_its_image_alone(self, rendered, tmp_path):
        person = tmp_path / "source" / "person"
        person.mkdir(parents=True)
        for name in ("a", "é" * 124, "é" * 117):
            try:
                Image.fromarray(rendered[0].images[0]).save(person / f"{name}.jpg")
                (person / f"{name}.pts").write_text(pts(rendered[1][0]))
            except OSError:
                pytest.skip("a file system that takes no such names")
        prepare.prepare(tmp_path / "source", tmp_path / "set")
        assert [(row["image"], row["reason"]) for row in rows(tmp_path / "set" / "dropped.csv")] == [
            (f"person/{'é' * 124}.jpg", "name too long")
        ]
        assert len(load_photographs(tmp_path / "set")) == 2

    def test_a_shells_slash_behind_the_name_of_the_anonymous_folder(self, prepared, vggface2, tmp_path):
        """Else its images are those of one person."""
        prepare.prepare(vggface2, tmp_path / "set", anonymous="extreme/")
        assert rows(tmp_path / "set" / "people.csv") == rows(prepared / "people.csv")

    def test_what_it_is_made_of_is_not_overwritten(self, rendered, tmp_path, capsys):
        photograph, people = tmp_path / "images" / "ann" / "a.jpg", tmp_path / "set" / "people.csv"
        photograph.parent.mkdir(parents=True)
        people.parent.mkdir()
        Image.fromarray(rendered[0].images[0]).save(photograph)
        photograph.with_suffix(".pts").write_text(pts(rendered[1][0]))
        people.write_text("a.jpg,ann\n")
        before = photograph.read_bytes()
        for source, out, *more in (
            (tmp_path / "images", tmp_path),  # whose images/ the crops would lie in
            (photograph.parent, tmp_path),
            (photograph.parent, people.parent, "--identities", people),
        ):
            assert prepare_command.main([str(value) for value in (source, "--out", out, *more)]) == 1
            assert "put it elsewhere" in capsys.readouterr().err
        assert photograph.read_bytes() == before and people.read_text() == "a.jpg,ann\n"

    def test_two_runs_at_once_are_refused(self, vggface2, tmp_path, capsys):
        first = Ledger(tmp_path / "progress.sqlite", asdict(prepare.PrepareSettings()))
        assert prepare_command.main([str(vggface2), "--out", str(tmp_path)]) == 1
        assert "another run" in capsys.readouterr().err
        first.database.close()

    def test_errors_say_what_to_do(self, vggface2, tmp_path, capsys):
        (tmp_path / "bare").mkdir()
        (tmp_path / "images").mkdir()
        (tmp_path / "three.txt").write_text("a,b,c\n")
        for arguments, message in (
            ([tmp_path / "nowhere"], "nowhere: no such folder"),
            ([tmp_path / "bare"], "no images"),
            ([vggface2, "--landmarks", tmp_path / "nowhere"], "nowhere: no such folder"),
            ([vggface2, "--identities", tmp_path / "nowhere"], "no such file of identities"),
            ([vggface2, "--identities", tmp_path / "three.txt"], "line 1: expected a path and an identity"),
            ([vggface2, "--anonymous", "nobody"], "--anonymous"),
            ([vggface2, "--anonymous", "extreme/.."], "--anonymous"),
            ([vggface2, "--out", vggface2 / "set"], "put it elsewhere"),
            ([tmp_path / "images", "--out", tmp_path], "put it elsewhere"),
        ):
            assert prepare_command.main([str(value) for value in ["--out", tmp_path / "out", *arguments]]) == 1
            assert message in capsys.readouterr().err


class Finder:
    """A detector that knows some images, and how often it has been asked."""

    def __init__(self, known, version):
        self.known, self.version, self.asked = known, version, 0

    def __call__(self, image):
        self.asked += 1
        return self.known.get(image.tobytes())


class TestDetector:
    @pytest.fixture
    def source(self, rendered, tmp_path):
        """Images with landmark files and without, and what a detector knows."""
        faces, pixels = rendered
        root, known = tmp_path / "source", {}
        for index in range(6):
            path = root / f"person{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(faces.images[index]).save(path)
            known[faces.images[index].tobytes()] = pixels[index], np.full(68, 0.7)
        (root / "person0/0.pts").write_text(pts(pixels[0]))
        (root / "person1/1.json").write_text('{"people": []}')
        del known[faces.images[2].tobytes()]
        known[faces.images[3].tobytes()] = np.full((68, 2), np.nan), np.ones(68)
        return root, known

    def test_it_finds_what_files_lack(self, source, tmp_path, rendered):
        root, known = source
        finders = []

        def make():
            finders.append(Finder(known, "1"))
            return finders[-1]

        prepare.prepare(root, tmp_path / "set", prepare.PrepareSettings(96, "png"), detector=make, workers=2)
        assert len(finders) == 2 and sum(finder.asked for finder in finders) == 4
        assert {row["image"]: (row["reason"], row["detail"]) for row in rows(tmp_path / "set/dropped.csv")} == {
            "person1/1.png": ("no face found", "1.json: OpenPose found no face"),  # a file's word is taken
            "person0/2.png": ("no face found", "detector: it found none"),
            "person1/3.png": ("malformed landmarks", "detector: 68 points are not finite numbers "
                              "(mark unknown points by confidence 0)"),
        }  # fmt: skip
        found = dict(zip(names(tmp_path / "set"), load_photographs(tmp_path / "set").confidence, strict=True))
        assert {name: float(confidence.mean()) for name, confidence in found.items()} == {
            "person0/0.png": 1, "person0/4.png": pytest.approx(0.7), "person1/5.png": pytest.approx(0.7),
        }  # fmt: skip

    def test_another_detector_is_asked_again_and_the_same_is_not(self, source, tmp_path):
        root, known = source

        def asked(finder):
            prepare.prepare(
                root, tmp_path / "set", prepare.PrepareSettings(96), detector=finder and (lambda: finder), workers=1
            )
            return finder and finder.asked

        assert asked(None) is None and names(tmp_path / "set") == ["person0/0.png.jpg"]
        assert asked(Finder(known, "1")) == 4 and len(names(tmp_path / "set")) == 3
        assert asked(Finder(known, "1")) == 0 and len(names(tmp_path / "set")) == 3
        assert asked(Finder({}, "2")) == 4 and names(tmp_path / "set") == ["person0/0.png.jpg"]
        assert asked(None) is None
        reasons = Counter(row["reason"] for row in rows(tmp_path / "set/dropped.csv"))
        assert reasons == {"no landmarks": 4, "no face found": 1}

    def test_a_detector_that_returns_something_else_stops_the_run(self, source, tmp_path):
        root, known = source
        wrong = {image: (np.zeros((478, 2)), np.ones(478)) for image in known}
        with pytest.raises(TypeError, match="expected points"):
            prepare.prepare(root, tmp_path / "set", detector=lambda: Finder(wrong, "1"))

    def test_what_the_command_lacks(self, source, tmp_path, capsys, monkeypatch):
        command = [str(source[0]), "--out", str(tmp_path / "set"), "--detector", str(tmp_path / "a.task")]
        assert prepare_command.main(command) == 1 and "a.task: no such model" in capsys.readouterr().err
        (tmp_path / "a.task").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "mediapipe", None)
        assert prepare_command.main(command) == 1 and "pip install" in capsys.readouterr().err


class TestLandmarkFiles:
    points = 50 + 400 * FLAME().landmarks()[0, :, :2].numpy().astype(np.float64) * (1, -1)

    @pytest.mark.parametrize("name, data", [
        ("a.json", openpose(points).encode()),
        ("a.pts", pts(points).encode()),
        ("a.npy", npy(np.column_stack([points - 0.5, np.full(68, 0.8)]))),
        ("a.npz", npz(anything=points - 0.5)),
        ("a.csv", "\n".join(f"{x},{y},0.8" for x, y in points - 0.5).encode()),
    ])  # fmt: skip
    def test_all_formats_agree(self, tmp_path, name, data):
        (tmp_path / name).write_bytes(data)
        found, confidence = read_landmarks(tmp_path / name)
        assert np.abs(found - self.points).max() < 1e-3 and found.dtype == confidence.dtype == np.float32
        assert confidence == pytest.approx(1.0 if name in ("a.pts", "a.npz") else 0.8)

    def test_the_largest_face_counts(self, tmp_path):
        people = [json.loads(openpose(self.points * scale))["people"][0] for scale in (0.3, 1, 0.5)]
        (tmp_path / "a.json").write_text(json.dumps({"people": [*people, {"face_keypoints_2d": [0] * 210}]}))
        assert np.abs(read_landmarks(tmp_path / "a.json")[0] - self.points).max() < 1e-3

    @pytest.mark.parametrize("name, data", [
        ("a.txt", b""),
        ("a.json", b"{}"), ("a.json", b'{"people": 3}'), ("a.json", b'{"people": [{"face_keypoints_2d": "a"}]}'),
        ("a.pts", b"\xff\xfe"), ("a.pts", b"{\n1 2\n}"), ("a.pts", b"n_points: 3\n{\n1 2\n}"),
        ("a.npy", b"\x93NUMPY"), ("a.npy", npy(points + 1e9)), ("a.npy", npy(np.column_stack([points, -points[:, 0]]))),
        ("a.npz", b"PK\x03\x04"), ("a.npz", npz(a=points, b=points)),
        ("a.csv", b"1,2\n3\n"), ("a.csv", b""),
    ])  # fmt: skip
    def test_what_is_malformed(self, tmp_path, name, data):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            LandmarkError,
            match=r"expected|not readable|not finite|a coordinate of|is negative|a confidence of|n_points",
        ):
            read_landmarks(tmp_path / name)

    def test_no_face(self, tmp_path):
        (tmp_path / "a.json").write_text('{"people": []}')
        with pytest.raises(NoFaceError, match="OpenPose"):
            read_landmarks(tmp_path / "a.json")


class TestTraining:
    def test_train_and_infer_as_documented(self, prepared, vggface2, tmp_path, capsys):
        run = tmp_path / "run"
        command = (f"--data {prepared} --validation-share 0.1 --out {run} --steps 6 --rings 2 --ring-size 4 "
                   "--checkpoint-steps 3").split()  # fmt: skip
        assert train.main(command) == 0
        assert "everything is in" in capsys.readouterr().out
        report = json.loads((run / "report.json").read_text())  # of truth only what is known
        assert report["people"] == 3 and report["images"] >= 3 and "face" not in str(report)
        assert 0.05 < report["nme"] < 1 and report["inter_mm"] > 0 and report["intra_mm"] > 0
        assert report["intra_inter"] == pytest.approx(report["intra_mm"] / report["inter_mm"])
        config = json.loads((run / "config.json").read_text())
        assert config["faces"]["rotation"] > 0 and config["faces"]["held_out"] > 0
        photographs = [str(vggface2 / "n000004" / name) for name in ("0009_01.jpg", "phone.jpg", "cmyk.jpg")]
        assert (
            infer.main(
                [
                    *photographs,
                    "--landmarks",
                    str(vggface2 / "n000004"),
                    "--checkpoint",
                    str(run),
                    "--out",
                    str(tmp_path / "heads"),
                ]
            )
            == 0
        )
        assert len(list((tmp_path / "heads" / "mesh").glob("*.obj"))) == 3
        assert RingNet.load(run).trained_on == "photographs" and 0 < RingNet.load(run).limit <= 0.9
        (tmp_path / "nothing").mkdir()
        assert train.main(["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "other")]) == 1
        assert "ringnet prepare" in capsys.readouterr().err

    def test_train_in_python_as_documented(self, prepared, tmp_path, monkeypatch, capsys):
        page = Path(__file__).parents[2] / "docs" / "training_on_photographs.md"
        if not page.exists():
            pytest.skip("docs/ is not here: a source distribution leaves it out")
        (example,) = re.findall(r"^```python\n([^`]*Trainer\([^`]*)^```", page.read_text(), re.MULTILINE)
        for documented, small in (('"faces"', repr(str(prepared))), ('"head.npz"', "None"), (".cuda()", ""),
                                  ('"resnet50"', '"compact"'), ('"runs/mine"', repr(str(tmp_path)))):  # fmt: skip
            assert documented in example
            example = example.replace(documented, small)
        paper = PRESETS["paper"]
        quick = replace(paper.training, steps=1, rings_per_step=2)
        monkeypatch.setitem(PRESETS, "paper", replace(paper, training=quick))
        exec(example, {})
        assert "photographs" in capsys.readouterr().out and RingNet.load(tmp_path)

    def test_held_out_people_are_others(self, prepared):
        faces = load_photographs(prepared)
        assert len(np.unique(hold_out(faces, 0.001)[1].identity)) == 2  # fewer make no ring
        training, validation = hold_out(faces, 0.1)
        assert len(training) + len(validation) == len(faces)
        assert not set(training.identity) & set(validation.identity) and len(set(validation.identity)) == 3
        assert (training.identity < 0).sum() == EACH and (validation.identity >= 0).all()
        assert np.array_equal(validation.images[0], faces.images[len(training)])
        for share, message in ((0, "between 0 and 1"), (0.99, "too few")):
            with pytest.raises(ValueError, match=message):
                hold_out(faces, share)

    def test_images_without_identity_make_rings_of_themselves(self):
        identity = np.array([0, 0, 0, 1, 1, 1, -1, -1])
        sampler = RingSampler(identity, 4, 4, seed=0)
        leaders = Counter()
        for ring in np.concatenate([sampler.rings(step) for step in range(4)]):
            own = identity[ring[0]] < 0
            assert ring[-1] not in ring[:-1] and (len(set(ring[:-1])) == 1) == own
            leaders[int(ring[0]) if own else f"person {identity[ring[0]]}"] += 1
        assert leaders == {"person 0": 4, "person 1": 4, 6: 4, 7: 4}

    def test_crops_of_the_one_image_vary_more(self):
        faces = FaceSet(
            np.zeros((2, 64, 64), np.uint8), np.random.default_rng(0).uniform(-0.5, 0.5, (2, 68, 2)),
            np.ones((2, 68), np.float32), np.array([0, -1]),
        )  # fmt: skip
        _, landmarks, _ = crop(faces, np.repeat([[0], [1]], 50, axis=1), 32, np.random.default_rng(0))
        sizes = (landmarks.amax(1) - landmarks.amin(1)).amax(1).log().unflatten(0, (2, 50)).std(1)
        assert sizes[1] > 2 * sizes[0]

    def test_augmented_landmarks_stay_on_their_pixels_with_their_confidences(self):
        """A bright dot at one landmark of many, through zoom, shift, rotation, mirror, shrinking, blur and JPEG."""
        random = np.random.default_rng(1)
        points = random.uniform(-0.45, 0.45, (24, 68, 2)).astype(np.float32)
        images = np.zeros((24, 300, 300, 3), np.uint8)
        marked = 36  # an eye's corner, 45 when mirrored
        points[:, marked] /= 2  # stays inside
        for image, landmarks in zip(images, points, strict=True):
            x, y = (landmarks[marked] + 1) * 150 - 0.5
            cv2.circle(image, (round(float(x) * 16), round(float(y) * 16)), 10 * 16, (255,) * 3, -1, cv2.LINE_AA, 4)
        confidence = np.full((24, 68), 0.5, np.float32)
        confidence[:, marked] = 1
        settings = Augmentation(zoom=0.1, shift=0.06, rotation=30, color=0.2, blur=0.5, jpeg=0.5)
        faces = FaceSet(images, points, confidence, np.arange(24), augmentation=settings)
        crops, landmarks, weights = crop(faces, np.arange(24).reshape(12, 2), 96, random)
        grid = (torch.arange(96) + 0.5) / 48 - 1
        moved = 0
        for image, target, weight in zip(crops.float().mean(1), landmarks, weights, strict=True):
            light = (image - image.min() - 0.3 * (image.max() - image.min())).relu()
            light = light / light.sum()
            centre = torch.stack([(light.sum(0) * grid).sum(), (light.sum(1) * grid).sum()])
            at = int(weight.argmax())
            assert at in (marked, FLIP[marked]) and (weight == 1).sum() == 1
            assert (target[at] - centre).norm() < 0.02
            moved += at != marked
        assert 0 < moved < 24
        again = crop(faces, np.arange(24).reshape(12, 2), 96, np.random.default_rng(5))
        assert torch.equal(again[0], crop(faces, np.arange(24).reshape(12, 2), 96, np.random.default_rng(5))[0])

    def test_files_and_arrays_give_the_same_batches(self, prepared):
        faces = load_photographs(prepared)
        held = FaceSet(
            np.stack([faces.images[index] for index in range(12)]), faces.landmarks[:12], faces.confidence[:12],
            faces.identity[:12], augmentation=faces.augmentation,
        )  # fmt: skip
        for random in (None, 3):
            batches = [
                crop(source, np.arange(12).reshape(3, 4), 48, None if random is None else np.random.default_rng(random))
                for source in (faces, held)
            ]
            assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))

    def test_200_000_images_need_little_memory(self, tmp_path):
        """From what has been noted of every image to the manifest, the report, and batches for training."""
        script = """
import dataclasses, sys, time
from pathlib import Path
import numpy as np
from ringnet_ext.data import prepare
from ringnet_ext.data.augment import crop
from ringnet_ext.data.ledger import Ledger
from ringnet_ext.data.photographs import hold_out, load_photographs
from ringnet_ext.data.rings import RingSampler
from ringnet_ext.files.images import write_image

out, count, each = Path(sys.argv[1]), int(sys.argv[2]), 20
(out / "images").mkdir(parents=True)
write_image(out / "images/face.jpg", np.zeros((64, 64, 3), np.uint8))
landmarks = np.random.default_rng(0).uniform(-0.6, 0.6, (each, 68, 2)).astype(np.float32)
confidence = np.ones(68, np.float32).tobytes()
progress = Ledger(out / "progress.sqlite", dataclasses.asdict(prepare.PrepareSettings()))
start = time.process_time()
for people in np.arange(count // each).reshape(-1, 500):
    names = [f"n{person:06d}" for person in people]
    good = [
        (f"{name}/{image}.jpg", "", name, "", "", "face.jpg", points.tobytes(), confidence)
        for name in names for image, points in enumerate(landmarks)
    ]
    bad = [(f"{name}/bad.jpg", "", name, "unreadable image", "empty", None, None, None) for name in names]
    progress.store(good + bad, [])
prepare._finish(progress, out)
seconds = time.process_time() - start
faces, validation = hold_out(load_photographs(out), 0.05)
sampler = RingSampler(faces.identity, 6, 32, 0)
for step in range(10):
    rings = sampler.rings(step)
    faces.landmarks[rings.ravel()]
crop(faces, rings[:1], 64, np.random.default_rng(0))
# Not ru_maxrss, which starts at what the process had that started this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024
print(len(faces), len(validation), seconds, peak)
"""

        def run(count):
            command = [sys.executable, "-c", script, tmp_path / str(count), str(count)]
            result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
            training, validation, seconds, megabytes = map(float, result.stdout.split())
            assert (training, validation) == (0.95 * count, 0.05 * count)
            return seconds, megabytes

        (few_seconds, few), (seconds, megabytes) = run(50_000), run(200_000)
        assert megabytes < 1000 and megabytes < few + 200
        assert seconds < 1.5 * 4 * few_seconds

    def test_damaged_sets_are_refused(self, prepared, tmp_path):
        with pytest.raises(FileNotFoundError, match="ringnet prepare"):
            load_photographs(tmp_path)
        data = (prepared / "manifest.npy").read_bytes()
        for content in (b"", data[: len(data) // 2], npy(np.zeros(3))):
            (tmp_path / "manifest.npy").write_bytes(content)
            with pytest.raises(ValueError, match=r"manifest.npy"):
                load_photographs(tmp_path)
