"""Fitting: the optimum, against SciPy on the reference's formula; what is shared, tied, robust; how sure it says it
is."""

import math

import numpy as np
import pytest
import torch
from heads import random_model

from ringnet_ext import FLAME
from ringnet_ext.fitting import Priors, Walk, fit, fit_mesh
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.geometry.camera import UPRIGHT, project
from ringnet_ext.ops import reference

SCALE = 7.0  # of the camera: a face of 23 cm fills 0.8 of the image


@pytest.fixture(scope="module")
def flame():
    return FLAME()


@pytest.fixture(scope="module")
def small():
    """Fewer directions: quick, and in double."""
    return FLAME(shape_params=12, expression_params=6, dtype=torch.float64)


class Heads:
    """Random heads as the priors expect them, and their landmarks."""

    def __init__(self, flame, count, images=1, noise=0.0, seed=0, turn=0.3):
        g = torch.Generator().manual_seed(seed)
        n, like = count * images, flame.v_template

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(like)

        self.shape = normal(count, flame.shape_params)
        self.person = torch.arange(count).repeat_interleave(images)
        self.expression = 0.5 * normal(n, flame.expression_params)
        self.global_pose = like.new_tensor(UPRIGHT) + turn * normal(n, 3) * like.new_tensor([0.3, 1.0, 0.3])
        self.jaw_pose = 0.1 * normal(n, 3) * like.new_tensor([1.0, 0.2, 0.2])
        self.camera = torch.stack([SCALE * (0.1 * normal(n)).exp(), 0.01 * normal(n), 0.03 + 0.01 * normal(n)], dim=1)
        self.points = flame.landmarks(
            self.shape[self.person], self.expression, self.global_pose, jaw_pose=self.jaw_pose
        )
        seen = project(self.points, self.camera)
        self.landmarks = seen + noise * normal(*seen.shape)


def shape_error(flame, found, heads):
    """Of the neutral face, relative to the mean head's error."""
    truth, mean = flame(heads.shape).vertices, flame(torch.zeros_like(heads.shape)).vertices
    return float((flame(found).vertices - truth).norm(dim=-1).mean() / (mean - truth).norm(dim=-1).mean())


# The optimum


def objective(flame, heads, frames, x, sigma, priors):
    """The residuals of one person by the formula, in numbers that SciPy can turn: a frame's parameters after another's,
    then the shape."""
    E, S = flame.expression_params, flame.shape_params
    local, shape = torch.from_numpy(x[:-S]).view(len(frames), 9 + E), torch.from_numpy(x[-S:])
    camera = torch.cat([local[:, :1].exp(), local[:, 1:3]], dim=1)
    pose = torch.cat(
        [local[:, 3:6], torch.zeros(len(frames), 3), local[:, 6:9], torch.zeros(len(frames), 6)], dim=1
    ).double()
    betas = torch.cat([shape.expand(len(frames), -1), local[:, 9:]], dim=1)
    points = reference.flame_landmarks(betas, pose, *flame._body(), *flame._embedding())
    residuals = (project(points, camera) - heads.landmarks[frames]) / sigma
    rest = local[:, 6:9] / priors.jaw_pose, local[:, 9:] / priors.expression, shape / priors.shape
    return torch.cat([residuals.flatten(), *(value.flatten() for value in rest)]).numpy()


@pytest.mark.parametrize("images", [1, 3])
def test_the_optimum_is_scipys(small, images):
    from scipy.optimize import least_squares

    heads, priors, sigma = Heads(small, 4, images, noise=0.01), Priors(), 0.01
    found = fit(small, heads.landmarks, person=heads.person, sigma=sigma, priors=priors, tolerance=1e-12, iterations=50)
    assert found.stopped == ["converged"] * 4
    for g in range(4):
        frames = (heads.person == g).nonzero()[:, 0]
        p = found.params
        rows = torch.cat([p.camera[:, :1].log(), p.camera[:, 1:], p.global_pose, p.jaw_pose, p.expression], dim=1)[
            frames
        ]
        x = torch.cat([rows.flatten(), p.shape[frames[0]]]).numpy()
        ours = 0.5 * (objective(small, heads, frames, x, sigma, priors) ** 2).sum()
        assert float(found.objective[g]) == pytest.approx(ours, rel=1e-9)
        theirs = least_squares(
            lambda y: objective(small, heads, frames, y, sigma, priors), x + 0.02, x_scale="jac", method="trf"
        )
        assert ours <= theirs.cost * (1 + 1e-6)


