"""What a run measured on its way."""

import numpy as np

from ringnet_ext.files.images import read_image
from ringnet_ext.training.history import write_curves, write_history


def test_a_step_is_written_with_all_its_digits(tmp_path):
    write_history(tmp_path / "history.csv", [{"step": 1_234_567, "loss": 1.23456789}])
    assert (tmp_path / "history.csv").read_text().splitlines() == ["step,loss", "1234567,1.23457"]


def test_the_curves_of_a_short_run_are_points(tmp_path):
    """Its one row makes no line."""
    names = "loss", "landmarks", "ring", "validation_loss", "validation_landmarks", "validation_ring"
    write_curves(tmp_path / "curves.png", [{"step": 4, **dict.fromkeys(names, 1.0), "validation_ring": 0.5}])
    picture = read_image(tmp_path / "curves.png").astype(int)
    third = picture[:, -picture.shape[1] // 3 :]  # where there is no legend
    for color in ((31, 119, 180), (255, 127, 14)):
        assert (np.abs(third - color).sum(-1) < 40).any()
