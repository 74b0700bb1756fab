"""Rings, crops, synthetic faces and image files."""

import dataclasses
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ringnet_ext.data.augment import FLIP, crop
from ringnet_ext.data.face_set import Augmentation, FaceSet
from ringnet_ext.data.photographs import AUGMENTATION
from ringnet_ext.data.rings import RingSampler
from ringnet_ext.data.synthetic import SyntheticFaces, _mixed, global_pose
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.files.images import ImageError, read_image, write_image
from ringnet_ext.files.whole import folder_written_whole, remove_leftovers
from ringnet_ext.flame import FLAME, builtin_head
from ringnet_ext.geometry.camera import FILL, UPRIGHT, project, to_normalised, to_pixels, yaw_of
from ringnet_ext.network.encoder import to_input

SMALL = SyntheticFaces(identities=5, images_per_identity=3, size=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("faces")


@pytest.fixture(scope="module")
def faces(cache):
    return SMALL.load(cache=cache)


class TestRings:
    identity = np.repeat(np.arange(10), 7)[::-1].copy()

    def test_the_last_one_is_another_person(self):
        sampler = RingSampler(self.identity, 6, 4, seed=0)
        for step in range(20):
            people = self.identity[sampler.rings(step)]
            assert people.shape == (4, 6)
            assert (people[:, :-1] == people[:, :1]).all() and (people[:, -1] != people[:, 0]).all()

    def test_everybody_else_is_as_often_the_other(self):
        sampler = RingSampler(self.identity, 3, 10, seed=2)
        pairs = np.zeros((10, 10), int)
        for step in range(300):
            rings = self.identity[sampler.rings(step)]
            np.add.at(pairs, (rings[:, 0], rings[:, -1]), 1)
        others = pairs[~np.eye(10, dtype=bool)]
        assert not pairs.diagonal().any() and (pairs.sum(1) == 300).all()
        assert (abs(others - 300 / 9) < 5 * (300 / 9) ** 0.5).all()

    def test_images_of_a_ring_differ_where_there_are_enough(self):
        rings = RingSampler(self.identity, 6, 10, seed=0).rings(0)
        assert all(len(set(ring)) == 6 for ring in rings)

    def test_every_identity_leads_one_ring_an_epoch_in_a_fresh_order(self):
        sampler = RingSampler(self.identity, 4, 5, seed=1)
        epochs = [[self.identity[r[0]] for s in range(2 * e, 2 * e + 2) for r in sampler.rings(s)] for e in range(3)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert epochs[0] != epochs[1]

    def test_a_step_depends_on_seed_and_step_alone(self):
        one, other = RingSampler(self.identity, 6, 4, seed=3), RingSampler(self.identity, 6, 4, seed=3)
        for step in range(7):
            one.rings(step)
        assert np.array_equal(one.rings(2), other.rings(2))
        assert not np.array_equal(one.rings(2), RingSampler(self.identity, 6, 4, seed=4).rings(2))

    def test_people_with_few_images_repeat_them(self):
        identity = np.array([0, 0, 1, 2, 2, 2])
        rings = RingSampler(identity, 6, 3, seed=0).rings(0)
        assert (identity[rings[:, :-1]] == identity[rings[:, :1]]).all()

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"ring_size.*at least 3"):
            RingSampler(self.identity, 2, 1, 0)
        with pytest.raises(ValueError, match="at least two people"):
            RingSampler(np.zeros(9, int), 3, 1, 0)


class TestSynthetic:
    def test_landmarks_are_the_projected_truth(self, faces):
        truth = {name: torch.from_numpy(value) for name, value in faces.truth.items()}
        camera = truth.pop("camera")
        assert np.allclose(project(FLAME().landmarks(**truth), camera).numpy(), faces.landmarks, atol=1e-4)
        assert np.abs(faces.landmarks).max() < 1

    def test_a_person_keeps_the_shape_and_nothing_else(self, faces):
        for person in range(SMALL.identities):
            rows = faces.identity == person
            assert len(np.unique(faces.truth["shape"][rows], axis=0)) == 1
            assert len(np.unique(faces.truth["expression"][rows], axis=0)) == SMALL.images_per_identity
        assert len(np.unique(faces.truth["shape"], axis=0)) == SMALL.identities

    def test_same_configuration_same_pictures(self, faces, tmp_path):
        again = SMALL.load(cache=tmp_path)
        assert np.array_equal(again.images, faces.images) and np.array_equal(again.landmarks, faces.landmarks)

    def test_splits_and_seeds_hold_other_people(self, faces, cache):
        for change in ({"split": "test"}, {"seed": 1}):
            other = dataclasses.replace(SMALL, **change).load(cache=cache)
            assert not np.isclose(other.truth["shape"][:, None], faces.truth["shape"][None]).all(-1).any()

    def test_the_cache_is_used_and_holds_nothing_unfinished(self, faces, cache):
        before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
        SMALL.load(cache=cache)
        assert before and before == {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
        assert not [path for path in cache.iterdir() if path.name.startswith(".")]

    @pytest.mark.parametrize("name", ["images.npy", "labels.npz"])
    def test_what_is_damaged_is_rendered_anew(self, tmp_path, name):
        small = SyntheticFaces(identities=1, images_per_identity=1, size=16)
        faces = small.load(cache=tmp_path)
        before = np.array(faces.images)  # which are mapped into memory
        (path,) = tmp_path.glob(f"*/{name}")
        for damage in (lambda: os.truncate(path, 100), path.unlink):
            damage()
            after = small.load(cache=tmp_path)
            assert np.array_equal(after.images, before) and np.array_equal(after.landmarks, faces.landmarks)

    def test_what_a_killed_run_left_is_removed(self, tmp_path):
        tiny = dataclasses.replace(SMALL, identities=1, images_per_identity=1)
        tiny.load(cache=tmp_path)
        (folder,) = tmp_path.iterdir()
        with folder_written_whole(folder) as other_run:  # at work: no leftover
            left = tmp_path / f".{folder.name}.1.tmp"
            left.mkdir()
            (left / "images.npy").write_bytes(b"half")
            shutil.rmtree(folder)
            remove_leftovers(tmp_path)
            assert os.listdir(tmp_path) == [other_run.name]
        shutil.rmtree(folder)
        left.mkdir()
        tiny.load(cache=tmp_path)
        assert os.listdir(tmp_path) == [folder.name]

    def test_a_head_without_the_landmarks_is_refused_before_anything_is_rendered(self, tmp_path):
        head = dataclasses.replace(builtin_head(), landmarks=None)
        with pytest.raises(ValueError, match=r"68 landmarks.*has none.*convert MODEL HEAD.npz --landmarks"):
            SMALL.load(head, tmp_path)
        assert not os.listdir(tmp_path)

    def test_whatever_decides_a_pixel_has_faces_of_its_own(self, tmp_path):
        """Also what coefficients don't depend on: landmarks decide the crop, regions the colours, weights the pose."""
        tiny = dataclasses.replace(SMALL, identities=1, images_per_identity=1)
        head = builtin_head()
        heads = [
            head, dataclasses.replace(head, regions=head.regions | {"lips": head.regions["nose"]}),
            dataclasses.replace(head, posedirs=2 * head.posedirs),
            dataclasses.replace(head, landmarks=dataclasses.replace(
                head.landmarks, static_faces_idx=head.landmarks.static_faces_idx[::-1].copy())),
        ]  # fmt: skip
        images = [tiny.load(each, tmp_path).images for each in heads]
        assert all((image != images[0]).any() for image in images[1:]) and len(os.listdir(tmp_path)) == len(heads)

    def test_the_face_is_where_the_landmarks_are(self, cache):
        """Pixels inside the landmarks' hull are skin, as those of one picture rendered twice with other backgrounds
        are."""
        plain = dataclasses.replace(SMALL, identities=2, images_per_identity=2, occlusion=0.0, color=True)
        faces = plain.load(cache=cache)
        assert faces.images.shape == (4, 64, 64, 3)
        for image, landmarks in zip(faces.images, faces.landmarks, strict=True):
            hull = cv2.convexHull(((landmarks + 1) * 32).astype(np.float32)).astype(np.int32)
            mask = cv2.fillConvexPoly(np.zeros(image.shape[:2], np.uint8), hull, 1) > 0
            assert mask.mean() > 0.1
            # A background crosses the border of the face; skin is smoother than that.
            chroma = image[mask].astype(float) / np.maximum(image[mask].sum(1, keepdims=True), 1)
            assert np.median(np.abs(chroma - np.median(chroma, axis=0))) < 0.06

    @pytest.mark.parametrize("yaw", [-60, -39, 0, 20, 60])
    def test_pose_has_the_yaw_it_was_made_with(self, yaw):
        pose = global_pose(np.radians(yaw), np.radians(8), np.radians(-5))
        assert np.degrees(float(yaw_of(torch.from_numpy(pose)[None])[0])) == pytest.approx(yaw, abs=0.7)

    def test_poses_of_similar_heads_are_similar(self):
        assert np.allclose(global_pose(0, 0, 0), UPRIGHT)
        for angles in ((0.01, 0, 0), (0, 0.01, 0), (0, -0.01, 0), (0, 0, -0.01)):
            assert np.linalg.norm(global_pose(*angles) - UPRIGHT) < 0.02

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"split.*'training'"):
            SyntheticFaces(split="training")
        with pytest.raises(ValueError, match="yaw_limit"):
            SyntheticFaces(yaw_limit=90)

    def test_colours_of_people_lie_along_the_palette(self):
        palette = np.array([[0.0, 0.1, 0.5], [0.2, 0.1, 0.9], [1.0, 0.7, 0.4]])
        colors = np.array([_mixed(np.random.default_rng(seed), palette) for seed in range(300)])
        for channel in (1, 2):
            assert np.allclose(np.interp(colors[:, 0], palette[:, 0], palette[:, channel]), colors[:, channel])
        assert colors[:, 0].min() < 0.02 and colors[:, 0].max() > 0.98 and 0.3 < (colors[:, 0] < 0.2).mean() < 0.7


class TestCrop:
    def test_flip_is_an_involution_that_mirrors_the_mean_head(self):
        assert np.array_equal(FLIP[FLIP], np.arange(68))
        points = FLAME().landmarks()[0].numpy()
        assert np.abs(points[FLIP] * [-1, 1, 1] - points).max() < 2e-3

    def test_landmarks_stay_on_their_pixels(self):
        """Bright dots at the landmarks: after any crop they are where the cropped landmarks say."""
        random = np.random.default_rng(0)
        points = random.uniform(-0.4, 0.4, (8, 68, 2)).astype(np.float32)
        images = np.zeros((8, 256, 256), np.uint8)
        for image, landmarks in zip(images, points, strict=True):
            x, y = (landmarks[0] + 1) * 128
            cv2.circle(image, (round(float(x - 0.5) * 16), round(float(y - 0.5) * 16)), 6 * 16, 255, -1, cv2.LINE_AA, 4)
        faces = FaceSet(images, points, np.ones((8, 68), np.float32), np.arange(8))
        crops, landmarks, _ = crop(faces, np.arange(8).reshape(4, 2), 128, random)
        grid = (torch.arange(128) + 0.5) / 64 - 1
        assert len({float(row) for row in torch.sign(landmarks[:, FLIP[0], 0] - landmarks[:, 0, 0])}) >= 1
        mirrored = 0
        for image, target in zip(crops[:, 0] / 255, landmarks, strict=True):
            weight = image / image.sum()
            centre = torch.stack([(weight.sum(0) * grid).sum(), (weight.sum(1) * grid).sum()])
            distances = (target - centre).norm(dim=-1)
            assert distances.min() < 0.01
            assert int(distances.argmin()) in (0, FLIP[0])
            mirrored += int(distances.argmin()) == FLIP[0]
        assert 0 < mirrored < 8 and mirrored % 2 == 0  # whole rings of two

    def test_without_jitter_the_box_fills_the_frame(self, faces):
        images, landmarks, _ = crop(faces, np.arange(4)[:, None], 32)
        assert images.shape == (4, 1, 32, 32) and images.dtype == torch.uint8
        extent = (landmarks.amax(1) - landmarks.amin(1)).amax(1)
        assert torch.allclose(extent, torch.full((4,), 1.6), atol=1e-5)

    def test_pixels_and_normalised_coordinates(self):
        points = torch.tensor([[-1.0, -1.0], [1.0, 0.0]])
        assert to_pixels(points, 224).tolist() == [[0, 0], [224, 112]]
        assert torch.equal(to_normalised(to_pixels(points, 224), 224), points)


class TestImages:
    def test_round_trip_and_exif(self, tmp_path):
        image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        write_image(tmp_path / "a.png", image)
        assert np.array_equal(read_image(tmp_path / "a.png"), image)
        assert torch.allclose(to_input(torch.from_numpy(image)), torch.from_numpy(image) / 255.0 * 2 - 1, atol=1e-6)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
    def test_what_is_no_image(self, tmp_path, content):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"x.png"):
            read_image(tmp_path / "x.png")
        with pytest.raises(FileNotFoundError, match=r"nowhere.jpg"):
            read_image(tmp_path / "nowhere.jpg")

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".gif", ".avif"])
    def test_what_is_transparent_lies_over_white(self, tmp_path, suffix):
        """Whatever colour is stored beneath, which no viewer shows."""
        picture = np.zeros((32, 40, 4), np.uint8)
        picture[..., :3], picture[:, 20:, 3] = (200, 30, 60), 255
        if suffix not in (".gif", ".avif"):  # no or hardly any half transparent pixels
            picture[:16, :20, 3] = 128
        Image.fromarray(picture).save(
            tmp_path / f"a{suffix}", **({} if suffix == ".gif" else {"lossless": True, "quality": 100})
        )
        image = read_image(tmp_path / f"a{suffix}").astype(int)
        assert np.abs(image[:, 21:] - (200, 30, 60)).max() < 8 and (image[17:, :19] > 250).all()
        if suffix not in (".gif", ".avif"):
            assert np.abs(image[:16, :19] - (227, 142, 157)).max() < 8

    def test_what_is_transparent_is_turned_upright_too(self, tmp_path):
        picture = Image.fromarray(np.full((20, 30, 4), 128, np.uint8))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(tmp_path / "a.png", exif=exif)
        assert read_image(tmp_path / "a.png").shape == (30, 20, 3)

    @pytest.mark.parametrize("shape", [(100, 50), (50, 100), (1, 1), (300, 224), (3, 1000)])
    def test_fit_square(self, shape):
        image = np.full((*shape, 3), 7, np.uint8)
        square = fit_square(image)
        assert square.image.shape == (224, 224, 3) and (square.image == 7).all()
        middle = np.array([[112.0, 112.0]])
        assert np.abs(square.to_original(middle) - np.array([[shape[1] / 2, shape[0] / 2]])).max() < 1 / square.scale

    def test_fit_square_refuses(self):
        with pytest.raises(ValueError, match="uint8"):
            fit_square(np.zeros((5, 5, 3)))


