"""Which photographs are held out, and which of those are looked at."""

import numpy as np
import pytest

from ringnet_ext.data.face_set import FaceSet
from ringnet_ext.data.photographs import Photographs, hold_out
from ringnet_ext.evaluation import photographs
from ringnet_ext.files.images import write_image


class Stopped(Exception):
    pass


@pytest.fixture
def people(tmp_path):
    """people(3, 1): photographs of two people, three of the first and one of the second."""
    write_image(tmp_path / "image.png", np.zeros((16, 16, 3), np.uint8))
    return lambda *counts: photographs_of(tmp_path, counts)


def photographs_of(folder, counts):
    identity = np.repeat(np.arange(len(counts)), counts)
    n = len(identity)
    return FaceSet(
        images=Photographs(folder, np.full(n, b"image.png")),
        landmarks=np.zeros((n, 68, 2), np.float32),
        confidence=np.ones((n, 68), np.float32),
        identity=identity,
    )


@pytest.mark.parametrize("people_wanted, images_wanted", [(5, 6), (3, 2), (99, 99), (1, 1)])
def test_all_are_looked_at_or_some_evenly_and_nobody_twice(people, monkeypatch, people_wanted, images_wanted):
    seen = []

    def predict(model, faces, images=None, batch=250):
        seen.extend(images)
        raise Stopped

    monkeypatch.setattr(photographs, "predict", predict)
    counts = [3, 1, 8, 2, 5]
    faces = people(*counts)
    with pytest.raises(Stopped):
        photographs.evaluate_photographs(None, faces, people=people_wanted, images=images_wanted)
    assert len(set(seen)) == len(seen)
    looked_at, each = np.unique(faces.identity[seen], return_counts=True)
    assert len(looked_at) == min(people_wanted, len(counts))
    assert each.tolist() == [min(images_wanted, counts[person]) for person in looked_at]
    if people_wanted > 1:
        assert {0, len(counts) - 1} <= set(looked_at)  # from the first to the last
        if images_wanted > 1:
            assert faces.identity.tolist().index(0) in seen and len(faces) - 1 in seen


def test_as_few_people_as_rings_need(people):
    rest, held_out = hold_out(people(2, 2, 2, 2), 0.05)
    assert len(set(rest.identity)) == 2 and len(set(held_out.identity)) == 2
    with pytest.raises(ValueError, match="rings need two people to train on and two others"):
        hold_out(people(2, 2, 2), 0.05)
