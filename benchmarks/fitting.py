"""How long until a head is fitted: python benchmarks/fitting.py [--json FILE] prints a markdown table.

Held-out people as training has them (the built-in head, exact 2D landmarks of one image each), from the mean head in a
frontal pose, which is moved and scaled to the landmarks' box. Everybody minimises the same objective over the same
parameters: camera, rotation, jaw, 50 expression and 100 shape coefficients; sigma 0.003. Time counts until the
objective, the mean over the people, is within 0.1 % of the optimum; who doesn't get there in the steps or the seconds
allowed is listed with where it got.

- ours: ringnet_ext.fit.
- Adam, L-BFGS: torch.optim's, on smplx's lbs and vertices2landmarks (without smplx, on the reference), parameters in
  units of their priors.
- SciPy: least_squares (trf) on the reference, derivatives by forward differentiation, one person after the other.

Then a video of a talking head, of --frames frames and of a quarter of them, with noise: time and memory should grow
with the frames. Memory is how far the process's peak grows, so each length has a process of its own.
"""

import argparse
import json
import math
import multiprocessing
import platform
import resource
import time
from pathlib import Path

import torch
from report import markdown

from ringnet_ext import FLAME, builtin_head
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.fitting import Priors, fit
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.geometry.alignment import similarity_align
from ringnet_ext.geometry.camera import FILL, UPRIGHT, project
from ringnet_ext.ops import reference

SIGMA, CLOSE = 0.003, 1.001
PRIORS = Priors(shape=1.0, expression=0.5, jaw_pose=None)


class People:
    """Landmarks (N, 68, 2) in crops, the true shapes, and the start."""

    def __init__(self, count: int):
        faces = SyntheticFaces(identities=count, images_per_identity=1, split="test")
        self.flame = FLAME()
        truth, _, landmarks = faces._pose(self.flame, range(count))
        self.shape = torch.from_numpy(truth["shape"])
        points = torch.from_numpy(landmarks)
        low, high = points.amin(1), points.amax(1)
        half = (high - low).amax(1) / 2 / FILL
        self.landmarks = (points - (low + high)[:, None] / 2) / half[:, None, None]
        upright = torch.tensor([UPRIGHT])
        mean = self.flame.landmarks(global_pose=upright)[0, :, :2]
        low, high = mean.amin(0), mean.amax(0)
        camera = torch.cat([2 * FILL / (high - low).max()[None], -(low + high) / 2])[None]
        zeros = torch.zeros(1, 153)
        self.start = HeadParams(
            *(part.expand(count, -1) for part in (camera, upright, zeros[:, :3], zeros[:, :100], zeros[:, :50]))
        )

    def some(self, count: int) -> tuple[torch.Tensor, HeadParams]:
        return self.landmarks[:count], HeadParams(*(value[:count] for value in self.start))

    def face_error(self, shape: torch.Tensor) -> float:
        """Relative to the mean head's error."""
        face = torch.tensor(builtin_head().regions["face"])
        truth, found, mean = (
            self.flame(s).vertices[:, face].double() for s in (self.shape[: len(shape)], shape, torch.zeros_like(shape))
        )
        errors = [(similarity_align(v, truth) - truth).norm(dim=-1).mean() for v in (found, mean)]
        return float(errors[0] / errors[1])


def objective(landmarks, target: torch.Tensor, params: HeadParams) -> torch.Tensor:
    """Summed over the people. landmarks(betas, pose): (B, 68, 3)."""
    still = torch.zeros_like(params.jaw_pose)
    pose = torch.cat([params.global_pose, still, params.jaw_pose, still, still], dim=1)
    seen = project(landmarks(torch.cat([params.shape, params.expression], dim=1), pose), params.camera)
    prior = params.shape.square().sum() + (params.expression / 0.5).square().sum()
    return (seen - target).square().sum() / (2 * SIGMA**2) + prior / 2


def of_reference(flame: FLAME):
    body, embedding = flame._body(), flame._embedding()
    return lambda betas, pose: reference.flame_landmarks(betas, pose, *body, *embedding)


