"""Who is measured on what: problems, and the table of contenders that solve them."""

import dataclasses
import functools
import importlib
import importlib.metadata
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from limits import Work, rotations, skinned_points
from torch import Tensor

from ringnet_ext import FLAME, builtin_head, ops
from ringnet_ext.ops import reference

CPU = torch.device("cpu")
OPS = ("rodrigues", "lbs", "dense", "landmarks", "layer", "fixed")


class Unavailable(Exception):
    """This contender can't do this problem here; says why."""


@functools.cache
def head(K: int):
    """The built-in head, 2/3 of K its shape directions and 1/3 expressions; beyond its 150 directions, random ones."""
    model = builtin_head()
    shape, expression = {150: (100, 50), 400: (300, 100)}[K]
    random = np.random.default_rng(0)

    def widened(directions, width):
        more = random.normal(0, 5e-4, (*directions.shape[:2], max(0, width - directions.shape[2])))
        return np.concatenate([directions[..., :width], more], axis=-1)

    return dataclasses.replace(
        model, shapedirs=widened(model.shapedirs, shape), expressiondirs=widened(model.expressiondirs, expression)
    )


@functools.cache
def dense_head(K: int):
    """The same head without a zero in its directions: a model of which our kernels can't leave anything out."""
    model, random = head(K), np.random.default_rng(1)

    def filled(directions):
        return np.where(directions == 0, random.uniform(1e-7, 2e-7, directions.shape), directions)

    names = ("shapedirs", "expressiondirs", "posedirs")
    return dataclasses.replace(model, **{name: filled(getattr(model, name)) for name in names})


@functools.cache
def layer(K: int, dense: bool, device: torch.device, dtype: torch.dtype = torch.float32) -> FLAME:
    model = dense_head(K) if dense else head(K)
    return FLAME(
        model, shape_params=model.shapedirs.shape[2], expression_params=model.expressiondirs.shape[2], dtype=dtype
    ).to(device)


@dataclasses.dataclass(frozen=True)
class Problem:
    """An operator on B random heads with K coefficients: inputs, constants, and the work that it takes."""

    op: str
    K: int
    B: int
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    @property
    def flame(self) -> FLAME:
        return layer(self.K, self.op == "dense", self.device, self.dtype)

    @property
    def body(self) -> tuple[Tensor, ...]:
        f = self.flame
        return f.v_template, f.shapedirs, f.posedirs, f.J_regressor, f.parents, f.lbs_weights

    @property
    def embedding(self) -> tuple[Tensor, ...]:
        f = self.flame
        return f.faces, f.lmk_faces_idx, f.lmk_bary_coords, f.contour_faces_idx, f.contour_bary_coords

    def inputs(self) -> tuple[Tensor, ...]:
        """betas (B, K), pose (B, 15), radians; for fixed the pose alone; for rodrigues its rotations (5 B, 3)."""
        random = torch.Generator().manual_seed(self.B)
        betas = torch.randn(self.B, self.K, generator=random)
        pose = 0.3 * torch.randn(self.B, 15, generator=random)
        chosen = {"rodrigues": (pose.view(-1, 3),), "fixed": (pose,)}.get(self.op, (betas, pose))
        return tuple(x.to(self.device, self.dtype) for x in chosen)

    @property
    def identity(self) -> Tensor:
        """The betas (1, K) of fixed."""
        return torch.randn(1, self.K, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)

    def work(self, backward: bool) -> Work:
        if self.op == "rodrigues":
            return rotations(5 * self.B, backward)
        flame = self.flame
        V, L, K = len(flame.v_template), 68, 0 if self.op == "fixed" else self.K
        weights = float((flame.lbs_weights != 0).sum(1).float().mean())
        moved = (flame.shapedirs[..., :K] != 0).any(1).sum() + (flame.posedirs.view(-1, V, 3) != 0).any(2).sum()
        points, outputs = {"lbs": (V, V), "dense": (V, V), "landmarks": (3 * L, L)}.get(self.op, (V, V + L))
        return skinned_points(points, float(moved) / V, weights, K, 5, self.B, backward, outputs)


# A contender makes of a problem a function of its inputs that returns a tuple of results: (5 B, 3, 3) matrices,
# (B, V, 3) vertices, (B, 68, 3) landmarks, or for the layer vertices and landmarks; for fixed those of one person in
# B poses, by a layer that may be prepared for that person.
Solution = Callable[..., tuple[Tensor, ...]]


def ours(p: Problem) -> Solution:
    body, embedding, flame = p.body, p.embedding, p.flame
    if p.op == "rodrigues":
        return lambda r: (ops.batch_rodrigues(r),)
    if p.op in ("lbs", "dense"):
        return lambda betas, pose: (ops.flame_lbs(betas, pose, *body)[0],)
    if p.op == "landmarks":
        return lambda betas, pose: (ops.flame_landmarks(betas, pose, *body, *embedding),)
    if p.op == "fixed":
        return _posed(flame.fixed(*p.identity.split([flame.shape_params, flame.expression_params], 1)))
    return lambda betas, pose: _posed(flame, betas)(pose)


def _posed(flame: FLAME, betas: Tensor | None = None) -> Solution:
    """The layer as a function of the pose."""
    identity = () if betas is None else betas.split([flame.shape_params, flame.expression_params], 1)
    shape, expression = identity or (None, None)

    def whole(pose):
        output = flame(shape, expression, pose=pose)
        return output.vertices, output.landmarks

    return whole


def full_layer(p: Problem) -> Solution:
    """Our layer as it is for everybody: what fixing the identity saves."""
    if p.op != "fixed":
        raise Unavailable("measured for fixed only")
    return _posed(p.flame, p.identity)


