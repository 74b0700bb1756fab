"""Heads in videos: the frame's coordinates, gaps, and the network that follows a face."""

import numpy as np
import pytest
import torch

from ringnet_ext import FLAME, RingNet, builtin_head
from ringnet_ext.detection.squares import cut_square, fit_square
from ringnet_ext.files import videos
from ringnet_ext.files.videos import Video, VideoError, record, write_video
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.geometry.camera import UPRIGHT, project, project_to_pixels, to_pixels
from ringnet_ext.geometry.rotations import matrix_from_axis_angle
from ringnet_ext.inference import video as video_module
from ringnet_ext.inference.finders import Found
from ringnet_ext.inference.reconstruction import reconstruction
from ringnet_ext.inference.video import (
    bridge,
    follow,
    in_whole_frame,
    overlays,
    pixels,
    through_pinhole,
    whole_frame,
)


def params(seed, pose=UPRIGHT):
    values = [torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) for size in (3, 3, 3, 100, 50)]
    return HeadParams(*values)._replace(global_pose=torch.tensor([pose], dtype=torch.float32))


@pytest.mark.parametrize("size", [(480, 360), (300, 500)])
def test_a_head_is_where_it_was_when_its_camera_sees_the_whole_frame(size):
    square = cut_square(np.zeros((size[1], size[0], 3), np.uint8), np.array([130.0, 210.5]), 187.3)
    one = params(0)._replace(camera=torch.tensor([[9.0, 0.01, -0.02]]))
    points = 0.1 * torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(1))
    inside = square.to_original(to_pixels(project(points, one.camera), 224)[0].numpy())
    whole = pixels(project(points, in_whole_frame(one, square, size).camera)[0].numpy(), size)
    assert np.abs(inside - whole).max() < 1e-3
    assert (
        np.abs(whole_frame(whole, size) - project(points, in_whole_frame(one, square, size).camera)[0].numpy()).max()
        < 1e-5
    )


def test_a_pinhole_s_head_is_drawn_where_the_pinhole_sees_it():
    """Near, and far from the middle, where no weak perspective is like it."""
    size, focal, translation = (400, 300), 1.5, np.array([0.2, 0.05, 0.6])
    flame, head = FLAME(), builtin_head()
    weak = torch.tensor([[focal / 0.6, 0.2, 0.05]])
    square = fit_square(np.zeros((300, 400, 3), np.uint8))
    face = reconstruction(flame, head, square, params(0)._replace(camera=weak))
    there = through_pinhole(face, focal, translation, size)

    def seen(points):
        x, y, z = (points + translation).T
        return np.column_stack([focal * x / z, focal * y / z]) * 200 + np.array(size) / 2

    drawn = square.to_original(project_to_pixels(there.image_vertices, weak[0].numpy(), 224)[:, :2])
    assert np.abs(drawn - seen(face.image_vertices)).max() < 0.01
    assert np.abs(there.landmarks - seen(face.in_frame(face.landmarks_3d, "ringnet"))).max() < 0.01
    assert np.abs(square.to_original(there.square_landmarks) - there.landmarks).max() < 0.01
    assert np.abs(there.landmarks - face.landmarks).max() > 5
    frames = [np.zeros((300, 400, 3), np.uint8)]
    arguments = flame, head, face.params, np.array([True])
    left, right = (
        np.nonzero(next(iter(overlays(frames, *arguments, pinhole))))[1].mean()
        for pinhole in ((np.array([focal]), translation[None]), None)
    )
    assert abs(left - right) > 5