def test_crops_vary_as_much_as_they_are_told():
    count = 400
    landmarks = np.tile(np.float32([[-0.4, -0.4], [0.4, 0.4]] * 34), (count, 1, 1))
    faces = FaceSet(np.zeros((count, 32, 32), np.uint8), landmarks, np.ones((count, 68), np.float32), np.arange(count),
                    augmentation=Augmentation(zoom=0.2, shift=0.1))  # fmt: skip

    def cut(faces):
        _, found, _ = crop(faces, np.arange(count)[:, None], 32, np.random.default_rng(0))
        low, high = found.amin(1), found.amax(1)
        return ((high - low).amax(1) / (2 * FILL)).log(), (low + high) / 2

    for some, lone in (
        (faces, 1.0),
        (dataclasses.replace(faces, identity=np.full(count, -1)), faces.augmentation.lone),
    ):
        size, middle = cut(some)
        assert 0.95 * 0.2 * lone < size.max() <= 0.2001 * lone and -0.2001 * lone <= size.min() < -0.95 * 0.2 * lone
        shift = middle / 2  # of the crop's side
        assert 0.95 * 0.1 * lone < shift.abs().max() <= 0.1001 * lone and shift.mean(0).abs().max() < 0.02 * lone


class TestDegradation:
    """What training does to the pixels of photographs, one kind at a time."""

    @staticmethod
    def crops(images, **settings):
        """Plain crops of images as they are, but for these settings, and the images that they are of."""
        landmarks = np.full((len(images), 68, 2), 0.8, np.float32) * np.where(np.arange(68)[:, None] % 2, 1, -1)
        faces = FaceSet(images, landmarks, np.ones((len(images), 68), np.float32), np.arange(len(images)),
                        augmentation=Augmentation(zoom=0, shift=0, **settings))  # fmt: skip
        cut, _, _ = crop(faces, np.arange(len(images))[:, None], 64, np.random.default_rng(0))
        plain, _, _ = crop(dataclasses.replace(faces, augmentation=Augmentation(zoom=0, shift=0)),
                           np.arange(len(images))[:, None], 64, np.random.default_rng(0))  # fmt: skip
        return cut.numpy().astype(np.float64), plain.numpy().astype(np.float64)

    flat = np.tile(np.uint8([60, 120, 180]), (80, 64, 64, 1))
    noise = np.random.default_rng(1).integers(60, 190, (80, 64, 64, 3), dtype=np.uint8)

    def test_light(self):
        cut, plain = self.crops(self.flat, color=0.3)
        assert (cut.std((2, 3)) == 0).all()  # every pixel alike
        colors = cut[..., 0, 0] / plain[..., 0, 0]
        brightness, balance = colors.mean(1), colors / colors.mean(1, keepdims=True)
        assert 0.5 < brightness.min() < 0.85 and 1.15 < brightness.max() < 2
        assert 0.05 < np.abs(np.log(balance)).max() < 0.7 and abs(np.log(brightness).mean()) < 0.1
        assert not np.array_equal(*self.crops(self.noise, color=0.01)) and np.array_equal(*self.crops(self.noise))

    def test_blur(self):
        cut, plain = self.crops(self.noise, blur=1.0)
        assert np.abs(cut.mean((1, 2, 3)) - plain.mean((1, 2, 3))).max() < 1
        kept = cut.std((1, 2, 3)) / plain.std((1, 2, 3))
        assert kept.max() < 1.01 and kept.min() < 0.97
        always = (cut != plain).any((1, 2, 3)).mean()  # weak ones change nothing
        assert 0.3 * always < (self.crops(self.noise, blur=0.5)[0] != plain).any((1, 2, 3)).mean() < 0.7 * always

    def test_occlusion(self):
        cut, plain = self.crops(self.flat, occlusion=1.0)
        covered = (cut != plain).any(1).mean((1, 2))
        assert (covered > 0).mean() > 0.9 and covered.max() < 0.3 and 0.02 < covered.mean() < 0.15
        for image in cut[:10]:  # something of one colour
            counts = np.unique(image.reshape(3, -1), axis=1, return_counts=True)[1]
            assert np.sort(counts)[-2:].sum() > 0.9 * 64 * 64

    def test_compression(self):
        cut, plain = self.crops(self.noise, jpeg=1.0)
        errors = np.sqrt(np.square(cut - plain).mean((1, 2, 3)))
        assert errors.min() > 2 and errors.max() < 60 and np.ptp(errors) > 3


def test_a_ring_is_cropped_the_same_whichever_others_are_cut_with_it(faces):
    faces = dataclasses.replace(faces, augmentation=AUGMENTATION)
    rings = RingSampler(faces.identity, 4, 6, seed=0).rings(3)
    whole = crop(faces, rings, 48, np.random.default_rng(5))
    for part in (slice(0, 2), slice(2, 5), slice(5, 6)):
        cut = crop(faces, rings, 48, np.random.default_rng(5), part)
        for one, all_of_them in zip(cut, whole, strict=True):
            assert torch.equal(one, all_of_them.unflatten(0, rings.shape)[part].flatten(0, 1))


def test_fingerprint_tells_sets_apart(faces):
    other = np.array(faces.identity)
    other[-1] += 1
    sets = [faces, dataclasses.replace(faces, identity=other), dataclasses.replace(faces, augmentation=AUGMENTATION),
            dataclasses.replace(faces, confidence=np.array(faces.confidence) * 0.5)]  # fmt: skip
    assert len({each.fingerprint() for each in sets}) == len(sets)
    assert dataclasses.replace(faces).fingerprint() == faces.fingerprint()
