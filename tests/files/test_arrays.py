"""Files of arrays as other programs read them."""

import io
import zipfile

import numpy as np

from ringnet_ext.files.arrays import npz_bytes, read_file


def test_an_npz_is_one_to_numpy_to_zip_and_to_us(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "cam": random.normal(size=3).astype(np.float32),
        "projection": random.normal(size=(2, 4)),
        "of columns": np.asfortranarray(random.normal(size=(5, 7))),
        "every other": random.integers(0, 9, 30)[::2],
        "pixel_centres": 0.5,
        "none": np.zeros((0, 3), np.float32),
        "about": np.array("metres, \u00b5m"),
        "big-endian": np.arange(4, dtype=">i2"),
    }
    content = npz_bytes(arrays)
    (tmp_path / "a.npz").write_bytes(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}.npy" for name in arrays]
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert loaded[name].dtype == np.asarray(array).dtype and np.array_equal(loaded[name], array)
    ours = read_file(tmp_path / "a.npz")
    assert all(np.array_equal(ours[name], array) for name, array in arrays.items())
    assert npz_bytes(arrays) == content and np.load(io.BytesIO(npz_bytes({}))).files == []
