"""Which images make a ring, and what happens to them."""

import numpy as np

from ringnet_ext.data.augment import _degrade
from ringnet_ext.data.face_set import Augmentation
from ringnet_ext.data.rings import RingSampler


def test_an_image_without_identity_is_a_person_of_its_own():
    identity = np.array([7, 7, -1, 7, -1, 3, -1, 3])
    sampler = RingSampler(identity, 4, 5, seed=0)
    leading = []
    for step in range(40):
        for ring in sampler.rings(step):
            own, other = ring[:-1], ring[-1]
            if identity[own[0]] < 0:
                assert (own == own[0]).all()  # crops of the one image
                assert other != own[0]
            else:
                assert (identity[own] == identity[own[0]]).all() and identity[other] != identity[own[0]]
            leading.append(own[0] if identity[own[0]] < 0 else identity[own[0]] + 100)
    people, counts = np.unique(leading, return_counts=True)
    assert len(people) == 5 and counts.min() == counts.max() == 40  # all equally often


def test_what_is_before_a_face_is_a_turned_box_or_an_ellipse():
    settings = Augmentation(occlusion=1.0)
    random, filled = np.random.default_rng(0), []
    for _ in range(200):
        image = np.zeros((64, 64, 3), np.uint8)
        covered = _degrade(image, settings, random).any(2)
        if not covered.any() or covered[[0, -1]].any() or covered[:, [0, -1]].any():
            continue  # black, or cut off by the border
        rows, columns = np.nonzero(covered)
        middle = np.array([rows.mean(), columns.mean()])
        offsets = np.stack([rows, columns], 1) - middle
        # Of an ellipse the area is 4 pi times the root of its second moments' determinant; of a box 12 times.
        filled.append(covered.sum() / np.sqrt(np.linalg.det(np.cov(offsets.T))))
    boxes = np.array(filled) < (12 + 4 * np.pi) / 2
    assert 0.25 < boxes.mean() < 0.75
