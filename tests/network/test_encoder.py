"""What goes into the network, and in which units it answers."""

import pytest
import torch

from ringnet_ext.network import RingNet
from ringnet_ext.network.encoder import ENCODERS, _resize, to_input


def test_pixels_become_numbers_from_minus_one_to_one():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    values = to_input(pixels)
    assert values.dtype == torch.float32 and values.shape == pixels.shape
    torch.testing.assert_close(values.flatten(), torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)
    assert pixels.flatten()[255] == 255  # as it was


def test_the_units_of_the_answer_are_those_that_were_asked_for():
    scale = (0.1, 0.02, 0.3, 0.1, 1.0, 0.5)
    torch.manual_seed(0)
    plain = RingNet(shape_params=4, expression_params=3)
    torch.manual_seed(0)
    scaled = RingNet(scale=scale, shape_params=4, expression_params=3)
    units = scaled.regressor.scale
    mean = scaled.regressor.mean
    assert units[0] == pytest.approx(0.1 * float(mean[0]))  # relative to the camera of the mean head
    expected = [0.02] * 2 + [0.3] * 3 + [0.1] * 3 + [1.0] * 4 + [0.5] * 3
    torch.testing.assert_close(units[1:].flatten(), torch.tensor(expected))
    assert (plain.regressor.scale == 1).all()


def test_larger_pictures_are_averaged_not_thinned_out():
    picture = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    small = _resize(picture, 32)
    assert small.shape == (1, 1, 32, 32)
    assert float(small.std()) < 0.5 * float(picture.std())
    torch.testing.assert_close(small.mean(), picture.mean(), atol=0.01, rtol=0)


@pytest.mark.parametrize("encoder", ["compact", "resnet50"])
@pytest.mark.parametrize("channels, side", [(3, 224), (1, 64), (3, 48)])
def test_what_an_encoder_looks_at_is_all_that_it_needs(encoder, channels, side):
    made = ENCODERS[encoder]().eval()
    pictures = torch.randint(0, 256, (9, channels, side, side), dtype=torch.uint8)
    before = pictures.clone()
    with torch.no_grad():
        prepared = made.prepared(pictures)
        assert torch.equal(made(prepared), made(to_input(pictures))) and torch.equal(pictures, before)
    assert len(prepared) == 9 and float(prepared.abs().max()) <= 1
    if encoder == "compact":
        assert prepared.shape[1:] == (1, 64, 64)
