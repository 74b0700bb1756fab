"""How exact each contender is: python benchmarks/accuracy.py prints two markdown tables.

Rodrigues against 120 digits of mpmath, blending and skinning against the same formula in float64. All in float32.
"""

import math

import mpmath
import torch
from contenders import CONTENDERS, Problem, Unavailable
from report import markdown
from timing import call_of

ANGLES = {
    "0": 0.0,
    "1e-12": 1e-12,
    "1e-8": 1e-8,
    "1e-4": 1e-4,
    "1": 1.0,
    "pi - 1e-4": math.pi - 1e-4,
    "pi": math.pi,
    "10": 10.0,
}


def exact_rotation(r: list) -> list:
    """Nine mpmath numbers."""
    x, y, z = r
    s = x * x + y * y + z * z
    angle = mpmath.sqrt(s)
    a = mpmath.sin(angle) / angle if s else mpmath.mpf(1)
    b = (1 - mpmath.cos(angle)) / s if s else mpmath.mpf(1) / 2
    return [
        1 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y,
        b * x * y + a * z, 1 - b * (x * x + z * z), b * y * z - a * x,
        b * x * z - a * y, b * y * z + a * x, 1 - b * (x * x + y * y),
    ]  # fmt: skip


def exact(rot_vecs: torch.Tensor, grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation matrices (N, 3, 3) and the gradients (N, 3) of sum(grads * matrices), in float64."""
    values, gradients = [], []
    step = mpmath.mpf(10) ** -40
    with mpmath.workdps(120):
        for r, g in zip(rot_vecs.double().tolist(), grads.double().flatten(1).tolist(), strict=True):
            r = [mpmath.mpf(v) for v in r]
            values.append([float(v) for v in exact_rotation(r)])
            for axis in range(3):
                ahead, behind = ([v + sign * step * (i == axis) for i, v in enumerate(r)] for sign in (1, -1))
                pairs = zip(g, exact_rotation(ahead), exact_rotation(behind), strict=True)
                gradients.append(float(sum(w * (p - m) for w, p, m in pairs) / (2 * step)))
    values, gradients = (torch.tensor(x, dtype=torch.float64) for x in (values, gradients))
    return values.view(-1, 3, 3), gradients.view(-1, 3)


def rotation_contenders() -> dict:
    """Name -> function (N, 3) -> (N, 3, 3)."""
    problem = Problem("rodrigues", 150, 1)
    found = {}
    for name in ("ringnet_ext", "reference", "smplx"):
        try:
            solve = CONTENDERS[name](problem)
            found[name] = lambda r, solve=solve: solve(r)[0]
        except Unavailable as reason:
            print(f"{name}: left out, {reason}")
    try:
        import roma

        found[f"roma {roma.__version__}"] = roma.rotvec_to_rotmat
    except ImportError as reason:
        print(f"roma: left out, {reason}")
    try:
        import kornia

        found[f"kornia {kornia.__version__}"] = kornia.geometry.axis_angle_to_rotation_matrix
    except ImportError as reason:
        print(f"kornia: left out, {reason}")
    return found


def rotations() -> str:
    """Largest absolute error of 32 random axes, value / gradient."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(32, 3, generator=generator, dtype=torch.float64), dim=1)
    grads = torch.randn(32, 3, 3, generator=generator)
    contenders = rotation_contenders()
    rows = []
    for label, angle in ANGLES.items():
        r = (angle * axes).float()
        value, gradient = exact(r, grads)
        cells = []
        for function in contenders.values():
            leaf = r.clone().requires_grad_()
            result = function(leaf)
            (computed,) = torch.autograd.grad(result, leaf, grads)
            errors = (result.detach().double() - value).abs().max(), (computed.double() - gradient).abs().max()
            cells.append(" / ".join(f"{float(error):.1e}" for error in errors))
        rows.append([label, *cells])
    return markdown(["angle, rad", *contenders], rows)


def meshes() -> str:
    """Largest error of the vertices in metres, relative errors of the gradients in norm; B = 64."""
    rows = []
    for K in (150, 400):
        problem = Problem("lbs", K, 64)
        double = Problem("lbs", K, 64, dtype=torch.float64)
        (vertices,), expected = call_of(CONTENDERS["reference"](double), double, True)()
        for name in ("ringnet_ext", "reference", "torch.compile", "smplx", "body-models", "body-models Warp"):
            try:
                (result,), gradients = call_of(CONTENDERS[name](problem), problem, True)()
            except Unavailable as reason:
                print(f"{name}: left out, {reason}")
                continue
            error = float((result.detach() - vertices.detach()).abs().max())
            relative = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, expected, strict=True)]
            rows.append([name, str(K), f"{error:.1e}", *(f"{e:.1e}" for e in relative)])
    return markdown(["contender", "K", "vertices, m", "gradient of betas", "gradient of pose"], rows)


if __name__ == "__main__":
    print("Rodrigues in float32: largest error of value / gradient against 120 digits, 32 random axes.\n")
    print(rotations())
    print("Blending and skinning in float32, B = 64: errors against the formula in float64.\n")
    print(meshes())