class TestBridge:
    def test_what_is_known_stays(self):
        rows = [params(i, (np.pi - 0.3 * i, 0.2, 0.1 * i)) for i in range(3)]
        found = bridge(rows)
        for value, *parts in zip(found, *rows, strict=True):
            assert torch.equal(value, torch.cat(parts))

    def test_numbers_go_along_a_line_and_rotations_turn_evenly(self):
        first, last = params(0, (np.pi - 0.4, 0.3, 0.0)), params(1, (np.pi + 0.2, -0.5, 0.1))
        found = bridge([first, None, None, None, last])
        for name in ("camera", "shape", "expression"):
            ends = getattr(first, name), getattr(last, name)
            for i in range(5):
                assert torch.allclose(getattr(found, name)[i], torch.lerp(*ends, i / 4)[0], atol=1e-6)
        for name in ("global_pose", "jaw_pose"):
            turns = matrix_from_axis_angle(getattr(found, name).double())
            steps = turns[:-1].transpose(1, 2) @ turns[1:]
            angles = ((steps.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
            assert torch.allclose(angles, angles[0].expand(4), atol=1e-4) and angles[0] > 0.01
        # No vector jumps to the other one of its rotation.
        assert (found.global_pose - torch.tensor(UPRIGHT)).norm(dim=1).max() < 1

    def test_before_the_first_and_after_the_last_nothing_moves(self):
        first, last = params(0), params(1, (np.pi, 0.4, 0.0))
        found = bridge([None, None, first, last, None])
        for value, one, other in zip(found, first, last, strict=True):
            assert torch.allclose(value[:3], one.expand(3, -1), atol=1e-6)
            assert torch.allclose(value[3:], other.expand(2, -1), atol=1e-6)


@pytest.fixture
def clip(tmp_path):
    """30 frames, in which a white square moves; in six there is none. The file, and the square's middles."""
    frames, middles = [], []
    for i in range(30):
        frame, middle = np.full((120, 160, 3), 60, np.uint8), (30 + 3 * i, 60)
        if not 10 <= i < 16:
            frame[middle[1] - 20 : middle[1] + 20, middle[0] - 20 : middle[0] + 20] = 255
        frames.append(frame)
        middles.append(middle)
    write_video(tmp_path / "clip.mp4", frames, 20)
    return tmp_path / "clip.mp4", np.array(middles, float)


def bright(image):
    y, x = np.nonzero(image[..., 0] > 160)
    return (np.array([x.mean(), y.mean()]) + 0.5, len(x)) if len(x) > 200 else None


def test_a_face_is_followed_and_looked_for_where_it_was_lost(clip, monkeypatch):
    """By a network for which the face is what is white."""
    file, middles = clip
    model = RingNet()
    model.limit = 1.0  # it has learnt nothing: its landmarks follow the square
    searched = []

    def find(picture, image):
        searched.append(len(searched))
        if bright(image) is None:
            raise ValueError("no face")
        return [Found(cut_square(image, bright(image)[0], 50))]

    def settled(model, images, at, sides):
        seen = bright(images[0])
        near = seen is not None and np.abs(seen[0] - at[0]).max() < sides[0] / 2
        return (np.array([0]), seen[0][None], sides) if near else (np.zeros(0, int), np.zeros((0, 2)), np.zeros(0))

    monkeypatch.setattr(video_module, "settled", settled)
    heads = follow(model, Video(file), find)
    assert heads.seen.tolist() == [not 10 <= i < 16 for i in range(30)]
    assert np.isnan(heads.score[~heads.seen]).all() and np.isfinite(heads.score[heads.seen]).all()
    middle = (heads.landmarks.min(1) + heads.landmarks.max(1)) / 2
    assert np.abs(middle - middles).max() < 1.5  # in the gap too, which is along a line
    assert 3 <= len(searched) < 12
    assert np.array_equal(heads.params.shape.numpy(), np.repeat(heads.params.shape[:1].numpy(), 30, 0))


def test_no_face_anywhere(clip):
    def find(picture, image):
        raise ValueError("no face")

    with pytest.raises(ValueError, match=r"clip.mp4: no face in any of its 30 frames"):
        follow(RingNet(), Video(clip[0]), find)


def test_a_video_that_finds_no_room_is_said_and_leaves_the_former_one(tmp_path):
    resource = pytest.importorskip("resource")
    frames = [np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8) for i in range(20)]
    file = tmp_path / "v.mp4"
    assert write_video(file, frames[:3], 25) == 3
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match=r"v.mp4: cannot be written as a whole: is the disk full\?"):
            write_video(file, frames, 25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(Video(file))) == 3 and [each.name for each in tmp_path.iterdir()] == ["v.mp4"]


class TestCamera:
    def test_so_many_frames_are_recorded(self, clip, tmp_path, monkeypatch):
        """OpenCV's capture of a file in place of a camera's."""
        opened = videos.cv2.VideoCapture
        monkeypatch.setattr(
            videos.cv2, "VideoCapture", lambda what: opened(str(clip[0])) if what == 3 else opened(what)
        )
        assert record(tmp_path / "camera.mp4", 3, 7) == 7
        assert len(list(Video(tmp_path / "camera.mp4"))) == 7
        assert record(tmp_path / "all.mp4", 3) == 30 and Video(tmp_path / "all.mp4").fps == pytest.approx(20)

    def test_the_keyboard_s_interrupt_ends_it(self, tmp_path, monkeypatch):
        class Camera:
            frames = 0

            def __init__(self, number): ...
            def isOpened(self):
                return True

            def get(self, what):
                return 0.0

            def release(self): ...

            def read(self):
                Camera.frames += 1
                if Camera.frames > 5:
                    raise KeyboardInterrupt
                return True, np.zeros((48, 64, 3), np.uint8)

        capture = videos.cv2.VideoCapture
        monkeypatch.setattr(
            videos.cv2, "VideoCapture", lambda source: Camera(source) if source == 0 else capture(source)
        )
        assert record(tmp_path / "camera.mp4", 0) == 5
        assert len(list(Video(tmp_path / "camera.mp4"))) == 5

    def test_no_camera(self, tmp_path):
        with pytest.raises(VideoError, match="camera 97: there is none that OpenCV can open"):
            record(tmp_path / "camera.mp4", 97)
        assert not list(tmp_path.iterdir())