def of_smplx(flame: FLAME):
    """smplx's functions; the row of the contour table as ours chooses it, or the objectives would differ."""
    try:
        from smplx.lbs import lbs, vertices2landmarks
    except ImportError:
        return of_reference(flame), "reference"
    v_template, *body = flame._body()
    faces, index, bary, contour, contour_bary, neck = flame._embedding()

    def landmarks(betas, pose):
        vertices, _ = lbs(betas, pose, v_template[None].expand(len(betas), -1, -1), *body)
        points = reference.landmark_points(pose.detach(), flame.parents, index, bary, contour, contour_bary, neck, True)
        return vertices2landmarks(vertices, faces, *points)

    return landmarks, "smplx"


def in_units(start: HeadParams):
    """Parameters as moves from the start, in units that make them alike."""
    units = HeadParams(
        torch.tensor([float(start.camera[0, 0]), 0.1, 0.1]),
        torch.tensor(1.0),
        torch.tensor(0.3),
        torch.tensor(1.0),
        torch.tensor(0.5),
    )
    moves = [torch.zeros_like(value).requires_grad_() for value in start]
    return moves, lambda: HeadParams(
        *(value + unit * move for value, unit, move in zip(start, units, moves, strict=True))
    )


def adam(landmarks, target, start, goal, seconds, steps=3000):
    moves, params = in_units(start)
    optimizer = torch.optim.Adam(moves, lr=0.05, betas=(0.9, 0.95))
    began, best = time.perf_counter(), float("inf")
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        value = objective(landmarks, target, params())
        best = min(best, value.item())
        spent = time.perf_counter() - began
        if best <= goal or spent > seconds:
            break
        value.backward()
        optimizer.step()
    return spent, best, step, params().shape.detach()


class _Enough(Exception):
    pass


