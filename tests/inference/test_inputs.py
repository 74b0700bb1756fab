"""Pictures as people have them, and which files a command takes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ringnet_ext.files.images import ImageError, read_image
from ringnet_ext.inference.inputs import face_name, image_files, landmarks_of, named, pixels_of, read_boxes


@pytest.fixture(scope="module")
def photo():
    """A smooth picture, 60 x 40, that no rotation leaves as it is."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (60, 40), interpolation=cv2.INTER_CUBIC)


def off(found, expected):
    assert found.shape == expected.shape and found.dtype == np.uint8
    return np.abs(found.astype(float) - expected).mean()


class TestPixels:
    def test_the_same_picture_in_every_form(self, photo, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), photo[..., ::-1])
        alpha = np.full((40, 60, 1), 255, np.uint8)
        for form in (
            photo,
            photo.astype(np.uint16) * 257,
            photo.astype(np.float32) / 255,
            photo / 255.0,
            np.concatenate([photo, alpha], 2),
            photo[:, ::-1][:, ::-1],
            torch.from_numpy(photo).permute(2, 0, 1),
            torch.from_numpy(photo).permute(2, 0, 1) / 255,
            Image.fromarray(photo),
            Image.fromarray(photo).convert("RGBA"),
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
        ):
            assert np.array_equal(pixels_of(form), photo)

    def test_grey(self, photo):
        grey = photo[..., 0]
        for form in (
            grey,
            grey[..., None],
            torch.from_numpy(grey)[None],
            Image.fromarray(grey),
            grey.astype(np.uint16) * 257,
            Image.fromarray(grey.astype(np.uint16) * 257),
        ):
            assert np.array_equal(pixels_of(form), np.repeat(grey[..., None], 3, 2))

    def test_what_is_transparent_lies_over_white(self, photo):
        clear = np.zeros((40, 60, 1), np.uint8)
        assert (pixels_of(np.concatenate([photo, clear], 2)) == 255).all()

    @pytest.mark.parametrize(
        "image, message",
        [
            (np.zeros((40, 60, 2), np.uint8), r"expected shape .*got \(40, 60, 2\)"),
            (np.zeros((3, 40, 60), np.uint8), r"got \(3, 40, 60\)"),
            (np.zeros((0, 60, 3), np.uint8), r"got \(0, 60, 3\)"),
            (np.zeros(60, np.uint8), r"got \(60,\)"),
            (np.full((40, 60, 3), np.nan), "from 0 to 1, got nan to nan"),
            (np.full((40, 60), np.inf), "from 0 to 1, got inf"),
            (np.full((40, 60, 3), 200.0), "from 0 to 1, got 200 to 200"),
            (np.full((40, 60, 3), -0.1), "from 0 to 1, got -0.1"),
            (np.zeros((40, 60, 3), np.int64), "got int64"),
            (np.zeros((40, 60, 3), bool), "got bool"),
            (np.zeros((40, 60, 3), complex), "got complex128"),
            (np.full((40, 60, 3), None), "got object"),
            (torch.zeros(40, 60, 3), r"expected a tensor of shape .*got \(40, 60, 3\)"),
            (np.zeros((15, 99, 3), np.uint8), "99 x 15 pixels, expected at least 16 x 16"),
            (None, "got NoneType"),
            (7, "got int"),
            (Image.fromarray(np.zeros((40, 60), np.float32)), "mode F"),
        ],
    )
    def test_what_is_no_picture(self, image, message):
        with pytest.raises(ValueError, match=message):
            pixels_of(image)


class TestFiles:
    @pytest.mark.parametrize(
        "suffix, loss", [("jpg", 6), ("png", 0), ("webp", 6), ("tif", 0), ("avif", 8), ("heic", 8)]
    )
    @pytest.mark.parametrize("orientation, turned", [(1, 0), (6, -1), (3, 2), (8, 1)])
    def test_upright(self, photo, tmp_path, suffix, loss, orientation, turned):
        if suffix == "heic":
            pytest.importorskip("pillow_heif").register_heif_opener()
        file = tmp_path / f"a.{suffix}"
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(photo).save(file, exif=exif.tobytes())
        assert off(read_image(file), np.rot90(photo, turned)) <= loss

    def test_sixteen_bits_and_cmyk(self, photo, tmp_path):
        for suffix in ("png", "tif"):
            cv2.imwrite(str(tmp_path / f"a.{suffix}"), photo[..., ::-1].astype(np.uint16) * 257)
            assert off(read_image(tmp_path / f"a.{suffix}"), photo) <= 1
        for suffix in ("jpg", "tif"):
            Image.fromarray(photo).convert("CMYK").save(tmp_path / f"c.{suffix}")
            assert off(read_image(tmp_path / f"c.{suffix}"), photo) <= 6

    def test_heic_without_its_package_is_said(self, tmp_path, monkeypatch):
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
        with pytest.raises(
            ImageError, match=r"a.heic: HEIC is read by the package pillow-heif: pip install pillow-heif"
        ):
            read_image(tmp_path / "a.heic")


