"""Bad inputs among good ones: one line for each that names it, an exit code of 1, all good ones written, nothing by
halves."""

import os
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ringnet_ext import RingNet
from ringnet_ext.commands import infer
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.files.images import write_image
from ringnet_ext.flame import FLAME
from ringnet_ext.inference import finders


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    model = RingNet()
    model.limit = 0.5
    model.save(path)
    return path


PHOTO = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), (96, 96))
FACE = 300 * FLAME().landmarks()[0, :, :2].numpy() * (1, -1) + [48, 40]


def encoded(suffix, part=1.0, image=PHOTO):
    """An image file, of which that part is there."""
    if suffix in (".avif", ".heic", ".gif", ".tif"):
        import io

        buffer = io.BytesIO()
        if suffix == ".heic":
            pytest.importorskip("pillow_heif").register_heif_opener()
        Image.fromarray(image).save(buffer, format={".heic": "HEIF", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()))
        data = buffer.getvalue()
    else:
        data = cv2.imencode(suffix, image)[1].tobytes()
    return data[: round(part * len(data))]


def content(name, data):
    """A file."""

    def make(folder: Path):
        file = folder / os.fsdecode(name)
        file.write_bytes(data() if callable(data) else data)
        return file

    return make


def folder_of(*names):
    def make(folder: Path):
        (folder / "folder").mkdir()
        for name in names:
            (folder / "folder" / name).write_bytes(b"text")
        return folder / "folder"

    return make


def link(target):
    def make(folder: Path):
        (folder / "link.png").symlink_to(target)
        return folder / "link.png"

    return make


def zipped(folder: Path):
    with zipfile.ZipFile(folder / "zip.png", "w") as archive:
        archive.writestr("a", "b")
    return folder / "zip.png"


