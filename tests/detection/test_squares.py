"""The square that is cut around a face: one definition, and pixels where it says."""

import numpy as np
import pytest

from ringnet_ext.data import prepare
from ringnet_ext.data.augment import crop
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.squares import around_landmarks, cut_square, fit_square, landmark_square
from ringnet_ext.geometry.camera import FILL


def ramp(height, width):
    """A picture whose red and green tell where a pixel is: 2 x and 2 y, pixels counted from the corner."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([2 * x, 2 * y, 0 * x], axis=2).astype(np.uint8)


@pytest.mark.parametrize("side, size", [(40, 20), (33.3, 64), (90.7, 25), (40, 40), (20.5, 224)])
@pytest.mark.parametrize("middle", [(60, 50), (55.3, 48.9)])
def test_pixels_are_where_the_square_says(side, size, middle):
    square = cut_square(ramp(110, 120), middle, side, size)
    rows, columns = np.mgrid[:size, :size] + 0.5
    inner = (slice(size // 5, -size // 5),) * 2
    where = square.to_original(np.stack([columns, rows], axis=2))[inner]
    assert (
        np.abs(square.image[inner][..., :2] / 2 - where).max() < 0.6
    )  # half a pixel of the ramp, and rounding to uint8
    assert np.abs((square.image[inner][..., :2] / 2 - where).mean((0, 1))).max() < 0.3
    assert np.allclose(square.to_original(np.array([size / 2, size / 2])), middle)
    assert np.allclose(square.to_original(np.array([[0, 0], [size, size]])), np.add(middle, [[-side / 2], [side / 2]]))
    assert np.allclose(square.place, (middle[0] - side / 2, middle[1] - side / 2, side))


@pytest.mark.parametrize("size", [64, 224])
def test_a_picture_that_is_its_own_square_begins_at_zero(size):
    place = fit_square(np.zeros((size, size, 3), np.uint8)).place
    assert str(place) == f"(0.0, 0.0, {size}.0)"  # as tables and JSON show it


def test_pixels_on_a_whole_grid_are_kept_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert np.array_equal(cut_square(image, (30, 20), 24, 24).image, image[8:32, 18:42])
    halves = cut_square(image, (30, 20), 24, 12).image
    assert np.abs(halves - image[8:32, 18:42].reshape(12, 2, 12, 2, 3).mean((1, 3))).max() <= 0.5


def test_beyond_the_image_its_edge_goes_on():
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    square = cut_square(image, (0, 15), 30, 30).image
    assert np.array_equal(square[:, 15:], image[:, :15]) and (square[:, :15] == image[:, :1]).all()


@pytest.mark.parametrize(
    "middle, side", [((-50, 10), 20), ((10, 95), 20), ((10, 10), 0.5), ((np.nan, 3), 5), ((1e9, 0), 9)]
)
def test_a_square_without_the_image_is_refused(middle, side):
    with pytest.raises(ValueError, match="square: expected one that has part of the image of 40 x 60 pixels"):
        cut_square(np.zeros((60, 40, 3), np.uint8), middle, side)


def test_the_box_of_the_known_landmarks_fills_four_fifths_of_the_square():
    random = np.random.default_rng(0)
    points, confidence = random.uniform(10, 50, (68, 2)), np.ones(68)
    points[5], confidence[5] = (500, 500), 0
    known = np.delete(points, 5, axis=0)
    middle, side = landmark_square(points, confidence)
    assert np.allclose(middle, (known.min(0) + known.max(0)) / 2) and side == pytest.approx(
        np.ptp(known, axis=0).max() / 0.8
    )
    both = landmark_square(np.stack([points, points + 3]), np.stack([confidence] * 2))
    assert np.allclose(both[0], [middle, middle + 3]) and np.allclose(both[1], side)


def test_training_prepare_and_infer_cut_the_same_square(tmp_path):
    """What the network learns on is what it is asked about; prepare's crop leaves room around the same middle."""
    faces = SyntheticFaces(identities=3, images_per_identity=2, size=96, color=True).load(cache=tmp_path)
    pictures, landmarks, _ = crop(faces, np.arange(6)[:, None], 64)
    for i in range(6):
        pixels = (faces.landmarks[i] + 1) * 48
        square = around_landmarks(faces.images[i], pixels, faces.confidence[i], 64)
        assert np.abs(pixels - square.to_original((landmarks[i].numpy() + 1) * 32)).max() < 1e-3
        picture = pictures[i].permute(1, 2, 0).numpy().astype(int)
        difference, shifted = (np.abs(np.roll(square.image, by, axis=1) - picture).mean() for by in (0, 1))
        assert difference < shifted / 2  # training samples bilinearly
        _, loose = prepare.loose_square(faces.images[i], pixels, faces.confidence[i], 128)
        ours, theirs = landmark_square(landmarks[i].numpy()), landmark_square(loose)
        assert np.abs(ours[0]).max() < 1e-5 and ours[1] == pytest.approx(2)
        assert np.abs(theirs[0]).max() < 0.02 and theirs[1] / 2 == pytest.approx(prepare.LOOSE_FILL / FILL, rel=0.02)


def test_a_whole_image_keeps_its_middle():
    square = fit_square(ramp(60, 100), 50)
    assert square.scale == 0.5 and square.offset == (0, 10)
    assert (square.image[:10] == square.image[10]).all() and (square.image[40:] == square.image[39]).all()
