"""The pipeline: the same faces whatever they are computed with, in order, bounded; and RingNet.reconstruct on it."""

import pickle
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ringnet_ext import RingNet
from ringnet_ext.detection.squares import cut_square, fit_square
from ringnet_ext.files.images import ImageError, write_image
from ringnet_ext.inference import finders
from ringnet_ext.inference.finders import Found, whole
from ringnet_ext.inference.pipeline import ahead, batch_of, pictures_from, reconstruct_all, side_by_side


@pytest.fixture(scope="module", params=["compact", "resnet50"])
def model(request):
    torch.manual_seed(0)
    return some_answers(RingNet(encoder=request.param))


@pytest.fixture(scope="module")
def compact():
    torch.manual_seed(0)
    return some_answers(RingNet())


def some_answers(model):
    """Weights with which answers differ from image to image."""
    with torch.no_grad():
        for value in model.regressor.parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, std=0.02)
    model.limit = 0.9
    return model.eval()


def images(count, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(count)]


def vectors(model, pictures, batch):
    return np.concatenate(
        [
            face.reconstruction.params.to_vector().numpy()
            for outcome in reconstruct_all(model, pictures_from(pictures), whole, batch=batch, trust=False)
            for face in outcome.faces
        ]
    )


class TestPipeline:
    def test_a_face_s_numbers_don_t_depend_on_its_company(self, model):
        """To the last bit with the usual batch, where the library of matrix products takes all its rows alike, as MKL
        does; within 1e-6 of the largest with others."""
        usual = batch_of(model)
        count = usual + 1 if model.encoder.light else 4  # more than one batch, or one that is filled up
        some = images(count)
        together = vectors(model, some, usual)
        assert np.abs(together - together[0]).max() > 1e-4
        order = np.random.default_rng(1).permutation(count)
        for which, batch in [(order, usual), (order[:3], usual), (order[:3], 1), (order[:2], 2), (order[:3], 5)]:
            found = vectors(model, [some[i] for i in which], batch)
            assert np.abs(found - together[which]).max() < 1e-6 * np.abs(together).max()
            if batch == usual and torch.backends.mkl.is_available():
                assert np.array_equal(found, together[which])

    def test_vertices_neither(self, compact):
        def vertices(pictures, batch):
            return [
                o.faces[0].reconstruction.vertices
                for o in reconstruct_all(compact, pictures_from(pictures), whole, batch=batch)
            ]

        some = images(6)
        for one, other in zip(vertices(some, 4), vertices(some[::-1], 4)[::-1], strict=True):
            assert np.abs(one - other).max() < 1e-7

    def test_outcomes_are_in_order_with_their_errors(self, compact):
        def find(picture, image):
            number = int(picture.name)
            time.sleep(0.01 * (number % 3))
            if number == 2:
                raise ValueError("nobody there")
            return (
                [Found(fit_square(image)), ValueError("not this one")]
                if number == 3
                else [Found(fit_square(image))] * (number % 2 + 1)
            )

        some = [*images(4), np.zeros((3, 3, 3), np.uint8), *images(2)]
        outcomes = list(reconstruct_all(compact, pictures_from(some), find, batch=2))
        assert [o.picture.name for o in outcomes] == list("0123456")
        assert [len(o.faces) for o in outcomes] == [1, 2, 0, 2, 0, 2, 1]
        assert str(outcomes[2].error) == "nobody there" and "3 x 3 pixels" in str(outcomes[4].error)
        assert [face.error is None for face in outcomes[3].faces] == [True, False]
        assert [face.number for face in outcomes[3].faces] == [1, 2]

    def test_what_is_not_of_one_picture_stops_it(self, compact):
        def find(picture, image):
            raise ZeroDivisionError("a mistake of ours")

        with pytest.raises(ZeroDivisionError):
            list(reconstruct_all(compact, pictures_from(images(3)), find))

    def test_however_many_pictures_only_some_are_on_the_way(self, compact):
        """Whether the finishing, or whoever takes the outcomes, is slow."""
        taken, finished, yielded = [], [], 0
        lock, most = threading.Lock(), 0

        def pictures():
            for picture in pictures_from(images(80)):
                taken.append(picture)
                yield picture

        def finish(outcome):
            time.sleep(0.002)
            with lock:
                finished.append(outcome)
            return outcome

        for _ in reconstruct_all(compact, pictures(), whole, finish, batch=2, threads=2):
            yielded += 1
            most = max(most, len(taken) - yielded)
        assert yielded == 80 and most <= 3 * 2 * 2 + 2 + 1
        assert len(finished) == 80

    def test_it_can_be_left(self, compact):
        finished = []
        outcomes = reconstruct_all(
            compact, pictures_from(images(40)), whole, lambda o: finished.append(o) or o, batch=2
        )
        next(outcomes)
        outcomes.close()
        count = len(finished)
        assert count < 40
        time.sleep(0.05)
        assert len(finished) == count  # nothing goes on behind one's back