def bomb():
    """A PNG that says that it has 100,000 x 100,000 pixels."""
    data = bytearray(encoded(".png"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def small(width, height):
    return lambda: encoded(".png", image=PHOTO[:height, :width])


def floats(folder: Path):
    cv2.imwrite(str(folder / "float.tif"), PHOTO.astype(np.float32))
    return folder / "float.tif"


FILES = {
    "missing": (lambda folder: folder / "gone.png", "no such image"),
    "empty": (content("empty.jpg", b""), "the file is empty"),
    **{
        f"truncated {suffix}{part}": (
            content(f"cut{suffix}", lambda suffix=suffix, part=part: encoded(suffix, part)),
            "not an image, or a damaged one",
        )
        for suffix, part in (
            (".jpg", 0.5),
            (".jpg", 0.98),
            (".png", 0.5),
            (".png", 0.98),
            (".webp", 0.5),
            (".tif", 0.5),
            (".gif", 0.5),
            (".bmp", 0.5),
            (".avif", 0.5),
            (".heic", 0.5),
        )
    },
    "text": (content("text.jpg", b"this is no image"), "not an image"),
    "noise": (content("noise.png", np.random.default_rng(1).bytes(3000)), "not an image"),
    "zip": (zipped, "not an image"),
    "one signature": (content("head.png", b"\x89PNG\r\n\x1a\n"), "not an image"),
    "AVIF's box alone": (content("box.avif", b"\0\0\0\x18ftypavif" + bytes(16)), "not an image"),
    "100,000 pixels a side": (content("bomb.png", bomb), "cannot be decoded|not an image"),
    "floating point": (floats, "not an image"),
    "a pixel": (content("pixel.png", small(1, 1)), "1 x 1 pixels, expected at least 16 x 16"),
    "a strip": (content("strip.png", small(96, 15)), "96 x 15 pixels"),
    "an empty folder": (folder_of(), "no images in this folder"),
    "a folder without images": (folder_of("a.txt", ".b.png"), "no images in this folder"),
    "a pattern of nothing": (lambda folder: folder / "x*.png", "no file's name is like this"),
    "a link to nothing": (link("nowhere.png"), "no such image"),
    "a link to itself": (link("link.png"), "no such image|Too many levels"),
    "unreadable": (link("/proc/self/mem"), "error"),
    "a device": (link("/dev/null"), "no such image"),
    "a name in other letters": (content("größe 面 😀.png", b"text"), "not an image"),
    "spaces and a new line": (content("a b\nc .png", b"text"), "not an image"),
    "a name that is no text": (content(b"\xff\xfe.png", b"text"), "not an image"),
    "a name that is too long": (lambda folder: folder / f"{'x' * 300}.png", "File name too long"),
    "a name too long for results": (content(f"{'x' * 250}.png", encoded(".png")), r"out/mesh/x+\.obj: File name too"),
    "a path through a file": (lambda folder: content("file", b"x")(folder) / "a.png", "no such image"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_among_good_ones(checkpoint, tmp_path, capsys, case):
    make, message = FILES[case]
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir(), bad.mkdir()
    for name in ("a.png", "b.png"):
        write_image(good / name, PHOTO)
    wrong = make(bad)
    arguments = [good / "a.png", wrong, good / "b.png", "--cropped", "--write", "mesh,parameters"]
    check(checkpoint, tmp_path / "out", arguments, capsys, wrong, message)


def check(checkpoint, out, arguments, capsys, wrong, message):
    assert infer.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    name = " ".join(str(wrong).split()).encode("utf-8", "backslashreplace").decode()
    assert name in lines[0] and re.search(message, lines[0])
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert files == {"results.csv", "mesh/a.obj", "mesh/b.obj", "params/a.npz", "params/b.npz"}
    assert not [entry for entry in out.iterdir() if entry.name.startswith(".")]


PLACES = {
    "no landmarks": ("landmarks", None, "no landmarks: no file"),
    "landmarks of 67 points": ("landmarks", FACE[:67], r"bad.npy: expected \(68, 2\)"),
    "landmarks that are not numbers": ("landmarks", np.full((68, 2), np.nan), "bad.npy: 68 points are not finite"),
    "landmarks that are no head": ("landmarks", FACE[::-1], "bad.npy: the points are"),
    "landmarks far outside": ("landmarks", FACE + 5000, "square: expected one that has part of the image"),
    "no box": ("boxes", None, "no box: .* has no line of"),
    "a box far outside": ("boxes", (5000, 5000, 5100, 5100), "box: expected part of the image of"),
    "a box without pixels": ("boxes", (10, 10, 10.001, 10.001), "face|square"),
    "a box as large as a town": ("boxes", (-1e9, -1e9, 1e9, 1e9), "face|square"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_bad_place_among_good_ones(checkpoint, tmp_path, capsys, monkeypatch, case):
    kind, value, message = PLACES[case]
    for name in ("a.png", "bad.png", "b.png"):
        write_image(tmp_path / name, PHOTO)
    if kind == "landmarks":
        (tmp_path / "places").mkdir()
        for name in "ab":
            np.save(tmp_path / "places" / f"{name}.npy", FACE)
        if value is not None:
            np.save(tmp_path / "places" / "bad.npy", value)
    else:
        find = finders.find_face  # takes the good boxes for faces, though it has learnt nothing
        monkeypatch.setattr(
            finders,
            "find_face",
            lambda model, image, box: fit_square(image) if box[0] == 7 else find(model, image, box),
        )
        lines = ["a.png,7,9,90,90", "b.png,7,9,90,90"]
        if value is not None:
            lines.append("bad.png," + ",".join(map(str, value)))
        (tmp_path / "places").write_text("\n".join(lines))
    images = [tmp_path / name for name in ("a.png", "bad.png", "b.png")]
    arguments = [*images, f"--{kind}", tmp_path / "places", "--write", "mesh,parameters"]
    check(checkpoint, tmp_path / "out", arguments, capsys, tmp_path / "bad.png", message)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.full((96, 96, 3), np.nan), "from 0 to 1, got nan"),
        (PHOTO.astype(np.float32), "from 0 to 1, got"),
        (PHOTO.astype(np.int64), "got int64"),
        (PHOTO.astype(object), "got object"),
        (PHOTO.astype(complex), "got complex128"),
        (PHOTO.astype("U3"), "got <U3"),
        (PHOTO > 100, "got bool"),
        (PHOTO[:0], r"got \(0, 96, 3\)"),
        (PHOTO[0], "3 x 96 pixels"),
        (np.zeros((96, 96, 2), np.uint8), r"got \(96, 96, 2\)"),
        (torch.zeros(2, 96, 96), r"got \(2, 96, 96\)"),
        (torch.full((3, 96, 96), torch.nan), "got nan"),
        (None, "got NoneType"),
        (object(), "got object"),
    ],
)
def test_a_bad_array_among_good_ones(monkeypatch, bad, message):
    monkeypatch.setattr(finders, "find_face", lambda model, image, box=None: fit_square(image))
    with pytest.raises(ValueError) as error:
        RingNet().reconstruct([PHOTO, bad, PHOTO])
    text = str(error.value)
    assert text.startswith("images[1]: ") and re.search(message, text) and "\n" not in text
