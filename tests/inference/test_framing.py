"""Finding a face by the network's own landmarks, with networks whose answers are known; and with a trained one, if
given."""

import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.data.augment import crop
from ringnet_ext.data.face_set import FaceSet
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.squares import cut_square, landmark_square
from ringnet_ext.inference import framing
from ringnet_ext.inference.framing import NotAFaceError, calibrated, find_face, following, limit_of, settled

CHECKPOINT = os.environ.get("RINGNET_CHECKPOINT")  # a run folder of ringnet train, with its defaults
FACE = np.random.default_rng(0).uniform(-1, 1, (68, 2))  # the landmarks of our kind of faces: discs of radius 1
FACE[:4] = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def picture(x=None, y=0.0, radius=0.0, size=(120, 160)):
    """A dark picture with a bright disc, for which the networks below stand as a face."""
    image = np.full((*size, 3), 30, np.uint8)
    if x is not None:
        cv2.circle(
            image, (round(x * 16 - 8), round(y * 16 - 8)), round(radius * 16), (250, 250, 250), -1, cv2.LINE_AA, 4
        )
    return image


class Seer:
    """Sees a disc, where there is all of one and it is not much smaller than in training; else answers as for the mean
    face.

    attention: how much of the way from the mean face to the disc it goes.
    """

    encoder = SimpleNamespace(input_size=48)

    def __init__(self, attention=1.0, limit=0.6):
        self.attention, self.limit = attention, limit

    def answer(self, images):
        return images

    def landmarks(self, images):
        found = []
        for image in images.permute(0, 2, 3, 1).numpy():
            middle, radius = np.zeros(2), 0.8
            bright = image[..., 0] > 140
            if 0.1 < bright.mean() < 0.9:
                y, x = np.nonzero(bright)
                seen = np.array([x.mean(), y.mean()]) * 2 / len(image) + 1 / len(image) - 1
                middle = self.attention * seen
                radius += self.attention * (2 * np.sqrt(bright.sum() / np.pi) / len(image) - radius)
            found.append(middle + radius * FACE)
        return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("x, y, radius", [(80, 60, 40), (60, 50, 30), (100, 70, 22), (125, 35, 24)])
def test_a_face_is_found_wherever_it_is(x, y, radius):
    square = find_face(Seer(), picture(x, y, radius))
    middle = square.to_original(np.array([112.0, 112.0]))
    assert np.abs(middle - (x, y)).max() < 0.05 * radius
    assert 224 / square.scale == pytest.approx(2 * radius / 0.8, rel=0.05)
    assert square.image.shape == (224, 224, 3) and square.image[112, 112, 0] > 200


def test_of_two_faces_the_box_chooses():
    image = np.maximum(picture(40, 60, 22), picture(120, 60, 22))
    for x in (40, 120):
        found = find_face(Seer(), image, (x - 25, 40, x + 20, 88)).to_original(np.array([112.0, 112.0]))
        assert np.abs(found - (x, 60)).max() < 2


def test_a_small_face_in_a_large_picture_is_found_by_its_box():
    image = picture(900, 300, 20, size=(1200, 1600))
    with pytest.raises(NotAFaceError, match="not a face as the network knows them"):
        find_face(Seer(), image)
    found = find_face(Seer(), image, (880, 278, 922, 321))
    assert np.abs(found.to_original(np.array([112.0, 112.0])) - (900, 300)).max() < 2


@pytest.mark.parametrize(
    "image",
    [picture(), np.random.default_rng(0).integers(0, 100, (100, 100, 3), dtype=np.uint8), picture(size=(16, 400)),
     picture(size=(1, 1))],
    ids=["nothing", "noise", "strip", "pixel"],
)  # fmt: skip
def test_what_is_no_face_is_said_to_be_none(image):
    with pytest.raises(NotAFaceError, match="not a face as the network knows them"):
        find_face(Seer(), image)
    with pytest.raises(NotAFaceError, match="not a face as the network knows them"):
        find_face(Seer(), image, (0, 0, 14, 14))


@pytest.mark.parametrize("image", [np.zeros((0, 5, 3), np.uint8), np.zeros((40, 40)), np.zeros((40, 40, 3))])
def test_what_is_no_picture_and_boxes_outside_of_it_are_named(image):
    with pytest.raises(ValueError, match="image: expected"):
        find_face(Seer(), image)
    with pytest.raises(ValueError, match="box: expected part of the image of 160 x 120 pixels"):
        find_face(Seer(), picture(), (500, 500, 530, 540))
    with pytest.raises(ValueError, match="box: expected left < right"):
        find_face(Seer(), picture(), (50, 50, 50, 80))


def test_landmarks_follow_the_square_where_there_is_no_face_and_stay_where_there_is_one():
    image, at = picture(80, 60, 30), (np.array([[80.0, 60]]), np.array([75.0]))
    assert following(Seer(attention=0), [image], *at) == pytest.approx(1)
    assert following(Seer(), [picture()], *at) == pytest.approx(1)
    steady, wavering = (following(Seer(attention), [image], *at)[0] for attention in (1, 0.5))
    # A disc shows no turn, by which the answers of two of the eight are wrong whoever looks.
    turned = np.sqrt(2 / 8)
    assert steady == pytest.approx(turned, abs=0.05) and wavering == pytest.approx(
        np.sqrt((2 + 6 * 0.25) / 8), abs=0.05
    )


