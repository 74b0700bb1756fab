"""Where the time of a training step goes: python benchmarks/training_step.py prints a markdown table.

A step of the paper's configuration, 32 rings of 6 images: the decoder (68 projected landmarks of 192 heads) with the
losses, forward and backward, with flame_landmarks, with the same formulas in PyTorch, and with smplx's functions; and
the encoders, on few images and scaled.
"""

import statistics
import time

import torch
from contenders import CONTENDERS, Problem, Unavailable
from report import duration, markdown
from timing import interleaved

from ringnet_ext.geometry.camera import project
from ringnet_ext.network.encoder import ENCODERS
from ringnet_ext.training.losses import coefficient_norm, landmark_loss, ring_shape_loss

RINGS, RING = 32, 6
B = RINGS * RING


def step_of(landmarks):
    """A call: 192 parameter vectors -> landmarks(betas, pose) -> losses -> gradient of the parameter vectors."""
    generator = torch.Generator().manual_seed(0)
    vector = (0.1 * torch.randn(B, 159, generator=generator)).requires_grad_()
    target, confidence = torch.randn(B, 68, 2, generator=generator), torch.ones(B, 68)
    still = torch.zeros(B, 3)

    def step():
        camera, turn, jaw, betas = vector.split([3, 3, 3, 150], dim=1)
        (points,) = landmarks(betas, torch.cat([turn, still, jaw, still, still], dim=1))
        shape, expression = betas.split([100, 50], dim=1)
        loss = (
            60 * landmark_loss(project(points, camera), target, confidence)
            + ring_shape_loss(shape.unflatten(0, (RINGS, RING)))
            + 1e-4 * coefficient_norm(shape)
            + 1e-4 * coefficient_norm(expression)
        )
        return (loss,), torch.autograd.grad(loss, vector)

    return step


def encoder_seconds(name: str, images: int = 12) -> float:
    """Of a step's 192 images, forward and backward; measured on a few and scaled."""
    encoder = ENCODERS[name]().train()
    size = encoder.input_size
    x = torch.randn(images, 3, size, size)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        encoder(x).square().mean().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * B / images


def main() -> None:
    problem, points = Problem("landmarks", 150, B), torch.randn(B, 68, 3)
    steps = {"losses alone": step_of(lambda betas, pose: (points,))}
    for name in ("ringnet_ext", "reference", "smplx"):
        try:
            steps[name] = step_of(CONTENDERS[name](problem))
        except Unavailable as reason:
            print(f"{name}: left out, {reason}")
    for step in steps.values():
        step()
    times = interleaved(steps, torch.device("cpu"), 2.0)
    decoders = {name: statistics.median(t for burst in rounds for t in burst) for name, rounds in times.items()}
    encoders = {name: encoder_seconds(name) for name in ENCODERS}
    rows = []
    for name, seconds in decoders.items():
        shares = [f"{seconds / (seconds + encoder):.1%}" for encoder in encoders.values()]
        rows.append([f"decoder and losses, {name}" if name != "losses alone" else name, duration(seconds), *shares])
    rows += [[f"encoder {name}", duration(seconds), *[""] * len(encoders)] for name, seconds in encoders.items()]
    print(
        markdown(["forward + backward, 192 images", "time", *(f"share of a step, {name}" for name in encoders)], rows)
    )


if __name__ == "__main__":
    main()