class TestThreads:
    def test_order_and_bound(self):
        taken = []
        items = (taken.append(i) or i for i in range(50))
        found = side_by_side(lambda i: (time.sleep(0.002 * (i % 3)), i)[1], items, threads=3)
        assert next(found) == 0 and len(taken) < 20
        assert list(found) == list(range(1, 50))

    def test_errors_come_where_their_item_was(self):
        found = side_by_side(lambda i: 1 // (3 - i), range(9), threads=2)
        assert [next(found) for _ in range(3)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(found)

    def test_ahead(self):
        def failing():
            yield 1
            raise OSError("read error")

        coming = ahead(failing())
        assert next(coming) == 1
        with pytest.raises(OSError):
            next(coming)
        assert list(ahead([])) == []


@pytest.fixture
def boxed(monkeypatch):
    """The network, which has learnt nothing, takes every box for a face."""

    def find_face(model, image, box=None):
        if box is None:
            return fit_square(image)
        middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
        return cut_square(image, middle, box[2] - box[0])

    monkeypatch.setattr(finders, "find_face", find_face)


class TestReconstruct:
    def test_one_gives_one_and_many_give_many(self, compact, boxed, tmp_path):
        some = images(3)
        for i, image in enumerate(some):
            write_image(tmp_path / f"{i}.png", image)
        single = compact.reconstruct(some[0])
        tensors = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2)
        for many in (
            some,
            tuple(some),
            np.stack(some),
            tensors,
            list(tensors),
            [Image.fromarray(image) for image in some],
            (image for image in some),
            [tmp_path / f"{i}.png" for i in range(3)],
            [fit_square(image) for image in some],
        ):
            faces = compact.reconstruct(many)
            assert len(faces) == 3 and [face.source for face in faces] == [0, 1, 2]
            assert np.abs(faces[0].vertices - single.vertices).max() < 1e-6
        assert compact.reconstruct([]) == []
        assert len(compact.reconstruct(some[:1])) == 1

    def test_boxes(self, compact, boxed):
        image = images(1)[0]
        face = compact.reconstruct(image, boxes=[4, 4, 36, 36])
        assert np.allclose(face.square.to_original(np.array([[0, 0], [224, 224]])), [[4, 4], [36, 36]])
        with pytest.raises(ValueError, match="boxes: expected one box for each of 2 images, got 1"):
            compact.reconstruct([image, image], boxes=[[4, 4, 36, 36]])
        with pytest.raises(ValueError, match=r"boxes: expected shape \(4,\), got \(5,\)"):
            compact.reconstruct(image, boxes=[1, 2, 3, 4, 5])

    def test_a_detector_gives_all_faces(self, compact):
        class Detector:
            version = "1"

            def __call__(self, image):
                raise AssertionError("expected to be asked for all faces")

            def faces(self, image):
                from ringnet_ext.flame import FLAME

                face = 100 * FLAME().landmarks()[0, :, :2].numpy() * (1, -1) + [0, 20]
                return [(face + [x, 0], np.ones(68)) for x in range(60, 0, -20)][: int(image[0, 0, 0])]

        from ringnet_ext.detection.detectors import Detectors

        some = [np.full((50, 90, 3), count, np.uint8) for count in (2, 1, 3)]
        faces = compact.reconstruct(some, detector=Detectors(Detector, 2))
        assert [face.source for face in faces] == [0, 0, 1, 2, 2, 2]
        middles = [face.square.to_original(np.full(2, 112.0))[0] for face in faces]
        assert middles[0] < middles[1] and middles[3] < middles[4] < middles[5]
        assert len(compact.reconstruct(some[0], detector=Detectors(Detector, 1))) == 2

    def test_what_is_no_detector_is_named(self, compact):
        with pytest.raises(ValueError, match="detector: expected FaceBoxes or Detectors, got str"):
            compact.reconstruct(images(1)[0], detector="yunet.onnx")

    def test_a_face_can_be_copied_kept_in_sets_and_laid_over_its_picture_in_any_form(self, compact, boxed):
        image = images(1)[0]
        face = compact.reconstruct(image)
        other = pickle.loads(pickle.dumps(face))
        assert np.array_equal(other.vertices, face.vertices) and len({face, other, face}) == 2
        assert [other, face].index(face) == 1 and len(repr(face)) < 100
        grey = np.ascontiguousarray(image[..., 0])
        expected = face.overlay(np.repeat(grey[..., None], 3, axis=2))
        for form in (grey, Image.fromarray(grey), torch.from_numpy(grey)[None], grey / 255.0):
            assert np.array_equal(face.overlay(form), expected)
        with pytest.raises(ValueError, match=r"kinds: expected a list of names, such as \['json'\], got 'json'"):
            face.save("nowhere", "x", "json")

    def test_a_pickled_face_needs_no_device(self, device, boxed):
        face = some_answers(RingNet()).to(device).reconstruct(images(1)[0])
        content = pickle.dumps(face)
        assert b"cuda" not in content
        assert np.allclose(pickle.loads(content).neutral_vertices, face.neutral_vertices, atol=1e-6)

    def test_errors_name_the_image(self, compact, boxed, tmp_path):
        good = images(1)[0]
        with pytest.raises(ValueError, match=r"^images\[1\]: expected floating point values from 0 to 1, got nan"):
            compact.reconstruct([good, np.full((40, 40, 3), np.nan)])
        with pytest.raises(ValueError, match=r"^image: expected uint8, uint16 or floating point, got int32"):
            compact.reconstruct(good.astype(np.int32))
        square = fit_square(good)
        for pixels in (square.image.astype(np.float32), square.image[:200], square.image[..., 0]):
            with pytest.raises(ValueError, match=r"^image: expected a square of \(S, S, 3\) uint8, got \(2"):
                compact.reconstruct(square._replace(image=pixels))
        (tmp_path / "no image.png").write_text("text")
        with pytest.raises(ImageError, match=r"no image.png: not an image"):
            compact.reconstruct([good, tmp_path / "no image.png"])
        (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(20))
        with pytest.raises(ImageError, match=r"video.mp4: not an image, or a damaged one$"):
            compact.reconstruct(tmp_path / "video.mp4")
        with pytest.raises(FileNotFoundError, match=r"nothing.png: no such image"):
            compact.reconstruct(tmp_path / "nothing.png")
        with pytest.raises(ValueError, match="expected one of them at most"):
            compact.reconstruct(good, boxes=[4, 4, 36, 36], landmarks=np.zeros((68, 2)))

    def test_it_leaves_the_mode_as_it_was(self, compact, boxed):
        compact.train()
        compact.reconstruct(images(1)[0])
        assert compact.training
        compact.eval()
