"""``ringnet pose``: posed heads with their landmarks, as pictures and meshes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from ..files.arrays import write_arrays
from ..files.images import PICTURES, write_image
from ..files.meshes import Mesh, obj_bytes
from ..files.whole import written_whole
from ..flame.layer import FLAME, FlameOutput
from ..flame.model import FlameModel
from ..flame.parameters import FlameParams, read_parameters
from ..flame.sources import load_head
from ..geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from ..render.pictures import head_picture
from ..render.sheets import complexion, sheet
from .options import Parser, add_head, add_out, called, command, output_file, path, real

MESHES, ARRAYS = (".obj", ".ply", ".glb"), (".npz", ".safetensors")
_DEMO_YAWS = (30.0, -30.0, 85.0, -48.0, 10.0, -15.0, 0.0)  # the poses that FLAME_PyTorch's main.py shows
_LARGEST = 1000  # coefficients and metres: beyond, there is nothing to see, and numbers overflow in files and pictures
_SIZE, _EXTENT, _COLUMNS = 256, 0.34, 8  # pixels, metres, pictures in a row


def make_parser() -> Parser:
    parser = Parser(
        prog=called("pose"),
        description="Pose a head and write it with its landmarks: as a picture (.png, .jpg), a mesh in the model's "
        "vertex order (.obj, .ply; .glb with the landmarks as points) or arrays (.npz, .safetensors: vertices, joints, "
        "landmarks, faces). Without parameters: the mean head at the yaws of FLAME_PyTorch's demonstration.",
    )

    def add(group, flag, text, **kwargs):
        group.add_argument(flag, help=text, **kwargs)

    head = parser.add_argument_group("head")
    add_head(head, "model file, or a mesh (metres, y up, face towards +z) [the built-in head]", former="--model")
    add(head, "--eyelid-files", "l_eyelid.npy and r_eyelid.npy of SMIRK or metrical-tracker, for a model file [none]",
        type=path, nargs=2, metavar="FILE")  # fmt: skip
    add(head, "--landmarks", "landmark embedding in any format, or RingNet's static and dynamic ones [the model's own]",
        type=path, nargs="+", metavar="FILE")  # fmt: skip
    given = parser.add_argument_group("parameters", "numbers given here replace those of the file")
    add(given, "--parameters", "file of this project, of RingNet, DECA, EMOCA, SMIRK, MICA, VHAP, GaussianAvatars, "
        "metrical-tracker, smplx or FLAME_PyTorch, or a folder of .npy files; of one head or of many", type=path,
        metavar="FILE")  # fmt: skip
    coefficient = real(-_LARGEST, _LARGEST)
    add(given, "--shape", "first shape coefficients", type=coefficient, nargs="+", metavar="C")
    add(given, "--expression", "first expression coefficients", type=coefficient, nargs="+", metavar="C")
    for name, count in (("global", 3), ("neck", 3), ("jaw", 3), ("eye", 6)):
        add(given, f"--{name}-pose", "axis-angle, degrees", type=real(-3600, 3600), nargs=count, metavar="A")
    add(
        given,
        "--eyelids",
        "coefficients of the left and the right one, 1 for shut",
        type=coefficient,
        nargs=2,
        metavar="C",
    )
    add(given, "--translation", "metres", type=coefficient, nargs=3, metavar="X")
    add(
        given,
        "--yaw",
        "turns to the subject's left after all that, degrees; one head each",
        type=real(-3600, 3600),
        nargs="+",
    )
    add_out(parser, "files to write; meshes of several heads are numbered [heads.png]", "FILE", nargs="+",
            default=[path("heads.png")])  # fmt: skip
    return parser


@command
def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    for file in options.out:
        output_file(file, PICTURES + MESHES + ARRAYS)
    head = load_head(options.head, options.landmarks, eyelids=options.eyelid_files)
    params = _parameters(options)
    layer = FLAME(
        head,
        shape_params=params.shape.shape[1],
        expression_params=params.expression.shape[1],
        neck_joint=min(1, len(head.parents) - 1),
        dtype=torch.float64,
    )
    _require_used(params, layer)
    with torch.no_grad():
        posed = _posed(layer, params)
    for file in options.out:
        for written in write_heads(file, head, posed):
            print(written)
    return 0


def _parameters(options: argparse.Namespace) -> FlameParams:
    given = {}
    for name in FlameParams._fields:
        value = getattr(options, name, None)
        if value is not None:
            value = torch.tensor([value], dtype=torch.float64)
            given[name] = torch.deg2rad(value) if name.endswith("pose") else value
    from_file = {}
    if options.parameters is not None:
        from_file = read_parameters(options.parameters, torch.float64)._asdict()
        for name, value in from_file.items():
            if value.shape[0] == 0:
                raise ValueError(f"{options.parameters}: holds no head: {name} has 0 rows")
            if not (value.abs() <= _LARGEST).all():  # NaN isn't either
                raise ValueError(
                    f"{options.parameters}: {name}: expected numbers of at most {_LARGEST}, got larger ones or NaN"
                )
    anything = from_file | given
    params = FlameParams.make(**anything or {"global_pose": torch.zeros(1, 3, dtype=torch.float64)})
    yaws = options.yaw or ([] if anything else _DEMO_YAWS)
    if yaws:
        turns = matrix_from_axis_angle(torch.deg2rad(torch.tensor([[0, yaw, 0] for yaw in yaws], dtype=torch.float64)))
        heads = len(params.shape)
        params = FlameParams(*(value.repeat_interleave(len(yaws), dim=0) for value in params))
        poses = turns.repeat(heads, 1, 1) @ matrix_from_axis_angle(params.global_pose)
        params = params._replace(global_pose=axis_angle_from_matrix(poses))
    return params


def _require_used(params: FlameParams, layer: FLAME) -> None:
    """Raises ValueError where parameters other than zero would be left out."""
    for name, count in (("shape", layer.shape_params), ("expression", layer.expression_params)):
        if getattr(params, name)[:, count:].any():
            raise ValueError(f"{name}: the model has {count} directions, got coefficients of more")
    if params.eyelids.any() and not layer.eyelid_params:
        raise ValueError("eyelids: the model has no directions of them; give their files with --eyelid-files")
    vertices, offsets = len(layer.v_template), params.static_offset.shape[1]
    if offsets > vertices:
        rest = "the rest, VHAP's teeth, is left out"
        print(f"note: static_offset has {offsets} vertices and the model {vertices}; {rest}", file=sys.stderr)
    if layer.num_joints != 5 and torch.cat([params.neck_pose, params.jaw_pose, params.eye_pose], dim=1).any():
        raise ValueError(f"poses: the model has {layer.num_joints} joints, not FLAME's 5; only the global pose applies")


def _posed(layer: FLAME, params: FlameParams) -> FlameOutput:
    params = params.resized(layer.shape_params, layer.expression_params, len(layer.v_template))
    if not layer.eyelid_params:
        params = params._replace(eyelids=params.eyelids[:, :0])
    if layer.num_joints == 5:
        return layer(*params)
    return layer(
        params.shape, params.expression, params.global_pose, translation=params.translation, eyelids=params.eyelids,
        static_offset=params.static_offset,
    )  # fmt: skip


def write_heads(path: Path, head: FlameModel, posed: FlameOutput) -> list[Path]:
    """Write posed heads as the name of `path` says; returns the files written. Several meshes are numbered from 0."""
    vertices, joints = posed.vertices.numpy(), posed.joints.numpy()
    landmarks = None if posed.landmarks is None else posed.landmarks.numpy()
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        arrays = {"vertices": vertices, "joints": joints, "faces": head.faces}
        write_arrays(path, arrays if landmarks is None else arrays | {"landmarks": landmarks})
        return [path]
    if suffix in PICTURES:
        colors = complexion(head)
        pictures = [
            head_picture(points, head.faces, _SIZE, albedo=colors, extent=_EXTENT,
                         points=None if landmarks is None else landmarks[i])
            for i, points in enumerate(vertices)
        ]  # fmt: skip
        write_image(path, sheet([pictures[i : i + _COLUMNS] for i in range(0, len(pictures), _COLUMNS)]))
        return [path]
    import trimesh

    paths = [path] if len(vertices) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(vertices))]
    for i, each in enumerate(paths):
        if suffix == ".obj":
            with written_whole(each) as file:
                file.write(obj_bytes(Mesh(vertices[i], head.faces, head.uv, head.uv_faces)))
            continue
        scene: trimesh.Trimesh | trimesh.Scene = trimesh.Trimesh(vertices[i], head.faces, process=False)
        if suffix == ".glb" and landmarks is not None:
            colors = np.tile(np.array([220, 30, 40, 255], np.uint8), (len(landmarks[i]), 1))
            points = trimesh.PointCloud(landmarks[i], colors=colors)
            parts: dict[str, trimesh.parent.Geometry] = {"head": scene, "landmarks": points}
            scene = trimesh.Scene(parts)
        content = scene.export(file_type=suffix[1:])
        with written_whole(each) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return paths
