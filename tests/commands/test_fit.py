"""ringnet fit: photographs with landmark files, people, videos, and what can be wrong."""

import csv
import json
import math

import cv2
import numpy as np
import pytest
import torch

from ringnet_ext import FLAME, RingNet, builtin_head
from ringnet_ext.commands import videos
from ringnet_ext.commands.fit import main
from ringnet_ext.commands.pose import main as pose
from ringnet_ext.files.meshes import read_mesh
from ringnet_ext.files.videos import Video, VideoError, write_video
from ringnet_ext.geometry.camera import project
from ringnet_ext.inference.video import fit_landmarks, read_video_landmarks
from ringnet_ext.render.pictures import overlay

SIZE = 160


@pytest.fixture(scope="module")
def flame():
    return FLAME()


def head(flame, seed, yaw, jaw=0.0):
    """A picture (SIZE, SIZE, 3) of a head, its landmarks in pixels, and its shape."""
    shape = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed))
    out = flame(shape, None, torch.tensor([[math.pi, yaw, 0.0]]), jaw_pose=torch.tensor([[jaw, 0.0, 0.0]]))
    camera = torch.tensor([[5.0, 0.0, 0.05]])
    camera[:, 2] = -out.landmarks[0, :, 1].mean()
    picture = overlay(
        np.full((SIZE, SIZE, 3), 120, np.uint8), out.vertices[0].numpy(), builtin_head().faces, camera[0].numpy()
    )
    return picture, (project(out.landmarks, camera)[0].numpy() + 1) * SIZE / 2, shape


