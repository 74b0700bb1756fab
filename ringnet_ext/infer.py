"""``python -m ringnet_ext.infer``: reconstruct the faces of photographs."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
import trimesh
from tqdm import tqdm

from .checkpoint import CheckpointError
from .flame.files import written_whole
from .images import SUFFIXES, ImageError, write_image
from .model import Reconstruction, RingNet
from .pictures import PANELS, panel
from .render import sheet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ringnet_ext.infer",
        description="Reconstruct heads from photographs, each a loose crop of one face. For every image NAME the output "
        "folder gets images/NAME.png (input, overlay, mesh, mesh turned, neutral), mesh/NAME.obj (posed, metres, y up), "
        "neutral_mesh/NAME.obj and params/NAME.npz (cam, pose, shape, expression in RingNet's conventions; landmarks in "
        "pixels of the image). An image that cannot be read is reported, and the others are still done.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="run folder of training, or a checkpoint file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to; made if missing")
    parser.add_argument("--head", type=Path, help="head model file, if it has moved since training [the one trained on]")
    parser.add_argument("--device", default="cpu", help="device to compute on [cpu]")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        model = RingNet.load(options.checkpoint, head=options.head).to(options.device)
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    files, failures = _files(options.images)
    empty = len(failures)
    for name, path in tqdm(_named(files), desc="reconstructing", unit="image", disable=None):
        try:
            write_reconstruction(options.out, name, model.reconstruct(path))
        except (FileNotFoundError, ImageError) as error:
            failures.append(str(error))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"{len(files) - (len(failures) - empty)} of {len(files)} images reconstructed in {options.out}")
    return 1 if failures else 0


def _files(paths: list[Path]) -> tuple[list[Path], list[str]]:
    """The image files that the paths stand for, and a complaint for each folder that has none."""
    files, complaints = [], []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            complaints.append(f"{path}: no images in this folder")
        files += found
    return files, complaints


def _named(files: list[Path]) -> list[tuple[str, Path]]:
    """A name of its own for the outputs of every file: its stem, numbered where two are the same."""
    names: dict[str, int] = {}
    result = []
    for path in files:
        count = names[path.stem] = names.get(path.stem, 0) + 1
        result.append((path.stem if count == 1 else f"{path.stem}-{count}", path))
    return result


def write_reconstruction(folder: Path, name: str, face: Reconstruction) -> None:
    """Write the panel picture, both meshes and the parameters of one face under a name."""
    for kind in ("images", "mesh", "neutral_mesh", "params"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    write_image(folder / "images" / f"{name}.png", sheet([panel(face)], columns=PANELS))
    for kind, vertices in (("mesh", face.vertices), ("neutral_mesh", face.neutral_vertices)):
        mesh = trimesh.Trimesh(vertices, face.faces, process=False)
        with written_whole(folder / kind / f"{name}.obj") as file:
            file.write(mesh.export(file_type="obj", include_normals=False).encode())
    params = face.params
    arrays = {
        "cam": params.camera[0],
        "pose": torch.cat([params.global_pose, params.jaw_pose], dim=1)[0],
        "shape": params.shape[0],
        "expression": params.expression[0],
    }
    buffer = io.BytesIO()
    np.savez(buffer, landmarks=face.landmarks, **{key: value.numpy() for key, value in arrays.items()})
    with written_whole(folder / "params" / f"{name}.npz") as file:
        file.write(buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