def test_squares_come_to_rest_or_are_left_out():
    image = picture(80, 60, 30)
    starts = np.array([[80.0, 60], [90, 66], [10, 10], [159, 5]]), np.array([75.0, 100, 20, 30])
    which, middles, sides = settled(Seer(), [image] * 4, *starts)
    assert (
        list(which[:2]) == [0, 1]
        and np.allclose(middles[:2], [80, 60], atol=1)
        and np.allclose(sides[:2], 75, rtol=0.05)
    )
    assert starts[1].tolist() == [75, 100, 20, 30]  # what was given is not changed
    assert 2 not in which  # it stands still on nothing, but is smaller than any face that is looked for


def test_the_limit_is_that_of_faces_the_network_knows():
    random = np.random.default_rng(1)
    places = np.column_stack([random.uniform(60, 68, (40, 2)), random.uniform(28, 36, 40)])
    images = np.stack([picture(*place, size=(128, 128))[..., 0] for place in places])
    landmarks = ((places[:, None, :2] + places[:, None, 2:] * FACE) / 64 - 1).astype(np.float32)
    faces = FaceSet(images, landmarks, np.ones((40, 68), np.float32), np.arange(40))
    limit = calibrated(Seer(), faces)
    assert 0.5 < limit < 0.75  # turns of a disc aren't seen, see above, and hardly vary
    find_face(Seer(limit=limit), picture(60, 50, 30))
    with pytest.raises(NotAFaceError, match="when the crop is moved, the landmarks follow it"):
        find_face(Seer(limit=limit, attention=0.1), picture(60, 50, 30))


def test_a_network_that_knows_no_faces_finds_none(tmp_path, monkeypatch):
    """Not even in what it is calibrated on: before training the landmarks follow every square."""
    monkeypatch.setenv("RINGNET_CACHE", str(tmp_path))
    model = RingNet()
    faces = SyntheticFaces(split="validation", identities=4, images_per_identity=2, size=64).load(cache=tmp_path)
    model.limit = calibrated(model, faces)
    image = np.repeat(faces.images[0][..., None], 3, axis=2)
    with pytest.raises(NotAFaceError, match="follow it by 100%"):
        find_face(model, image)


def test_a_model_keeps_its_limit_and_what_it_was_trained_on(tmp_path):
    model = RingNet()
    assert model.limit is None and model.trained_on is None
    model.limit, model.trained_on = 0.4, "synthetic faces"
    model.save(tmp_path / "m.safetensors")
    again = RingNet.load(tmp_path / "m.safetensors")
    assert again.limit == 0.4 == limit_of(again) and again.trained_on == "synthetic faces"


@pytest.fixture(scope="module")
def trained():
    return RingNet.load(CHECKPOINT)


@pytest.mark.skipif(
    not CHECKPOINT,
    reason="needs RINGNET_CHECKPOINT, a run folder: ringnet train --out FOLDER, a few minutes on two cores",
)
class TestTrainedNetwork:
    @pytest.mark.parametrize("loose", [False, True])
    def test_at_most_two_of_200_held_out_faces_are_not_found(self, trained, loose):
        faces = SyntheticFaces(split="test", identities=100, images_per_identity=2).load(trained.head)
        pictures, _, _ = crop(faces, np.arange(200)[:, None], 224, np.random.default_rng(0))
        failed = 0
        for i in range(200):
            image = np.repeat(faces.images[i][..., None], 3, axis=2)
            if loose:
                middle, side = landmark_square((faces.landmarks[i] + 1) * (len(image) / 2))
                image = cut_square(image, middle, 1.25 * side).image
            else:
                image = np.ascontiguousarray(pictures[i].permute(1, 2, 0).expand(-1, -1, 3))
            try:
                find_face(trained, image)
            except NotAFaceError:
                failed += 1
        assert failed <= 2

    def test_an_astronaut_is_found_and_a_cat_a_cup_and_noise_are_not(self, trained):
        data = pytest.importorskip("skimage.data")
        square = find_face(trained, data.astronaut())
        assert np.abs(square.to_original(np.array([112.0, 112.0])) - (223, 125)).max() < 20  # her face
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        for image in (data.chelsea(), data.coffee(), noise):
            with pytest.raises(NotAFaceError, match="not a face as the network knows them"):
                find_face(trained, image)


@pytest.mark.parametrize("width, height", [(640, 480), (300, 900), (224, 224)])
def test_the_network_looks_everywhere_in_the_picture_and_nowhere_else(width, height):
    """In squares that cover it all, from the whole down to parts."""
    extent = np.array([width, height], float)
    rounds = list(framing._starts(np.zeros((height, width, 3), np.uint8), None))
    assert rounds[0][1] == [extent.max()] and (rounds[0][0] == extent / 2).all()
    for middles, sides in rounds[1:]:
        room = np.maximum(0, extent - sides[0])
        assert (middles >= (extent - room) / 2 - 1e-9).all() and (middles <= (extent + room) / 2 + 1e-9).all()
        covered = np.zeros((height, width), bool)
        for (x, y), side in zip(middles, sides, strict=True):
            left, top = (max(0, round(value - side / 2)) for value in (x, y))
            covered[top : round(y + side / 2), left : round(x + side / 2)] = True
        assert covered.all()