def lbfgs(landmarks, target, start, goal, seconds, steps=5000):
    moves, params = in_units(start)
    optimizer = torch.optim.LBFGS(
        moves,
        max_iter=steps,
        max_eval=2 * steps,
        history_size=50,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    began, best, calls = time.perf_counter(), float("inf"), 0

    def closure():
        nonlocal calls, best
        calls += 1
        optimizer.zero_grad()
        value = objective(landmarks, target, params())
        value.backward()
        best = min(best, value.item())
        if best <= goal or time.perf_counter() - began > seconds:
            raise _Enough
        return value

    try:
        optimizer.step(closure)
    except _Enough:
        pass
    return time.perf_counter() - began, best, calls, params().shape.detach()


def scipy(flame, target, start, goal, seconds):
    from scipy.optimize import least_squares

    exact = of_reference(FLAME(dtype=torch.float64))
    began, total, calls, shapes = time.perf_counter(), 0.0, 0, []
    for b in range(len(target)):
        first, goal_landmarks = torch.cat([value[b] for value in start]).double(), target[b : b + 1].double()

        def residuals(x, goal_landmarks=goal_landmarks):
            params = HeadParams.from_vector(x[None])
            still = torch.zeros_like(params.jaw_pose)
            pose = torch.cat([params.global_pose, still, params.jaw_pose, still, still], dim=1)
            seen = project(exact(torch.cat([params.shape, params.expression], dim=1), pose), params.camera)
            return torch.cat([((seen - goal_landmarks) / SIGMA).flatten(), params.shape[0], params.expression[0] / 0.5])

        of_numpy = lambda function: lambda x: function(torch.from_numpy(x)).numpy()
        found = least_squares(
            of_numpy(residuals), first.numpy(), jac=of_numpy(torch.func.jacfwd(residuals)), x_scale="jac", ftol=1e-5,
            max_nfev=50,
        )  # fmt: skip
        total, calls = total + found.cost, calls + found.nfev
        shapes.append(torch.from_numpy(found.x[9:109]).float())
        if time.perf_counter() - began > seconds:
            break
    share = len(target) / len(shapes)  # of the people that there was time for, scaled
    return share * (time.perf_counter() - began), share * total, calls / len(shapes), torch.stack(shapes)


def talking(flame: FLAME, frames: int, noise: float) -> torch.Tensor:
    """Landmarks (frames, 68, 2) of a head that turns and talks."""
    generator = torch.Generator().manual_seed(4)
    shape = torch.randn(1, 100, generator=generator)
    parts = []
    for time_of in (torch.arange(frames) / 25).split(512):
        still = torch.zeros(len(time_of), 2)
        jaw = torch.cat([0.12 * (1 - torch.cos(2 * math.pi * 1.5 * time_of))[:, None], still], dim=1)
        pose = torch.tensor([UPRIGHT]) + torch.cat([still, 0.4 * torch.sin(time_of)[:, None]], dim=1)[:, [0, 2, 1]]
        expression = 0.3 * torch.sin(time_of[:, None] * torch.linspace(1, 5, 50) + torch.arange(50))
        points = flame.landmarks(shape.expand(len(pose), -1), expression, pose, jaw_pose=jaw)
        parts.append(project(points, torch.tensor([[7.0, 0.0, 0.03]])))
    exact = torch.cat(parts)
    return exact + noise * torch.randn(exact.shape, generator=generator)


def peak() -> float:
    """Of this process's memory, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def video(frames: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    flame, noise = FLAME(), 0.01
    landmarks = talking(flame, frames, noise)
    fit(flame, landmarks[:50], person=[0] * 50, video=True, sigma=noise)
    before, began, worked = peak(), time.perf_counter(), time.process_time()
    found = fit(flame, landmarks, person=[0] * frames, video=True, sigma=noise)
    return {
        "frames": frames,
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
        "memory_mb": peak() - before,
        "iterations": int(found.iterations),
        "objective": float(found.objective),
        "stopped": found.stopped[0],
    }


def videos(frames: int) -> list[dict]:
    """Prints and returns what videos of two lengths take."""
    results = []
    for length in sorted({max(1, frames // 4), frames}):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            results.append(process.apply(video, (length, torch.get_num_threads())))
    rows = [
        [str(r["frames"]), f"{r['frames'] / r['seconds']:.0f}", f"{r['seconds']:.1f}", f"{r['processor_seconds']:.1f}",
         f"{r['memory_mb']:.0f}", str(r["iterations"])]
        for r in results
    ]  # fmt: skip
    columns = ["frames of a video", "frames a second", "seconds", "seconds of all cores", "MB", "steps"]
    print(markdown(columns, rows))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seconds", type=float, default=120, help="for each of the others, at most")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 240], help="people; none for the video alone")
    parser.add_argument("--frames", type=int, default=10000, help="of the video; 0 for none")
    options = parser.parse_args()
    of_videos = videos(options.frames) if options.frames else []
    if not options.batches:
        return
    people = People(max(options.batches))
    rows, results = [], []
    smplx, name = of_smplx(people.flame)
    for B in options.batches:
        target, start = people.some(B)
        best = fit(people.flame, target, start=start, sigma=SIGMA, priors=PRIORS, tolerance=1e-9, iterations=60)
        goal = CLOSE * float(best.objective.sum())

        def ours(tolerance=1e-4, target=target, start=start):
            return fit(people.flame, target, start=start, sigma=SIGMA, priors=PRIORS, tolerance=tolerance)

        ours()
        times = []
        for _ in range(5 if B > 1 else 30):
            began = time.perf_counter()
            found = ours()
            times.append(time.perf_counter() - began)
        contenders = {
            "ringnet_ext.fit": (
                sorted(times)[len(times) // 2],
                float(found.objective.sum()),
                float(found.iterations.float().mean()),
                found.shape,
            ),
            f"Adam on {name}": adam(smplx, target, start, goal, options.seconds),
            f"L-BFGS on {name}": lbfgs(smplx, target, start, goal, options.seconds),
            "SciPy on the reference": scipy(people.flame, target, start, goal, options.seconds),
        }
        first = contenders["ringnet_ext.fit"][0]
        for who, (seconds, value, steps, shape) in contenders.items():
            reached = bool(value <= goal * (1 + 1e-6))
            error = people.face_error(shape)
            results.append(
                {
                    "batch": B,
                    "name": who,
                    "seconds": seconds,
                    "objective": value / B,
                    "reached": reached,
                    "steps": steps,
                    "face_error": error,
                }
            )
            rows.append(
                [
                    f"{who}",
                    str(B),
                    f"{seconds / B * 1e3:.3g}",
                    f"{seconds / first:.3g}x" + ("" if reached else " and not there"),
                    f"{value / B:.2f}",
                    f"{steps:.3g}",
                    f"{error:.3f}",
                ]
            )
            print(" ".join(rows[-1]), flush=True)
    print(markdown(["", "people", "ms a person", "time", "objective", "steps", "face error / mean head's"], rows))
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        options.json.write_text(
            json.dumps({"machine": machine, "results": results, "videos": of_videos}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
