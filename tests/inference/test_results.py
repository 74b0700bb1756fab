"""The table of results: written in parts, whole at the end, and what a run that was killed had done."""

import csv
import json

import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.inference.finders import Found
from ringnet_ext.inference.inputs import Picture
from ringnet_ext.inference.pipeline import Face, Outcome
from ringnet_ext.inference.results import COLUMNS, Results, parameter_columns

PARAMETERS = parameter_columns(100, 50)


@pytest.fixture(scope="module")
def face():
    torch.manual_seed(0)
    square = fit_square(np.full((40, 40, 3), 90, np.uint8))
    return Face(1, Found(square), RingNet().reconstruct(square))


@pytest.fixture
def pictures(tmp_path):
    made = []
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
        made.append(Picture(str(tmp_path / f"{name}.png"), name, tmp_path / f"{name}.png"))
    return made


def add(results, picture, *faces, error=None):
    files = []
    for i, _ in enumerate(faces):
        files.append([f"{picture.name}{i}.obj"])
        (results.folder / files[-1][0]).write_bytes(b"mesh")
    results.add(Outcome(picture, faces, error), [picture.name] * len(faces), files)


def table(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_rows_come_in_the_order_of_the_pictures(tmp_path, pictures, face):
    out = tmp_path / "out"
    out.mkdir()
    results = Results(out, {})
    add(results, pictures[2], face)
    add(results, pictures[1], error=ValueError(f"{pictures[1].label}: what\nis this"))
    add(results, pictures[0], face, Face(2, error=ValueError("no face there")))
    assert results.finish(out / "t.csv", pictures, PARAMETERS)
    rows = table(out / "t.csv")
    assert [(row["image"], row["face"], row["error"]) for row in rows] == [
        (pictures[0].label, "1", ""),
        (pictures[0].label, "2", "no face there"),
        (pictures[1].label, "", "what is this"),
        (pictures[2].label, "1", ""),
    ]
    assert rows[0]["files"] == "a0.obj" and list(rows[0]) == [*COLUMNS, *PARAMETERS]
    vector = face.reconstruction.params.to_vector()[0].numpy()
    assert np.abs(np.array([float(rows[0][name]) for name in PARAMETERS]) - vector).max() < 1e-6
    assert sorted(file.name for file in out.iterdir()) == ["a0.obj", "a1.obj", "c0.obj", "t.csv"]


def test_a_killed_run_is_gone_on_with(tmp_path, pictures, face):
    out = tmp_path / "out"
    out.mkdir()
    first = Results(out, {"kinds": "mesh"})
    add(first, pictures[0], face)
    add(first, pictures[1], face)
    add(first, pictures[2], error=OSError("read error"))
    first.close()
    lines = next(out.glob(".unfinished-*/*.jsonl"))
    with open(lines, "ab") as file:  # killed in the middle of a line
        file.write(json.dumps({"image": pictures[3].label, "name": "d"}).encode()[:-3])

    assert not any(Results(out, {"kinds": "ply"}).has(picture) for picture in pictures)  # another run
    second = Results(out, {"kinds": "mesh"})
    assert [second.has(picture) for picture in pictures] == [True, True, False, False]
    (out / "b0.obj").unlink()
    assert not second.has(pictures[1])
    pictures[0].image.write_bytes(b"another picture")
    assert not second.has(pictures[0])
    for picture in pictures:
        add(second, picture, face)
    assert second.finish(out / "t.csv", pictures, PARAMETERS)
    assert [row["error"] for row in table(out / "t.csv")] == [""] * 4
    assert not list(out.glob(".unfinished-*"))
    assert not Results(out, {"kinds": "mesh"}).has(pictures[0])  # what is finished is done anew


def test_a_picture_whose_landmarks_have_changed_is_done_anew(tmp_path, pictures, face):
    out, points = tmp_path / "out", tmp_path / "points.npy"
    out.mkdir()
    points.write_bytes(b"one")

    def beside(picture):
        if picture is pictures[1]:
            raise PermissionError("the folder can't be read")
        return points

    first = Results(out, {}, beside=beside)
    add(first, pictures[0], face)
    add(first, pictures[1], face)
    first.close()
    points.write_bytes(b"another")
    second = Results(out, {}, beside=beside)
    assert [second.has(picture) for picture in pictures[:2]] == [False, True]


def test_the_last_of_several_processes_writes_the_table(tmp_path, pictures, face):
    out = tmp_path / "out"
    out.mkdir()
    shares = [Results(out, {}, rank, 3) for rank in range(3)]
    for rank in (1, 0):
        add(shares[rank], pictures[rank], face)
        assert not shares[rank].finish(out / "t.csv", pictures, PARAMETERS) and not (out / "t.csv").exists()
    # The third is killed; all are started again.
    shares = [Results(out, {}, rank, 3) for rank in range(3)]
    assert shares[2].has(pictures[0]) and shares[2].has(pictures[1])
    add(shares[2], pictures[2], face)
    assert not shares[2].finish(out / "t.csv", pictures, PARAMETERS)  # the others may still be at work
    assert not shares[0].finish(out / "t.csv", pictures, PARAMETERS)
    assert shares[1].finish(out / "t.csv", pictures, PARAMETERS)
    assert [row["image"] for row in table(out / "t.csv")] == [picture.label for picture in pictures[:3]]


def test_parquet_says_the_same(tmp_path, pictures, face):
    parquet = pytest.importorskip("pyarrow.parquet")
    results = Results(tmp_path, {})
    add(results, pictures[0], face)
    add(results, pictures[1], error=ValueError("no face"))
    odd = Picture("b\udcff.png", "odd", pictures[2].image)
    add(results, odd, face)
    results.close()
    of = [*pictures, odd]
    results.write(tmp_path / "t.csv", of, PARAMETERS)
    results.write(tmp_path / "t.parquet", of, PARAMETERS)
    with open(tmp_path / "t.csv", newline="", errors="surrogateescape") as lines:
        expected = list(csv.DictReader(lines))
    rows = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            if isinstance(value, str):
                assert value == other[name].encode("utf-8", "replace").decode()
            else:
                assert other[name] == "" if value is None else float(other[name]) == value