def kernel(p: Problem) -> Solution:
    """The compiled core alone, forward, into memory that is there already: no PyTorch, no allocation."""
    if p.op != "lbs":
        raise Unavailable("measured for lbs only")
    from ringnet_ext.ops import _prepared

    v_template, *constants = p.body
    for _ in range(2):  # packed when it comes back
        model = _prepared.prepared_lbs(tuple(constants))
    joints_at_rest = model.joint_template(v_template)
    vertices = torch.zeros(p.B, len(v_template), 3, device=p.device)
    joints = torch.zeros(p.B, 5, 3, device=p.device)
    state = torch.zeros(p.B, model.state_sizes[False], device=p.device)

    def run(betas, pose):
        model.core.forward(
            betas=betas,
            pose=pose,
            axis_angle=True,
            v_template=v_template,
            joint_template=joints_at_rest,
            keep=False,
            state=state,
            vertices=vertices,
            joints=joints,
            landmarks=None,
        )
        return (vertices,)

    return run


def _composed(p: Problem, body, rodrigues, lbs, points, vertices2landmarks) -> Solution:
    """Any problem from functions with smplx's signatures; points(vertices, pose) -> faces (B, 68), bary (B, 68, 3)."""
    faces = p.flame.faces

    def whole(betas, pose):
        vertices = lbs(betas, pose, *body)[0]
        return vertices, vertices2landmarks(vertices, faces, *points(vertices, pose))

    identity = p.identity
    return {
        "rodrigues": lambda r: (rodrigues(r),),
        "lbs": lambda betas, pose: (lbs(betas, pose, *body)[0],),
        "dense": lambda betas, pose: (lbs(betas, pose, *body)[0],),
        "landmarks": lambda betas, pose: whole(betas, pose)[1:],
        "layer": whole,
        "fixed": lambda pose: whole(identity.expand(len(pose), -1), pose),
    }[p.op]


def plain(p: Problem) -> Solution:
    """ringnet_ext.ops.reference: the formulas in PyTorch, eager."""
    body, embedding = p.body, p.embedding[1:]

    def points(_vertices, pose):
        return reference.landmark_points(pose, body[4], *embedding, 1, True)

    return _composed(p, body, reference.batch_rodrigues, reference.flame_lbs, points, reference.vertices2landmarks)


def compiled(p: Problem) -> Solution:
    """The same formulas under torch.compile; batch sizes above 1 share a graph."""
    return _compiled(p.op, p.K, p.B == 1, p.device)


@functools.cache
def _compiled(op: str, K: int, single: bool, device: torch.device):
    # One function is compiled for every op, K and device, with and without gradients.
    torch._dynamo.config.recompile_limit = 64
    p = Problem(op, K, 1 if single else 2, device)
    return torch.compile(plain(p), dynamic=not single, fullgraph=True)


def smplx(p: Problem) -> Solution:
    """smplx.lbs of the package smplx."""
    lbs = _imported("smplx.lbs")
    _, static_idx, static_bary, contour_idx, contour_bary = p.embedding
    chain = torch.tensor([1, 0], device=p.device)  # neck, root

    def points(vertices, pose):
        B = len(pose)
        row_idx, row_bary = lbs.find_dynamic_lmk_idx_and_bcoords(vertices, pose, contour_idx, contour_bary, chain)
        idx = torch.cat([row_idx, static_idx.expand(B, -1)], 1)
        return idx, torch.cat([row_bary, static_bary.expand(B, -1, -1)], 1)

    return _composed(p, p.body, lbs.batch_rodrigues, lbs.lbs, points, lbs.vertices2landmarks)


def body_models(p: Problem, kernel_backend: str = "torch") -> Solution:
    """FLAME of the package body-models, its vertices only: it has no contour landmarks."""
    if p.op != "lbs":
        raise Unavailable("measured for lbs only")
    if kernel_backend == "warp":
        _imported("warp").config.quiet = True
    model = _body_models_flame(p.K, kernel_backend).to(p.device)
    shape_params = p.flame.shape_params

    def lbs(betas, pose):
        joints = pose.view(-1, 5, 3)
        shape, expression = betas[:, :shape_params], betas[:, shape_params:]
        return (model.forward_vertices(joints[:, 1:], head_rotation=joints[:, 0], shape=shape, expression=expression),)

    return lbs


@functools.cache
def _body_models_flame(K: int, kernel_backend: str):
    """Reads files in FLAME's layout only: always 300 shape and 100 expression directions, of which K are used."""
    module, model = _imported("body_models.flame.torch"), head(K)
    shapedirs = np.zeros((len(model.v_template), 3, 400), np.float32)
    shapedirs[..., : model.shapedirs.shape[2]] = model.shapedirs
    shapedirs[..., 300 : 300 + model.expressiondirs.shape[2]] = model.expressiondirs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.npz"
        np.savez(
            path,
            v_template=model.v_template,
            f=model.faces,
            weights=model.lbs_weights,
            shapedirs=shapedirs,
            posedirs=model.posedirs,
            J_regressor=model.J_regressor,
            kintree_table=np.stack([model.parents, np.arange(5)]),
        )
        return module.FLAME(model_path=path, kernel_backend=kernel_backend)


def _imported(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(str(error)) from error


OURS, KERNEL, FULL = "ringnet_ext", "kernel alone", "full layer"
CONTENDERS: dict[str, Callable[[Problem], Solution]] = {
    OURS: ours,
    KERNEL: kernel,
    FULL: full_layer,
    "reference": plain,
    "torch.compile": compiled,
    "smplx": smplx,
    "body-models": body_models,
    "body-models Warp": functools.partial(body_models, kernel_backend="warp"),
}


def versions() -> dict[str, str]:
    """Of the packages that take part and are installed."""
    found = {}
    for name in ("torch", "smplx", "body-models", "warp-lang"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