def touch(folder: Path, *names: str):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


class TestFolders:
    def test_hidden_files_and_what_is_no_image_are_left_out(self, tmp_path):
        touch(tmp_path, "b.png", "a.JPG", ".c.png", "._a.jpg", "d.txt", "e", "sub/f.png")
        files, complaints, others = image_files([tmp_path])
        assert [file.name for file in files] == ["a.JPG", "b.png"] and not complaints
        assert others == {".txt": 1, "without a suffix": 1}

    def test_recursive(self, tmp_path):
        touch(tmp_path, "b.png", "sub/deep/a.png", "sub/c.heic", ".git/d.png", "sub/.e.png")
        files, complaints, _ = image_files([tmp_path], recursive=True)
        assert [str(file.relative_to(tmp_path)) for file in files] == ["b.png", "sub/c.heic", "sub/deep/a.png"]
        assert not complaints

    def test_links_to_folders_are_followed_once(self, tmp_path):
        touch(tmp_path, "photos/a.png", "elsewhere/b.png")
        (tmp_path / "photos" / "link").symlink_to("../elsewhere")
        (tmp_path / "photos" / "same").symlink_to("../elsewhere")
        (tmp_path / "elsewhere" / "round").symlink_to("../photos")
        files, _, _ = image_files([tmp_path / "photos"], recursive=True)
        assert [str(file.relative_to(tmp_path)) for file in files] == ["photos/a.png", "photos/link/b.png"]

    def test_links_to_nothing_are_not_left_out(self, tmp_path):
        touch(tmp_path, "a.png", "sub/c.png")
        (tmp_path / "b.png").symlink_to("moved.png")
        (tmp_path / "d.png").symlink_to("sub")
        for recursive in (False, True):
            files, _, _ = image_files([tmp_path], recursive)
            names = [str(file.relative_to(tmp_path)) for file in files]
            assert names == ["a.png", "b.png"] + ["sub/c.png"] * recursive

    def test_patterns(self, tmp_path):
        touch(tmp_path, "a1.png", "a2.png", "b.png", ".a3.png", "sub/a4.png", "[x].png")

        def found(pattern):
            files, complaints, _ = image_files([tmp_path / pattern])
            return [file.name for file in files], len(complaints)

        assert found("a*.png") == (["a1.png", "a2.png"], 0)
        assert found("**/a?.png") == (["a1.png", "a2.png", "a4.png"], 0)
        assert found("c*.png") == ([], 1)
        assert found("[x].png") == (["[x].png"], 0)  # there is a file of that very name
        assert found("nothing.png") == (["nothing.png"], 0)  # reading it will say that there is none

    def test_each_once(self, tmp_path):
        touch(tmp_path, "a.png", "b.png", "sub/a.png")
        given = [tmp_path / "b.png", tmp_path, tmp_path / "*.png", tmp_path / "sub" / ".." / "a.png", tmp_path / "sub"]
        files, _, _ = image_files(given)
        assert files == [tmp_path / "b.png", tmp_path / "a.png", tmp_path / "sub" / "a.png"]

    def test_a_folder_without_images(self, tmp_path):
        touch(tmp_path, "a.txt")
        assert "no images in this folder" in image_files([tmp_path])[1][0]


def test_names_are_one_s_own_and_no_face_of_another_s(tmp_path):
    files = [Path(name) for name in ("a.jpg", "b/a.png", "A.png", "a_face2.jpg", "a-2.jpg", "c_face1.jpg")]
    names = [name for name, _ in named(files)]
    assert len({name.casefold() for name in names}) == len(names)
    assert names[0] == "a" and names[4] == "a-2" and names[5] == "c_face1"
    faces = {face_name(name, number, 3).casefold() for name in names for number in (1, 2, 3)}
    assert not faces & {name.casefold() for name in names}
    assert face_name("a", 1, 1) == "a"


def test_boxes_of_an_image_from_left_to_right(tmp_path):
    (tmp_path / "b.csv").write_text("a.png,50,0,60,9\na.png,1,2,3,4\nb.png,1,2,3,4\na.png,20,0,99,9\n")
    assert read_boxes(tmp_path / "b.csv") == {
        "a.png": [(1, 2, 3, 4), (50, 0, 60, 9), (20, 0, 99, 9)],
        "b.png": [(1, 2, 3, 4)],
    }


def test_landmarks_lie_like_the_images_or_flat(tmp_path):
    from ringnet_ext.flame import FLAME

    face = 200 * FLAME().landmarks()[0, :, :2].numpy() * (1, -1)
    (tmp_path / "p0").mkdir()
    np.save(tmp_path / "a.npy", face)
    np.save(tmp_path / "p0" / "a.npy", face + 7)
    near, own = (landmarks_of(Path(name), tmp_path)[0] for name in ("x/p1/a.png", "x/p0/a.png"))
    assert np.allclose(own - near, 7, atol=1e-3)
