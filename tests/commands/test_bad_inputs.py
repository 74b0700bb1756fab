"""What users get wrong: every command says it in one line that names the file or the option, exits with 2 for the
command line itself and with 1 for what it refers to, and leaves nothing behind."""

import csv
import errno
import importlib
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.data.photographs import record, write_manifest
from ringnet_ext.files import whole as files
from ringnet_ext.files.checkpoint import read_checkpoint, write_checkpoint
from ringnet_ext.files.images import write_image
from ringnet_ext.flame import builtin_head

NO_CUDA = not torch.cuda.is_available()
#: command: lines of arguments, the exit code, and what the message says. {name} is a file or folder of the fixture;
# {out} isn't : there yet.
BAD = {
    "train": [
        *[(f"--out {{out}} {text}", 2, text.split()[0]) for text in """
            --stepz 5;--steps -5;--steps 0;--steps x;--steps 1e3;--steps '';--rings 0;--rings -1;--shares 0;--rings 3 --shares 2
            --ring-size 2;--identities 1;--images-per-identity 0;--image-size 1;--image-size 1000000;--yaw-limit 61
            --yaw-limit -1;--yaw-limit nan;--test-identities 1;--test-identities -1;--dropout 1;--dropout -0.1;--leak 2
            --learning-rate 0;--learning-rate nan;--learning-rate inf;--final-learning-rate 2;--warmup-steps -1;--beta2 1
            --weight-decay -1;--gradient-clip 0;--landmark-weight -1;--readout-weight nan;--ring-weight -1;--shape-weight -1
            --expression-weight nan;--margin nan;--ema 1;--precision float8;--encoder vgg;--preset huge;--seed -1
            --checkpoint-steps 0;--keep 0;--workers -1;--workers 100000;--threads -1;--threads x;--prefetch 0;--validation-share 0
            --validation-share 1;--device banana;--device '';--device mps;--device cuda:99;--head '';--cache '';--data ''
            --config {nothing}.toml;--config {text};--config {text}.toml;--config {folder}/a.json;--resume;--resume --overwrite
            --pretrained resnet50-imagenet1k-v2
        """.strip().replace("\n", ";").split(";")],
        ("--out ''", 2, "--out"), ("--out {run}", 2, "--out: {run} holds a run already; --resume continues it"),
        ("--out {out} --device cuda", 2, "--device: cuda: "),
        ("--out {out} --head {nothing}", 1, "{nothing}: No such file"), ("--out {out} --head {folder}", 1, "{folder}: Is a dir"),
        ("--out {out} --head {text}", 1, "{text}: "), ("--out {out} --head {empty}", 1, "{empty}: the file is empty"),
        ("--out {out} --head {bare}", 1, "--head: {bare}: expected a model with iBUG's 68 landmarks"),
        ("--out {out} --head {bare}", 1, "has none; store them with it: ringnet convert MODEL HEAD.npz --landmarks"),
        ("--out {out} --head {seventy}", 1, "--head: {seventy}: .* has 70"),
        ("--out {out} --head {mediapipe}", 1, "--head: {mediapipe}: .* has 105"),
        ("--out {out} --data {nothing}", 1, "{nothing}/manifest.npy: no such file; make the set with"),
        ("--out {out} --data {empty_set}", 1, "--data: {empty_set}: .*without images"),
        ("--out {out} --data {damaged_set}", 1, "--data: {damaged_set}: .*damaged"),
        ("--out {out} --data {two_people}", 1, "--data: {two_people}: faces: rings need two people to train on"),
        ("--out {text}", 1, "--out: {text}: expected a folder"), ("--out {text}/run", 1, "--out: {text}/run: expected a folder"),
        ("--out /proc/self", 1, "--out: /proc/self: cannot be written"),
        ("--out {out} --cache {text}", 1, "--cache: {text}: expected a folder"),
        ("--out {out} --cache /proc/self", 1, "--cache: /proc/self: cannot be written"),
        ("--out {out} --encoder resnet50 --pretrained {nothing}", 1, "pretrained weights: no file {nothing}"),
        ("--out {out} --encoder resnet50 --pretrained {text}", 1, "{text}: not a readable state dict"),
        ("--out {run} --resume", 1, "{run}/config.json: doesn't say in how many shares"),
    ],
    "infer": [
        ("", 2, "the following arguments are required"), ("{image} --checkpoint {model}", 2, "--out"),
        ("{image} --out {out}", 2, "--checkpoint"), ("--checkpoint {model} --out {out}", 2, "IMAGE"),
        ("{image} --checkpoint {model} --out ''", 2, "--out: expected a path"),
        ("{image} --checkpoint '' --out {out}", 2, "--checkpoint: expected a path"),
        ("'' --checkpoint {model} --out {out}", 2, "IMAGE: expected a path"),
        ("{image} --checkpoint {model} --out {out} --device banana", 2, "--device: expected cpu, cuda or cuda:N, got 'banana'"),
        ("{image} --checkpoint {model} --out {out} --device cuda", 2, "--device: cuda: "),
        ("{image} --checkpoint {model} --out {out} --landmarks {folder} --boxes {text}", 2, "--boxes: not allowed with"),
        ("{image} --checkpoint {model} --out {out} --landmarks {nothing}", 2, "--landmarks: {nothing}: no such folder"),
        ("{image} --checkpoint {nothing} --out {out}", 1, "checkpoint: no file {nothing}"),
        ("{image} --checkpoint {folder} --out {out}", 1, "checkpoint: no file {folder}/best.safetensors"),
        ("{image} --checkpoint {text} --out {out}", 1, "{text}: not a readable checkpoint"),
        ("{image} --checkpoint {empty} --out {out}", 1, "{empty}: not a readable checkpoint"),
        ("{image} --checkpoint {cut} --out {out}", 1, "{cut}: not a readable checkpoint"),
        ("{image} --checkpoint {bare} --out {out}", 1, "{bare}: not a readable checkpoint"),
        ("{image} --checkpoint {moved} --out {out}", 1, "{moved}: its head model, .*gone.npz, is not there.*--head"),
        ("{image} --checkpoint {model} --out {out} --head {folder}", 1, "{folder}: Is a directory"),
        ("{image} --checkpoint {model} --out {out} --head {nothing}", 1, "{nothing}: No such file"),
        ("{image} --checkpoint {model} --out {out} --head {text}", 1, "{text}: "),
        ("{image} --checkpoint {model} --out {out} --head {other}", 1, "{model}: trained on another head than {other}"),
        ("{image} --checkpoint {model} --out {out} --head {bare}", 1, "68 landmarks"),
        ("{image} --checkpoint {model} --out {text}", 1, "--out: {text}: expected a folder"),
        ("{image} --checkpoint {model} --out /proc/self", 1, "--out: /proc/self: cannot be written"),
        ("{image} --checkpoint {model} --out {out} --boxes {nothing}", 1, "{nothing}: No such file"),
        ("{image} --checkpoint {model} --out {out} --boxes {text}", 1, "{text}, line 1: expected image,left,top,right,bottom"),
        ("{image} --checkpoint {model} --out {out} --detector {nothing}", 1, "nothing"),
    ],
    "fit": [
        ("", 2, "IMAGE"), ("{image} --out {out}", 2, "--landmarks --detector is required"),
        *[(f"{{image}} --out {{out}} --landmarks {{folder}} {text}", 2, text.split()[0]) for text in (
            "--detector {text}", "--focal 0 --camera perspective", "--focal nan", "--focal 900", "--sigma 0", "--sigma x", "--smoothness -1",
            "--robust tukey", "--camera fisheye", "--device banana", "--device cuda", "--head ''", "--by-folder --same-person",
        )],
        ("{image} --out '' --landmarks {folder}", 2, "--out: expected a path"),
        ("{image} --out {text} --landmarks {folder}", 1, "--out: {text}: expected a folder"),
        ("{image} --out /proc/self --landmarks {folder}", 1, "--out: /proc/self: cannot be written"),
        ("{image} --out {out} --landmarks {folder} --head {bare}", 1, "--head: {bare}: expected a model with iBUG's 68 landmarks"),
        ("{image} --out {out} --landmarks {folder} --head {nothing}", 1, "{nothing}: No such file"),
        ("{image} --out {out} --landmarks {folder} --checkpoint {text}", 1, "{text}: not a readable checkpoint"),
    ],
    "prepare": [
        ("", 2, "SOURCE"), ("{folder}", 2, "--out"), ("{folder} --out ''", 2, "--out"), ("'' --out {out}", 2, "SOURCE"),
        *[(f"{{photos}} --out {{out}} {text}", 2, text.split()[0]) for text in (
            "--size 8", "--size 1000000", "--size x", "--size -1", "--format gif", "--min-face 0", "--min-face nan",
            "--workers 0", "--workers -1", "--workers x", "--landmarks ''", "--identities ''",
        )],
        ("{nothing} --out {out}", 1, "{nothing}: no such folder"), ("{text} --out {out}", 1, "{text}: no such folder"),
        ("{folder} --out {out}", 1, "{folder}: no images"), ("{photos} --out {photos}/set", 1, "--out: {photos}/set: its crops would lie in"),
        ("{photos} --out {text}", 1, "--out: {text}: expected a folder"), ("{photos} --out /proc/self", 1, "--out: /proc/self"),
        ("{photos} --out {out} --landmarks {nothing}", 1, "{nothing}: no such folder"),
        ("{photos} --out {out} --identities {nothing}", 1, "{nothing}: no such file of identities"),
        ("{photos} --out {out} --identities {folder}", 1, "{folder}: no such file of identities"),
        ("{photos} --out {out} --identities {binary}", 1, "{binary}: not a text file of paths and identities"),
        ("{photos} --out {out} --identities {columns}", 1, "{columns}, line 2: expected a path and an identity"),
        ("{photos} --out {out} --identities {empty}", 1, "{empty}: no images"),
        ("{photos} --out {out} --anonymous nobody", 1, "--anonymous: expected the name of a folder in {photos}"),
        ("{photos} --out {out} --detector {nothing}", 1, "nothing"),
    ],
    "convert": [
        ("", 2, "SRC"), ("{bare}", 2, "DST"), ("{bare} ''", 2, "DST"), ("{bare} {out}.pkl", 2, "DST: {out}.pkl: expected a name"),
        ("{bare} {out}", 2, "DST: {out}: expected a name"), ("{bare} {out}.npz --format banana", 2, "--format"),
        ("{bare} {out}.npz --format deca", 2, "--format: only for landmarks"),
        ("{embedding} {out}.npz --regions {text}", 2, "--regions: only for a head model"),
        ("{nothing} {out}.npz", 1, "{nothing}: No such file"), ("{folder} {out}.npz", 1, "{folder}: Is a directory"),
        ("{empty} {out}.npz", 1, "{empty}: the file is empty"), ("{text} {out}.npz", 1, "{text}: "),
        ("{binary} {out}.npz", 1, "{binary}: "), ("{image} {out}.npz", 1, "{image}: "), ("{cut} {out}.npz", 1, "{cut}: "),
        ("{bare} {folder}.npz", 1, "DST: {folder}.npz: expected a file"), ("{bare} {text}/a.npz", 1, "DST: {text}/a.npz: there is no folder"),
        ("{bare} {out}.npz --landmarks {nothing}", 1, "{nothing}: No such file"),
        ("{bare} {out}.npz --landmarks {text}", 1, "{text}: "), ("{bare} {out}.npz --regions {nothing}", 1, "{nothing}: No such"),
    ],
    "contour": [
        ("", 2, "nothing to do: give --out or --picture"), ("--out {out}.xyz", 2, "--out: {out}.xyz: expected a name"),
        ("--picture {out}.xyz", 2, "--picture: {out}.xyz: expected a name"), ("--picture {out}", 2, "--picture: {out}: expected a name"),
        ("--picture ''", 2, "--picture: expected a path"), ("{nothing} --out {out}.npz", 1, "{nothing}: No such file"),
        ("{text} --out {out}.npz", 1, "{text}: "), ("{bare} --out {out}.npz", 1, "landmarks"),
        ("{bare} --landmarks {nothing} --out {out}.npz", 1, "{nothing}: No such file"),
        ("--regions {nothing} --out {out}.npz", 1, "{nothing}: No such file"), ("--out {text}/a.npz", 1, "--out: {text}/a.npz: there is no"),
        ("--picture {folder}.png", 1, "--picture: {folder}.png: expected a file"),
    ],
    "contact_sheet": [
        *[(f"--out {{out}}.png --size {size}", 2, "--size") for size in ("0", "-1", "x", "100000", "1.5")],
        ("--out {out}.gif", 2, "--out: {out}.gif: expected a name"), ("--out ''", 2, "--out"), ("--out {folder}.png", 1, "--out: {folder}.png"),
        ("--out {text}/a.png", 1, "--out: {text}/a.png: there is no folder"), ("{nothing} --out {out}.png", 1, "{nothing}: No such file"),
        ("{text} --out {out}.png", 1, "{text}: "), ("{one_joint} --out {out}.png", 1, "{one_joint}: expected a head with FLAME's 5 joints"),
    ],
    "flame": [
        *[(f"--out {{out}}.png {text}", 2, text.split()[0]) for text in (
            "--shape 1e30", "--shape nan", "--shape x", "--expression inf", "--jaw-pose 1 2", "--global-pose a b c", "--yaw inf",
            "--translation 1e9 0 0", "--model ''", "--parameters ''", "--landmarks ''",
        )],
        ("--out {out}.xyz", 2, "--out: {out}.xyz: expected a name"), ("--out ''", 2, "--out"), ("--out {folder}.png", 1, "--out: {folder}.png"),
        ("--out {text}/a.png", 1, "--out: {text}/a.png: there is no folder"), ("--out {out}.png --model {nothing}", 1, "{nothing}: No such"),
        ("--out {out}.png --model {text}", 1, "{text}: "), ("--out {out}.png --model {bare} --landmarks {nothing}", 1, "{nothing}: No"),
        ("--out {out}.png --parameters {nothing}", 1, "nothing"), ("--out {out}.png --parameters {text}", 1, "{text}: "),
        ("--out {out}.png --parameters {no_rows}", 1, "{no_rows}: "), ("--out {out}.png --parameters {nans}", 1, "{nans}: "),
        ("--out {out}.png --parameters {huge}", 1, "{huge}: shape: expected numbers of at most 1000"),
        ("--out {out}.png --shape " + "0.1 " * 101, 1, "shape: the model has 100 directions"),
    ],
}  # fmt: skip
CASES = [(command, *case) for command, cases in BAD.items() for case in cases]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The files and folders of the command lines, by name."""
    root = tmp_path_factory.mktemp("bad")
    names = (
        "nothing text folder empty binary bare seventy mediapipe other one_joint empty_set damaged_set two_people run model cut moved "
        "image photos embedding no_rows nans huge columns"
    ).split()
    place = {name: root / name for name in names}
    place |= {
        name: root / f"{name}.npz"
        for name in ("bare", "seventy", "mediapipe", "other", "one_joint", "embedding", "no_rows", "nans", "huge")
    }
    place["image"] = root / "image.png"
    for name in ("folder", "photos", "two_people", "damaged_set", "empty_set"):
        place[name].mkdir()
    (root / "folder.npz").mkdir()
    (root / "folder.png").mkdir()
    place["text"].write_text("just a few words\n")
    (root / "text.toml").write_text("steps = \n")
    (place["columns"]).write_text("path,identity\na.jpg,1,2\n")
    place["empty"].touch()
    place["binary"].write_bytes(bytes(range(256)) * 4)
    write_image(place["image"], np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    (place["photos"] / "anna").mkdir()
    write_image(place["photos"] / "anna" / "a.jpg", np.zeros((64, 64, 3), np.uint8))

    head = builtin_head()
    embedding = head.landmarks
    embedding.save(place["embedding"])
    points = lambda count: {
        "static_faces_idx": np.resize(embedding.static_faces_idx, count),
        "static_bary_coords": np.resize(embedding.static_bary_coords, (count, 3)),
    }
    replace(head, landmarks=None).save(place["bare"])
    replace(head, landmarks=replace(embedding, **points(53))).save(place["seventy"])
    replace(head, landmarks=replace(embedding, **points(88))).save(place["mediapipe"])
    replace(head, v_template=1.01 * head.v_template).save(place["other"])
    type(head).rigid(head.v_template, head.faces, embedding).save(place["one_joint"])

    model = RingNet()
    model.save(place["model"])
    place["cut"].write_bytes(place["model"].read_bytes()[:5000])
    gone = root / "gone.npz"
    replace(head, v_template=1.01 * head.v_template).save(gone)
    RingNet(gone).save(place["moved"])
    gone.unlink()
    (place["run"] / "checkpoints").mkdir(parents=True)
    model.save(place["run"] / "checkpoints" / "step-00000001.safetensors")

    dtype = record(8)
    for name, people in (("empty_set", 0), ("two_people", 2)):
        rows = np.zeros(people, dtype)
        rows["path"], rows["identity"] = b"a.png", np.arange(people)
        write_manifest(place[name], people, 8, [rows])
        (place[name] / "images").mkdir()
        write_image(place[name] / "images" / "a.png", np.zeros((64, 64, 3), np.uint8))
    (place["damaged_set"] / "manifest.npy").write_bytes(b"\x93NUMPY damaged")

    for name, shape in (
        ("no_rows", np.zeros((0, 100))),
        ("nans", np.full((1, 100), np.nan)),
        ("huge", np.full((1, 100), 1e30)),
    ):
        rows = len(shape)
        np.savez(
            place[name], shape=shape, expression=np.zeros((rows, 50)), pose=np.zeros((rows, 6)), cam=np.ones((rows, 3))
        )
    return {name: str(path) for name, path in place.items()}


def everything(folder):
    return sorted(str(path) for path in folder.rglob("*"))


#: Commands whose module is called otherwise.
MODULES = {"flame": "pose", "contact_sheet": "sheet"}


def run(command, arguments):
    """The exit code of a command in this process."""
    try:
        return importlib.import_module(f"ringnet_ext.commands.{MODULES.get(command, command)}").main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("command, line, code, message", CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_one_line_the_right_exit_code_and_nothing_left(
    places, tmp_path, monkeypatch, capsys, command, line, code, message
):
    if "--device cuda" in line and not NO_CUDA and "99" not in line:
        pytest.skip("there is CUDA")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RINGNET_CACHE", str(tmp_path / "cache"))
    before = {
        name: everything(tmp_path.parent.joinpath(path))
        for name, path in places.items()
        if name in ("folder", "photos", "run")
    }
    names = places | {"out": str(tmp_path / "out")}
    assert run(command, shlex.split(line.format(**names))) == code
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: "), captured.err
    escaped = message.format(**names)
    assert all(part in errors[0] for part in escaped.split(".*")), errors[0]
    left = [path for path in everything(tmp_path) if path not in (names["out"], f"{names['out']}/checkpoints")]
    assert not left or line.startswith("{photos}"), left
    assert before == {name: everything(tmp_path.parent.joinpath(places[name])) for name in before}


def test_there_are_enough():
    assert len(CASES) >= 130


def infer(places, *arguments):
    return run("infer", [*map(str, arguments), "--checkpoint", places["model"], "--cropped"])


def test_infer_reports_the_bad_and_does_the_good(places, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    good = cv2.imread(places["image"])
    for name in ("first.png", "zlast.png"):
        cv2.imwrite(str(photos / name), good)
    (photos / "empty.jpg").touch()
    (photos / "noise.png").write_bytes(bytes(range(256)))
    (photos / "cut.png").write_bytes((photos / "first.png").read_bytes()[:60])
    cv2.imwrite(str(photos / "dot.png"), good[:1, :1])
    (photos / "folder.png").mkdir()
    (tmp_path / "bare").mkdir()
    assert (
        infer(places, photos, tmp_path / "gone.png", tmp_path / "bare", "/proc/self/mem", "--out", tmp_path / "out")
        == 1
    )
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    wrong = ("empty.jpg", "noise.png", "cut.png", "dot.png", "gone.png", "bare", "/proc/self/mem")
    assert len(errors) == len(wrong) and all(line.startswith("error: ") for line in errors), captured.err
    assert all(any(name in line for line in errors) for name in wrong)
    assert "2 of 8 images reconstructed" in captured.out
    assert sorted(path.stem for path in (tmp_path / "out" / "mesh").iterdir()) == ["first", "zlast"]


def test_a_full_disk_ends_the_batch_and_keeps_what_is_done(places, tmp_path, monkeypatch, capsys):
    """Every image after it would fail the same way."""
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), cv2.imread(places["image"]))
    files_so_far = 0

    class Full:
        """A file whose disk is full after eight of them."""

        def __init__(self, file):
            nonlocal files_so_far
            files_so_far += 1
            self.file, self.full = file, files_so_far > 8  # three files an image

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            if self.full:
                self.file.write(data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    locked = files._locked
    monkeypatch.setattr(files, "_locked", lambda path: Full(locked(path)))
    out = tmp_path / "out"
    assert infer(places, *sorted(tmp_path.glob("?.png")), "--out", out) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors and all(line.startswith("error: ") and line.endswith("No space left on device") for line in errors)
    assert str(out) in errors[0] and len(errors) <= 2
    kept = [path for path in out.rglob("*.*") if path.is_file() and path.suffix != ".jsonl"]
    faces = [{path.suffix for path in kept if path.stem == stem} for stem in {path.stem for path in kept}]
    assert len(faces) in (1, 2) and all(face == {".png", ".obj", ".npz"} for face in faces)  # not half a face


def test_an_interrupted_batch_keeps_what_is_done(places, tmp_path, monkeypatch, capsys):
    photos = [tmp_path / f"{index}.png" for index in range(3)]
    for photo in photos:
        cv2.imwrite(str(photo), cv2.imread(places["image"]))
    opened, names = files._locked, []

    def pressed(path):
        names.append(Path(path).name)
        if any(name.startswith(".1.obj.") for name in names):  # in the middle of the second face
            names.clear()
            raise KeyboardInterrupt
        return opened(path)

    monkeypatch.setattr(files, "_locked", pressed)
    out = tmp_path / "out"
    assert infer(places, *photos, "--out", out) == 130
    table = out / "results.csv"
    said = f"error: interrupted after 1 of 3 images; {table} names them, and the same command goes on from there\n"
    assert capsys.readouterr().err == said
    kept = {path.name for path in out.rglob("*.*") if path.is_file() and path.suffix != ".jsonl"}
    last = {"2.npz", "2.obj", "2.png"}  # it may have been written beside the second
    assert kept - last == {"0.npz", "0.obj", "0.png", "results.csv"} and kept & last in (set(), last)
    with open(table, newline="") as rows:
        named = [row["name"] for row in csv.DictReader(rows)]
    assert named == sorted({Path(name).stem for name in kept - {"results.csv"}})
    monkeypatch.undo()
    assert infer(places, *photos, "--out", out) == 0
    assert "going on with a run that was interrupted" in capsys.readouterr().out
    assert len(list(out.rglob("*.*"))) == 10


def test_more_faces_than_the_disk_holds(places, tmp_path, capsys):
    line = f"--out {tmp_path / 'run'} --cache {tmp_path / 'cache'} --identities 1000000000 --device cpu"
    assert run("train", line.split()) == 1
    assert "the faces need" in capsys.readouterr().err and not list((tmp_path / "cache").iterdir())


def test_tensorboard_that_is_not_installed_is_missed_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("train", ["--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "error: --tensorboard: the package is not installed; pip install tensorboard" in capsys.readouterr().err


def test_a_checkpoint_of_a_later_version(places, tmp_path, capsys):
    tensors, facts = read_checkpoint(places["model"])
    facts["model"]["wings"] = 2
    write_checkpoint(tmp_path / "later", tensors, facts)
    assert run("infer", [places["image"], "--checkpoint", str(tmp_path / "later"), "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'later'}: made by another version of ringnet_ext: " in capsys.readouterr().err


def test_prepare_that_keeps_nothing_fails_and_gives_no_advice(places, tmp_path, capsys):
    assert run("prepare", [places["photos"], "--out", str(tmp_path / "set")]) == 1
    captured = capsys.readouterr()
    assert "1 no landmarks" in captured.out and "train with" not in captured.out
    assert (
        captured.err
        == f"error: {places['photos']}: no image could be used; {tmp_path / 'set' / 'dropped.csv'} says why\n"
    )


@pytest.mark.parametrize("command", ["train", "infer", "prepare", "convert", "contour", "contact_sheet", "flame"])
def test_help(command, capsys):
    assert run(command, ["--help"]) == 0
    assert "--out" in capsys.readouterr().out or command == "convert"


@pytest.mark.parametrize(
    "command, arguments", [("train", "--steps 0"), ("infer", "a.png --checkpoint b --out c"), ("flame", "--out a.xyz")]
)
def test_as_a_command(tmp_path, command, arguments):
    process = subprocess.run([sys.executable, "-W", "ignore", "-m", f"ringnet_ext.{command}", *arguments.split()], cwd=tmp_path,
                             capture_output=True, text=True)  # fmt: skip
    assert process.returncode == (1 if command == "infer" else 2)
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1 and not list(tmp_path.iterdir())
