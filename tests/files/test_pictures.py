"""PNGs with numbers and text, and parameters in JSON."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ringnet_ext.files.arrays import read_file
from ringnet_ext.files.images import ImageError, image_bytes, png_bytes, read_png


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_a_png_keeps_its_numbers_and_its_text(dtype, shape, tmp_path):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    text = {"Description": "metres; 0 is nothing", "step": "1e-05"}
    (tmp_path / "a.png").write_bytes(png_bytes(image, text))
    again, said = read_png(tmp_path / "a.png")
    assert again.dtype == dtype and np.array_equal(again, image) and said == text
    with Image.open(tmp_path / "a.png") as opened:
        opened.verify()  # the checksums of all chunks
    theirs = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(theirs, image[..., ::-1] if image.ndim == 3 else image)


def test_what_is_no_png_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes(np.zeros((4, 4, 3), np.uint8), ".jpg"))
    (tmp_path / "b.png").write_bytes(png_bytes(np.zeros((40, 40), np.uint16), {})[:50])
    (tmp_path / "c.png").write_bytes(b"")
    for name in "abc":
        with pytest.raises(ImageError, match=rf"{name}\.png: not a PNG that can be read"):
            read_png(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError, match=r"d\.png"):
        read_png(tmp_path / "d.png")


def test_json_is_read_as_a_dictionary_of_arrays(tmp_path):
    (tmp_path / "a").write_text('{"abcd":{"x": 1}, "shape": [1, 2.5], "pose": [[0.5, 1]], "text": "t", "one": 3}')
    content = read_file(tmp_path / "a")  # with a brace where .safetensors has its first
    assert content["abcd"] == {"x": 1} and content["text"] == "t" and content["one"] == 3
    assert np.array_equal(content["shape"], [1, 2.5]) and content["pose"].shape == (1, 2)


@pytest.mark.parametrize("text", ['{"shape": [1, 2', '{"shape": [[1], [1, 2]]}', "{" * 100_000, '{"a": ' * 100_000])
def test_broken_json_is_named(text, tmp_path):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: "):
        read_file(tmp_path / "broken.json")