def test_another_start_ends_there_too(flame):
    heads = Heads(flame, 24, noise=0.003)
    near = HeadParams(
        heads.camera, heads.global_pose, heads.jaw_pose, 0.5 * torch.randn(24, 100), 0.25 * torch.randn(24, 50)
    )
    one, two = (fit(flame, heads.landmarks, sigma=0.003, start=start, iterations=60) for start in (None, near))
    # The contour jumps from one row of its table to the next: some heads have two minima.
    same = (one.objective - two.objective).abs() < 1e-3 * one.objective
    assert (
        same.float().mean() > 0.85 and (one.objective.mean() - two.objective.mean()).abs() < 0.02 * one.objective.mean()
    )


def test_a_person_does_not_depend_on_the_others_or_on_the_order(small):
    heads = Heads(small, 5, 2, noise=0.01)
    together = fit(small, heads.landmarks, person=heads.person)
    mixed = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = fit(small, heads.landmarks[mixed], person=[f"person {g}" for g in heads.person[mixed].tolist()])
    assert torch.allclose(shuffled.params.shape, together.params.shape[mixed], atol=1e-6)
    alone = fit(small, heads.landmarks[:2], person=[0, 0])
    assert torch.allclose(alone.params.to_vector(), together.params.to_vector()[:2], atol=1e-6)


def test_more_images_of_a_person_say_more(flame):
    errors = []
    for images in (1, 6):
        heads = Heads(flame, 20, images, noise=0.003)
        found = fit(flame, heads.landmarks, person=heads.person, sigma=0.003)
        assert found.shape.shape == (20, 100) and not found.failed
        errors.append(shape_error(flame, found.shape, heads))
    assert errors[1] < 0.8 * errors[0] < 0.8 * 0.5