@pytest.fixture(scope="module")
def photos(flame, tmp_path_factory):
    """Two people, two images each, in folders, with landmark files beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for person in (0, 1):
        (folder / f"p{person}").mkdir()
        for i, yaw in enumerate((-0.3, 0.4)):
            picture, points, _ = head(flame, person, yaw)
            cv2.imwrite(str(folder / f"p{person}" / f"{person}{i}.png"), picture[..., ::-1])
            np.save(folder / f"{person}{i}.npy", points - 0.5)  # of arrays the first pixel's centre is 0
    return folder


def rows(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_photographs(photos, flame, tmp_path, capsys):
    assert (
        main(
            [
                str(photos / "p0"),
                str(photos / "p1"),
                "--landmarks",
                str(photos),
                "--by-folder",
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    assert "4 of 4 images fitted" in capsys.readouterr().out
    report = rows(tmp_path / "o" / "report.csv")
    assert [row["person"] for row in report] == ["0", "0", "1", "1"]
    assert all(float(row["landmark_error"]) < 0.02 for row in report)
    arrays = [np.load(tmp_path / "o" / "params" / f"{row['name']}.npz") for row in report]
    assert np.array_equal(arrays[0]["shape"], arrays[1]["shape"]) and not np.array_equal(
        arrays[0]["shape"], arrays[2]["shape"]
    )
    assert arrays[0]["shape_std"].shape == (100,) and (arrays[0]["shape_std"] <= 1.001).all()
    _, points, truth = head(flame, 0, -0.3)
    assert np.linalg.norm(arrays[0]["landmarks"] - points, axis=1).mean() < 1
    found = torch.from_numpy(arrays[0]["shape"])[None]
    error, mean = (
        (flame(shape).vertices - flame(truth).vertices).norm(dim=-1).mean() for shape in (found, torch.zeros(1, 100))
    )
    assert error < 0.6 * mean
    for kind, suffix in (("images", "png"), ("mesh", "obj"), ("neutral_mesh", "obj"), ("uncertainty", "png")):
        assert sorted(file.name for file in (tmp_path / "o" / kind).iterdir()) == sorted(
            f"{row['name']}.{suffix}" for row in report
        )
    facts = json.loads((tmp_path / "o" / "report.json").read_text())
    assert [person["images"] for person in facts["people"]] == [["00", "01"], ["10", "11"]]
    residuals = rows(tmp_path / "o" / "residuals.csv")
    assert len(residuals) == 4 and np.mean([float(residuals[0][str(i)]) for i in range(68)]) == pytest.approx(
        float(report[0]["pixels"]), abs=0.002
    )


def test_a_pinhole_camera(photos, tmp_path):
    out = tmp_path / "o"
    assert (
        main(
            [
                str(photos / "p0"),
                "--landmarks",
                str(photos),
                "--same-person",
                "--camera",
                "perspective",
                "--focal",
                "900",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    arrays = np.load(out / "params" / "00.npz")
    assert arrays["focal"] == pytest.approx(900, rel=1e-4) and 0.5 < arrays["camera_translation"][2] < 10
    assert all(f"{name}: " in str(arrays["about"]) for name in set(arrays) - {"about"})
    # Of the pinhole, not of a camera like it: the landmarks, and the matrix of the posed mesh.
    given = np.load(photos / "00.npy") + 0.5
    error = np.linalg.norm(arrays["landmarks"] - given, axis=1).mean()
    assert error == pytest.approx(float(rows(out / "report.csv")[0]["pixels"]), abs=0.002)
    seen = np.column_stack([arrays["landmarks_3d"], np.ones(68)]) @ arrays["projection"].T
    assert np.abs(seen[:, :2] / seen[:, 2:] - arrays["landmarks"]).max() < 0.01
    assert pose(["--parameters", str(out / "params" / "00.npz"), "--out", str(tmp_path / "m.obj")]) == 0
    meshes = [read_mesh(file).vertices for file in (tmp_path / "m.obj", out / "mesh" / "00.obj")]
    assert np.abs(meshes[0] - meshes[1]).max() < 1e-6


def test_no_photograph_is_written_over(photos, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    picture = tmp_path / "images" / "00.png"
    picture.write_bytes((photos / "p0" / "00.png").read_bytes())
    assert main([str(picture), "--landmarks", str(photos), "--out", str(tmp_path)]) == 2
    assert "images, which is read; expected another folder" in capsys.readouterr().err
    assert picture.read_bytes() == (photos / "p0" / "00.png").read_bytes()


def test_what_is_wrong_with_an_image_is_one_line(photos, tmp_path, capfd):
    cv2.imwrite(str(tmp_path / "00.tif"), np.zeros((20, 20, 3), np.float32))  # of which OpenCV has something to say
    assert main([str(tmp_path / "00.tif"), "--landmarks", str(photos), "--out", str(tmp_path / "o")]) == 1
    assert capfd.readouterr().err == f"error: {tmp_path / '00.tif'}: not an image, or a damaged one\n"


def test_the_rest_is_done(photos, tmp_path, capsys):
    missing = tmp_path / "nothing.png"
    stray = tmp_path / "stray.png"
    stray.write_bytes((photos / "p0" / "00.png").read_bytes())
    out = tmp_path / "o"
    assert (
        main([str(missing), str(stray), str(photos / "p0" / "00.png"), "--landmarks", str(photos), "--out", str(out)])
        == 1
    )
    said = capsys.readouterr()
    assert "1 of 3 images fitted" in said.out
    assert str(missing) in said.err and f"{stray}: no landmarks" in said.err and "Traceback" not in said.err


@pytest.mark.parametrize(
    "options, code, message",
    [
        ([], 2, "one of the arguments --landmarks --detector is required"),
        (["--landmarks", "nowhere"], 2, "--landmarks: nowhere: no such folder"),
        (["--landmarks", ".", "--focal", "900"], 2, "--focal: expected --camera perspective with it"),
        (
            ["--landmarks", ".", "--camera", "perspective", "--focal", "-1"],
            2,
            "--focal: expected a number above 0, got '-1'",
        ),
        (["--landmarks", ".", "--sigma", "0"], 2, "--sigma: expected a number above 0, got '0'"),
        (["--landmarks", ".", "--same-person", "--by-folder"], 2, "not allowed with argument"),
        (["--landmarks", ".", "--head", "nothing.npz"], 1, "nothing.npz"),
        (["--landmarks", ".", "--checkpoint", "nothing"], 1, "nothing"),
        (["--landmarks", ".", "--device", "banana"], 2, "--device"),
    ],
)
def test_wrong_options_are_named(photos, tmp_path, capsys, options, code, message):
    try:
        got = main([str(photos / "p0"), "--out", str(tmp_path / "o"), *options])
    except SystemExit as stop:
        got = stop.code
    said = capsys.readouterr().err
    assert got == code and message in said and said.count("\n") == 1


# Videos


@pytest.fixture(scope="module")
def video(flame, tmp_path_factory):
    """A head that turns and talks, 24 frames, of which five show no face: the file, its landmarks."""
    folder = tmp_path_factory.mktemp("video")
    seen = [head(flame, 2, 0.4 * math.sin(0.2 * i), 0.1 * (1 - math.cos(0.8 * i)))[:2] for i in range(24)]
    write_video(folder / "v.mp4", (np.pad(picture, ((0, 0), (20, 20), (0, 0))) for picture, _ in seen), 25)
    points = np.stack([points for _, points in seen]) + [20, 0]
    points[10:15] = np.nan
    np.save(folder / "v.npy", (points - 0.5).astype(np.float32))
    return folder / "v.mp4", points


def test_a_video(video, tmp_path, capsys):
    file, points = video
    out = tmp_path / "o"
    assert main([str(file), "--landmarks", str(file.with_suffix(".npy")), "--sigma", "0.005", "--out", str(out)]) == 0
    assert "24 frames fitted" in capsys.readouterr().out
    arrays = np.load(out / "params.npz")
    there = np.isfinite(points).all((1, 2))
    assert np.array_equal(arrays["seen"], there) and arrays["shape"].shape == (100,) and arrays["pose"].shape == (24, 6)
    assert np.linalg.norm(arrays["landmarks"] - points, axis=2)[there].mean() < 1
    assert np.isfinite(arrays["landmarks"]).all()  # the gap is bridged
    facts = json.loads((out / "report.json").read_text())
    assert facts["frames"] == 24 and facts["without_a_face"] == 5
    drawn = Video(out / "overlay.mp4")
    assert len(list(drawn)) == 24 and drawn.fps == pytest.approx(25)
    assert (out / "uncertainty.png").is_file()


def test_a_video_s_fit_begins_at_what_a_network_says(video, tmp_path, monkeypatch):
    file, _ = video
    network = RingNet()
    network.save(tmp_path / "network.safetensors")
    begun = []

    def fitted(*arguments, start, **options):
        begun.append(start)
        return fit_landmarks(*arguments, start=start, **options)

    monkeypatch.setattr(videos, "fit_landmarks", fitted)
    arguments = [str(file), "--landmarks", str(file.with_suffix(".npy")), "--out", str(tmp_path / "o")]
    assert main(arguments) == 0 and begun.pop() is None
    assert main([*arguments, "--checkpoint", str(tmp_path / "network.safetensors")]) == 0
    start = begun.pop()
    assert start.shape.shape == (24, 100)
    with torch.no_grad():
        said = network(torch.zeros(1, 3, 224, 224))
    assert (start.global_pose - said.global_pose).abs().max() < 0.1  # it has learnt nothing, and says about the same


def test_an_npz_says_where_pixels_begin_and_how_sure_it_is(video, tmp_path):
    file, points = video
    confidence = np.isfinite(points[..., 0]).astype(np.float32)
    confidence[:, :17] *= 0.5
    np.savez(tmp_path / "l.npz", landmarks=points, pixel_centres=0.5, confidence=confidence, cam=np.zeros(3))
    for name, saved in ((tmp_path / "l.npz", confidence), (file.with_suffix(".npy"), confidence > 0)):
        read, known = read_video_landmarks(name, Video(file))
        assert np.allclose(read, np.nan_to_num(points), atol=1e-3) and np.array_equal(known, saved)


def test_frames_of_their_own(video, tmp_path):
    file, _ = video
    smooth, own = tmp_path / "smooth", tmp_path / "own"
    arguments = [str(file), "--landmarks", str(file.with_suffix(".npy")), "--sigma", "0.02"]
    assert (
        main([*arguments, "--out", str(smooth), "--smoothness", "10"])
        == main([*arguments, "--out", str(own), "--smoothness", "0"])
        == 0
    )
    jaw = [np.load(folder / "params.npz")["pose"][:10, 3] for folder in (smooth, own)]
    assert np.abs(np.diff(jaw[0])).sum() < np.abs(np.diff(jaw[1])).sum()


@pytest.mark.parametrize(
    "content, message",
    [
        (np.zeros((3, 68, 2), np.float32), "landmarks of 3 frames, and .* has 24"),
        (np.zeros((24, 67, 2), np.float32), r"expected numbers of shape \(frames, 68, 2 or 3\), got \(24, 67, 2\)"),
        (np.full((24, 68, 2), np.nan, np.float32), "no face in any of its 24 frames"),
    ],
)
def test_wrong_landmarks_of_a_video_are_named(video, tmp_path, capsys, content, message):
    file, _ = video
    np.save(tmp_path / "l.npy", content)
    assert main([str(file), "--landmarks", str(tmp_path / "l.npy"), "--out", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    import re

    assert re.search(message, said)


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(VideoError, match="not a video that OpenCV can read"):
        Video(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Video(tmp_path / "b.mp4")
    with pytest.raises(OSError, match="cannot be written"):
        write_video(tmp_path / "nowhere" / "c.mp4", [np.zeros((16, 16, 3), np.uint8)], 25)
    assert not list(tmp_path.glob(".*"))
