"""RingNet.reconstruct with landmarks: what the network says is refined until its landmarks are these."""

import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.fitting import refine
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.geometry.camera import UPRIGHT, project, to_pixels

SIZE = 224


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = RingNet().eval()
    model.limit = 0.9
    return model


@pytest.fixture(scope="module")
def photographs(model):
    """Three pictures of noise, which tell the network nothing; one person's landmarks in them, and the shape."""
    g = torch.Generator().manual_seed(1)
    shape = torch.randn(1, model.flame.shape_params, generator=g)
    pose = torch.tensor([UPRIGHT]).repeat(3, 1)
    pose[:, 1] = torch.tensor([-0.4, 0.0, 0.4])
    points = model.flame.landmarks(shape.expand(3, -1), global_pose=pose)
    camera = torch.cat([torch.full((3, 1), 7.0), -points.mean(1)[:, :2]], dim=1)
    landmarks = to_pixels(project(points, camera), SIZE).numpy().astype(np.float64)
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    return list(pictures), list(landmarks), shape


def off(faces, landmarks):
    return max(
        np.linalg.norm(face.landmarks - points, axis=1).mean() for face, points in zip(faces, landmarks, strict=True)
    )


def test_landmarks_are_where_they_were_given(model, photographs):
    pictures, landmarks, _ = photographs
    faces = model.reconstruct(pictures, landmarks=landmarks, sigma=0.003)
    assert off(faces, landmarks) < 0.5  # pixels
    assert not torch.equal(faces[0].params.shape, faces[1].params.shape)
    one = model.reconstruct(pictures[0], landmarks=landmarks[0], sigma=0.003)
    assert torch.allclose(one.params.shape, faces[0].params.shape, atol=1e-3)


def test_images_of_one_person_get_one_shape(model, photographs):
    pictures, landmarks, shape = photographs
    together = model.reconstruct(pictures, landmarks=landmarks, same_person=True, sigma=0.003)
    alone = model.reconstruct(pictures, landmarks=landmarks, sigma=0.003)
    assert all(torch.equal(face.params.shape, together[0].params.shape) for face in together)
    assert off(together, landmarks) < 0.5

    def error(found):
        return (model.flame(found).vertices - model.flame(shape).vertices).norm(dim=-1).mean()

    assert error(together[0].params.shape) < min(error(face.params.shape) for face in alone)


def test_what_does_not_fit_together_is_named(model, photographs):
    pictures, landmarks, _ = photographs
    with pytest.raises(ValueError, match="landmarks: expected one set for each of 3 images, got 2"):
        model.reconstruct(pictures, landmarks=landmarks[:2])
    with pytest.raises(ValueError, match="same_person: expected landmarks too"):
        model.reconstruct(pictures, same_person=True)
    with pytest.raises(ValueError, match=r"landmarks: expected shape \(68, 2\), got \(67, 2\)"):
        model.reconstruct(pictures[0], landmarks=landmarks[0][:67])
    with pytest.raises(ValueError, match="sigma: expected landmarks too"):
        model.reconstruct(pictures[0], sigma=0.01)


def test_landmarks_are_checked_as_those_of_files(model, photographs):
    pictures, landmarks, _ = photographs
    for wrong, message in (
        (landmarks[0] / 100, "expected pixels of the image, not normalised coordinates"),
        (landmarks[0] * (-1, 1) + (pictures[0].shape[1], 0), "seen from behind"),
        (np.full((68, 2), np.nan), "no point has a confidence above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.reconstruct(pictures[0], landmarks=wrong)
    some = landmarks[0].copy()
    some[:17] = np.nan
    face = model.reconstruct(pictures[0], landmarks=some)
    assert np.linalg.norm(face.landmarks[17:] - landmarks[0][17:], axis=1).mean() < 1


def test_a_person_without_landmarks_is_named(model):
    nothing = HeadParams(*(torch.zeros(2, width) for width in (3, 3, 3, 100, 50)))
    nothing.camera[:, 0] = 7
    with pytest.raises(ValueError, match="landmarks: no image with at least 6 known landmarks"):
        refine(model.flame, nothing, torch.full((2, 68, 2), torch.nan), sigma=0.003)