def test_any_pose_is_found(flame):
    """Also heads that lie on their side or upside down in the image, up to a profile."""
    n = 24
    heads = Heads(flame, n)
    roll, yaw = torch.linspace(-3, 3, n), torch.linspace(-1.2, 1.2, n)
    zero = torch.zeros(n)
    turns = [
        torch.stack(axis, dim=1)
        for axis in ((zero, zero, roll), (torch.full((n,), math.pi), zero, zero), (zero, yaw, zero))
    ]
    a, b, c = (reference.batch_rodrigues(turn) for turn in turns)
    from ringnet_ext.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle

    pose = axis_angle_from_matrix(a @ b @ c)
    points = flame.landmarks(heads.shape, heads.expression, pose, jaw_pose=heads.jaw_pose)
    found = fit(flame, project(points, heads.camera), sigma=0.003)
    off = matrix_from_axis_angle(found.params.global_pose.contiguous()).transpose(1, 2) @ matrix_from_axis_angle(pose)
    angle = torch.acos(((off.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert float(angle.max()) < 0.3 and float(found.residuals.max()) < 0.05


# How sure


def test_the_truth_is_as_far_off_as_is_said(flame):
    """With the priors' own heads and the noise that is said."""
    heads = Heads(flame, 120, 1, noise=0.01, seed=5)
    found = fit(flame, heads.landmarks, sigma=0.01, priors=Priors(jaw_pose=0.1))
    off = ((found.shape - heads.shape) / found.shape_std).abs()
    assert abs(float((off < 1).float().mean()) - 0.683) < 0.03
    assert abs(float((off < 2).float().mean()) - 0.954) < 0.02
    assert found.std["expression"].shape == (120, 50) and float(found.std["expression"].max()) <= 0.5 + 1e-4
    # Of the vertices: nothing known gives the prior's spread, what is seen less.
    spread = flame.shapedirs[..., :100].square().sum((1, 2)).sqrt()
    some = found.vertex_std()[:3]
    assert (
        some.shape == (3, 5023)
        and (some <= spread * (1 + 1e-3)).all()
        and float(some.mean()) < 0.8 * float(spread.mean())
    )


def test_no_gradient_flows_to_the_landmarks(small):
    landmarks = Heads(small, 2).landmarks.requires_grad_()
    for found in (fit(small, landmarks, sigma=None), fit(small, landmarks, person=[0, 0], video=True)):
        tensors = *found.params, found.landmarks, found.residuals, found.shape_std, found.vertex_std()
        assert not any(t.requires_grad for t in tensors)


def test_sigma_is_estimated(flame):
    heads = Heads(flame, 60, 2, noise=0.02)
    assert fit(flame, heads.landmarks, person=heads.person, sigma=None).sigma == pytest.approx(0.02, rel=0.05)


def test_confidence_counts_as_seen_that_often(small):
    heads = Heads(small, 3, noise=0.01)
    twice = fit(small, heads.landmarks, confidence=torch.full((3, 68), 4.0), sigma=0.02)
    assert torch.allclose(twice.params.shape, fit(small, heads.landmarks, sigma=0.01).params.shape, atol=1e-6)


def test_landmarks_thrown_anywhere(flame):
    heads = Heads(flame, 40, noise=0.003)
    g = torch.Generator().manual_seed(3)
    bad = torch.rand(40, 68, generator=g) < 0.1
    thrown = torch.where(bad[..., None], 2 * torch.rand(40, 68, 2, generator=g) - 1, heads.landmarks)
    clean = shape_error(flame, fit(flame, heads.landmarks, sigma=0.003).shape, heads)
    robust = fit(flame, thrown, sigma=0.003, robust="geman-mcclure")
    assert shape_error(flame, robust.shape, heads) < 1.15 * clean
    assert shape_error(flame, fit(flame, thrown, sigma=0.003).shape, heads) > 2 * clean
    assert float(robust.residuals[bad].median()) > 20 * float(robust.residuals[~bad].median())


# Cameras


@pytest.fixture(scope="module")
def close_up(flame):
    """Faces at 0.4 to 1.5 m before a pinhole camera, that look as large from everywhere: landmarks, focal length,
    heads."""
    heads = Heads(flame, 12, 6)
    distance = torch.linspace(0.4, 1.5, 12)[heads.person]
    focal = SCALE * distance
    moved = (
        heads.points
        + torch.stack([0.01 * torch.ones_like(distance), torch.full_like(distance, 0.03), distance], dim=1)[:, None]
    )
    return focal[:, None, None] * moved[..., :2] / moved[..., 2:], focal, heads


def test_a_pinhole_camera_that_is_known(flame, close_up):
    landmarks, focal, heads = close_up
    found = fit(flame, landmarks, person=heads.person, sigma=0.003, camera="perspective", focal=focal)
    weak = fit(flame, project(heads.points, heads.camera), person=heads.person, sigma=0.003)
    assert shape_error(flame, found.shape, heads) < 1.05 * shape_error(flame, weak.shape, heads)
    assert shape_error(flame, fit(flame, landmarks, person=heads.person, sigma=0.003).shape, heads) > 2 * shape_error(
        flame, found.shape, heads
    )
    assert torch.allclose(found.translation[:, 2], focal / SCALE, rtol=0.05)


def test_a_focal_length_is_found_from_six_images(flame, close_up):
    landmarks, focal, heads = close_up
    found = fit(flame, landmarks, person=heads.person, sigma=0.003, camera="perspective")
    assert torch.equal(found.focal[0::6], found.focal[5::6])
    assert float((found.focal / focal - 1).abs().median()) < 0.1


def test_one_camera_of_all_people_is_known_better(flame):
    """One camera, twelve people at 0.4 to 1.5 m from it, two images each: its focal length is what all of them say."""
    heads = Heads(flame, 12, 2, noise=0.0)
    noise = 0.003 * torch.randn(24, 68, 2, generator=torch.Generator().manual_seed(1))
    distance = torch.linspace(0.4, 1.5, 12)[heads.person]
    at = torch.stack([torch.zeros(24), torch.full((24,), 0.03), distance], dim=1)
    moved = heads.points + at[:, None]
    landmarks = 2.5 * moved[..., :2] / moved[..., 2:] + noise
    options = {"person": heads.person, "sigma": 0.003, "camera": "perspective"}
    own = fit(flame, landmarks, **options)
    one = fit(flame, landmarks, roles={"focal": "all"}, **options)
    assert one.focal.unique().numel() == 1 and own.focal.unique().numel() == 12
    off = (one.focal / 2.5 - 1).abs()[0]
    assert off < 0.1 and off < 0.5 * (own.focal / 2.5 - 1).abs().mean()
    assert one.iterations.unique().numel() == 1 and len(set(one.stopped)) == 1  # one step and one end for all
    assert one.std["log_focal"].shape == (1, 1) and one.std["log_focal"][0, 0] < own.std["log_focal"].min()
    assert one.std["shape"].shape == (12, 100)


def everybody(flame, heads, x, sigma, priors):
    """The residuals of all people by the formula, with one focal length: the images' parameters, the people's shapes,
    the focal length's logarithm."""
    n, E, S, G = len(heads.landmarks), flame.expression_params, flame.shape_params, len(heads.shape)
    x = torch.from_numpy(x)
    local, shape, focal = x[: n * (9 + E)].view(n, -1), x[n * (9 + E) : -1].view(G, S), x[-1].exp()
    none = local.new_zeros(n, 3)
    pose = torch.cat([local[:, 3:6], none, local[:, 6:9], none, none], dim=1)
    points = reference.flame_landmarks(
        torch.cat([shape[heads.person], local[:, 9:]], dim=1), pose, *flame._body(), *flame._embedding()
    )
    distance = focal / local[:, :1].exp()
    moved = points + torch.cat([local[:, 1:3], distance], dim=1)[:, None]
    seen = focal * moved[..., :2] / moved[..., 2:]
    rest = local[:, 6:9] / priors.jaw_pose, local[:, 9:] / priors.expression, shape / priors.shape
    lens = (x[-1:] - math.log(priors.focal)) / priors.log_focal
    off = (seen - heads.landmarks) / sigma
    return torch.cat([off.flatten(), *(value.flatten() for value in rest), lens]).numpy()


def test_the_optimum_of_what_all_share_is_scipys(small):
    from scipy.optimize import least_squares

    heads, priors, sigma = Heads(small, 2, 2, noise=0.005), Priors(log_focal=0.3), 0.005
    found = fit(
        small, heads.landmarks, person=heads.person, sigma=sigma, camera="perspective", roles={"focal": "all"},
        priors=priors, tolerance=1e-13, iterations=100,
    )  # fmt: skip
    p, T = found.params, found.translation
    rows = [(found.focal / T[:, 2]).log()[:, None], T[:, :2], p.global_pose, p.jaw_pose, p.expression]
    x = torch.cat([torch.cat(rows, dim=1).flatten(), found.shape.flatten(), found.focal[:1].log()]).numpy()
    ours = 0.5 * (everybody(small, heads, x, sigma, priors) ** 2).sum()
    assert float(found.objective.sum()) == pytest.approx(ours, rel=1e-9)
    theirs = least_squares(lambda y: everybody(small, heads, y, sigma, priors), x + 0.01, x_scale="jac", max_nfev=12)
    assert ours <= theirs.cost * (1 + 1e-6)


@pytest.mark.parametrize("video", [False, True])
def test_what_all_share_of_one_person_is_the_persons(small, video):
    heads = Heads(small, 1, 6, noise=0.01)
    common = {"person": [0] * 6, "video": video, "camera": "perspective", "tolerance": 1e-12, "iterations": 60}
    mine, all_of_it = (fit(small, heads.landmarks, roles={"focal": role}, **common) for role in ("person", "all"))
    assert torch.allclose(mine.focal, all_of_it.focal, rtol=1e-4)
    assert torch.allclose(mine.std["log_focal"], all_of_it.std["log_focal"], rtol=1e-3)


def test_who_cannot_be_fitted_spoils_nothing_that_all_share(small):
    heads = Heads(small, 3, 2, noise=0.005)
    options = {"camera": "perspective", "roles": {"focal": "all"}, "sigma": 0.005}
    broken = heads.landmarks.clone()
    broken[2:4] = torch.nan
    found = fit(small, broken, person=heads.person, **options)
    assert list(found.failed) == [1] and found.params.to_vector().isfinite().all()
    others = fit(small, broken[[0, 1, 4, 5]], person=[0, 0, 1, 1], **options)
    assert torch.allclose(found.focal[[0, 1, 4, 5]], others.focal, rtol=1e-3)


def test_the_principal_point_moves_the_image(flame, close_up):
    landmarks, focal, heads = close_up
    options = {"person": heads.person, "camera": "perspective", "focal": focal}
    here = fit(flame, landmarks, **options)
    there = fit(flame, landmarks + torch.tensor([0.2, -0.1]), center=(0.2, -0.1), **options)
    assert float((here.params.shape - there.params.shape).abs().max()) < 0.02


def views():
    matrices = []
    for turn in (-0.6, 0.0, 0.6):
        c, s = math.cos(turn), math.sin(turn)
        pose = torch.tensor([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 1.0]])
        matrices.append(torch.diag(torch.tensor([6.0, 6.0, 1.0])) @ pose)
    return torch.stack(matrices)


def test_calibrated_views_of_one_moment(flame):
    heads, P = Heads(flame, 10), views()
    at = torch.einsum("vij,nkj->nvki", P, torch.cat([heads.points, torch.ones(10, 68, 1)], dim=-1))
    landmarks = at[..., :2] / at[..., 2:]
    found = fit(flame, landmarks, views=P, sigma=0.003)
    assert found.landmarks.shape == (10, 3, 68, 2) and found.residuals.shape == (10, 3, 68)
    assert float(found.residuals.mean()) < 0.002
    one = fit(flame, landmarks[:, 1], sigma=0.003, camera="perspective", focal=6.0)
    assert shape_error(flame, found.shape, heads) < 0.9 * shape_error(flame, one.shape, heads)


def test_points_in_space_and_points_of_ones_own(flame):
    heads = Heads(flame, 6)
    found = fit(flame, heads.points + 0.2, sigma=0.0003)
    assert float(found.residuals.max()) < 0.002
    g = torch.Generator().manual_seed(0)
    triangles, bary = torch.randint(len(flame.faces), (300,), generator=g), torch.rand(300, 3, generator=g)
    bary = bary / bary.sum(1, keepdim=True)
    vertices = flame(heads.shape, heads.expression, heads.global_pose, jaw_pose=heads.jaw_pose).vertices
    own = reference.vertices2landmarks(vertices, flame.faces, triangles.expand(6, -1), bary.expand(6, -1, -1))
    more = fit(flame, own, points=(triangles, bary), sigma=0.0003)
    assert shape_error(flame, more.shape, heads) < shape_error(flame, found.shape, heads)


def test_a_mesh_gives_its_parameters(flame):
    n, g = 4, torch.Generator().manual_seed(2)

    def normal(width, scale):
        return scale * torch.randn(n, width, generator=g)

    given = (
        normal(100, 1),
        normal(50, 0.7),
        normal(3, 0.8),
        normal(3, 0.2),
        normal(3, 0.2),
        normal(6, 0.2),
        normal(3, 0.1),
    )
    vertices = flame(*given).vertices
    found = fit_mesh(flame, vertices, roles=None)
    assert (
        float((flame(*(value.float() for value in found.flame_params)).vertices - vertices).norm(dim=-1).max()) < 1e-5
    )
    assert int(found.iterations.max()) <= 10


# Videos


@pytest.fixture(scope="module")
def talking(flame):
    """A talking head that turns, 500 frames, with noise, ten of them without a face."""
    n, g = 500, torch.Generator().manual_seed(4)
    time = torch.arange(n) / 25
    jaw, pose = torch.zeros(n, 3), torch.zeros(n, 3)
    jaw[:, 0] = 0.12 * (1 - torch.cos(2 * math.pi * 1.5 * time))
    pose[:, 0], pose[:, 1] = math.pi, 0.4 * torch.sin(time)
    expression = 0.3 * torch.sin(time[:, None] * torch.linspace(1, 5, 50) + torch.arange(50))
    shape = torch.randn(1, 100, generator=g).expand(n, -1)
    points = flame.landmarks(shape, expression, pose, jaw_pose=jaw)
    landmarks = project(points, torch.tensor([[SCALE, 0.0, 0.03]])) + 0.01 * torch.randn(n, 68, 2, generator=g)
    landmarks[70:80] = torch.nan
    return landmarks, pose, jaw


def test_a_video_is_smooth_and_does_not_lag(flame, talking):
    landmarks, pose, jaw = talking
    seen = landmarks.isfinite().all(-1).all(-1)
    still = fit(flame, landmarks, person=[0] * len(landmarks))
    video = fit(flame, landmarks, person=[0] * len(landmarks), video=True)

    def jitter(found):
        off = (found.params.jaw_pose - jaw)[:70, 0]
        return float((off[2:] - 2 * off[1:-1] + off[:-2]).std())

    def pose_error(found, where):
        return float((found.params.global_pose - pose)[where].norm(dim=1).mean())

    assert jitter(video) < jitter(still) / 3
    assert pose_error(video, seen) < pose_error(still, seen)
    assert pose_error(video, ~seen) < 0.1 and not video.failed and video.residuals[~seen].isnan().all()
    moved = video.params.jaw_pose[:70, 0]
    lags = {lag: float(np.corrcoef(moved[5 + lag : 65 + lag], jaw[5:65, 0])[0, 1]) for lag in (-1, 0, 1)}
    assert max(lags, key=lags.get) == 0
    # In the gap only the neighbours know.
    assert float(video.std["global_pose"][75].min()) > 2 * float(video.std["global_pose"][30].max())


def test_a_step_asks_for_memory_that_grows_with_the_frames_and_with_nothing_else(small):
    """A frame more costs the same bytes in a short video and in a long one, fewer than half its derivatives have."""
    from torch.profiler import ProfilerActivity, profile

    heads = Heads(small, 1, 8, noise=0.01)
    lengths, most = (256, 512, 1024), []
    for n in lengths:
        landmarks = heads.landmarks.repeat(n // 8, 1, 1)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            fit(small, landmarks, person=[0] * n, video=True, iterations=1)
        now = peak = 0
        for event in seen.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        most.append(peak)
    a_frame = [(b - a) / (n - m) for a, b, m, n in zip(most, most[1:], lengths, lengths[1:], strict=False)]
    derivatives = 8 * 2 * 68 * (9 + small.expression_params + small.shape_params)
    assert 0 < a_frame[1] < 1.25 * a_frame[0]
    assert a_frame[1] < derivatives / 2


def test_several_videos_at_once_are_each_on_its_own(small):
    heads = Heads(small, 3, 40, noise=0.01)
    person = heads.person[:100]  # the last one is shorter
    together = fit(small, heads.landmarks[:100], person=person, video=True, iterations=3)
    for g in range(3):
        of = person == g
        alone = fit(small, heads.landmarks[:100][of], person=person[of], video=True, iterations=3)
        assert float(alone.objective[0]) == pytest.approx(float(together.objective[g]), rel=1e-9)
        assert torch.allclose(alone.params.to_vector(), together.params.to_vector()[of], atol=1e-7)
        assert torch.allclose(alone.shape_std[0], together.shape_std[g], rtol=1e-6)


def test_frames_without_ties_are_images(small):
    heads = Heads(small, 1, 6, noise=0.01)
    images = fit(small, heads.landmarks, person=heads.person)
    loose = fit(small, heads.landmarks, person=heads.person, video=True, walk=Walk().times(1e4))
    assert torch.allclose(images.params.to_vector(), loose.params.to_vector(), atol=1e-4)


# Input


def test_what_cannot_be_fitted_is_named_and_spoils_nobody(small):
    heads = Heads(small, 4, 2, noise=0.01)
    broken = heads.landmarks.clone()
    broken[2:4] = torch.nan  # the second person
    broken[4, :63] = torch.nan  # of the third one's first image too little is left
    found = fit(small, broken, person=heads.person)
    assert list(found.failed) == [1] and "no image with at least" in found.failed[1]
    whole = fit(small, heads.landmarks, person=heads.person)
    assert torch.allclose(found.params.to_vector()[[0, 1, 6, 7]], whole.params.to_vector()[[0, 1, 6, 7]], atol=1e-7)
    assert found.params.to_vector().isfinite().all() and found.std["shape"].isfinite().all()
    nobody = fit(small, heads.landmarks[:0])
    assert nobody.params.shape.shape == (0, 12) and nobody.vertex_std().shape == (0, 5023)


@pytest.mark.parametrize("role, rows", [("fixed", 2), ("all", 2), ("image", 3)])
def test_how_sure_it_is_of_a_shape_that_is_given_or_everybodys(small, role, rows):
    found = fit(small, Heads(small, 3).landmarks, person=[0, 0, 1], roles={"shape": role})
    assert found.shape_std.shape == (rows, 12) and found.vertex_std().shape == (rows, 5023)
    assert bool(found.shape_std.any()) == bool(found.vertex_std().any()) == (role != "fixed")
    if role != "fixed":
        assert torch.allclose(found.shape_std, found.std["shape"].expand(rows, -1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"landmarks": torch.zeros(2, 67, 2)}, r"landmarks: expected shape \(N, 68, 2 or 3\), got \(2, 67, 2\)"),
        ({"landmarks": torch.zeros(2, 68, 4)}, "landmarks: expected shape"),
        ({"person": [0]}, "person: expected 2 labels, one an image, got 1"),
        ({"confidence": torch.ones(2, 67)}, r"confidence: expected shape \(2, 68\), got \(2, 67\)"),
        ({"confidence": -torch.ones(2, 68)}, "confidence: expected finite numbers that are not negative"),
        ({"sigma": 0.0}, "sigma: expected a positive number"),
        ({"camera": "fisheye"}, "camera: expected weak or perspective, got 'fisheye'"),
        ({"robust": "cauchy"}, "robust: expected huber, geman-mcclure or None, got 'cauchy'"),
        ({"roles": {"focal": "all"}}, "roles: a focal length has only the perspective camera"),
        ({"roles": {"jaw": "fixed"}}, "roles: expected some of .*, got 'jaw'"),
        ({"roles": {"jaw_pose": "none"}}, "roles: expected image, person, all or fixed for jaw_pose, got 'none'"),
        ({"priors": Priors(shape=-1.0)}, "priors.shape: expected a positive number or None, got -1.0"),
        (
            {"views": torch.zeros(2, 3, 3), "landmarks": torch.zeros(2, 2, 68, 2)},
            r"views: expected shape \(views, 3, 4\), got \(2, 3, 3\)",
        ),
        (
            {"points": (torch.zeros(5, dtype=torch.int64), torch.zeros(4, 3))},
            "points: expected barycentric coordinates",
        ),
    ],
)
def test_bad_input_is_named(small, change, message):
    arguments = {"landmarks": torch.zeros(2, 68, 2)} | change
    with pytest.raises(ValueError, match=message):
        fit(small, arguments.pop("landmarks"), **arguments)


def test_landmarks_are_a_tensor(small):
    with pytest.raises(TypeError, match="landmarks: expected a tensor, got list"):
        fit(small, [[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"vertices: expected shape \(N, 5023, 3\), got \(1, 10, 3\)"):
        fit_mesh(small, torch.zeros(1, 10, 3))


def test_other_joints_than_flames_are_refused():
    with pytest.raises(ValueError, match="flame: expected a layer with FLAME's 5 joints, got one with 3"):
        fit(FLAME(random_model(J=3)), torch.zeros(1, 68, 2))
