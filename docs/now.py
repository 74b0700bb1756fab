"""Draws docs/now.jpg: what ringnet evaluate says of a trained network on a benchmark like NoW, whose people are
rendered and whose scans are their heads with noise. From the checkout: python docs/now.py runs/compact"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import trimesh

from ringnet_ext import FLAME, builtin_head
from ringnet_ext.commands.evaluate import main
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.squares import landmark_square
from ringnet_ext.evaluation.now_files import CHALLENGES
from ringnet_ext.files.images import read_image, write_image
from ringnet_ext.files.meshes import Mesh, obj_bytes
from ringnet_ext.inference.outputs import NOW_LANDMARKS

PEOPLE, NOISE = 24, 0.15  # mm
PICKED = "<PickedPoints>\n{}\n</PickedPoints>\n"

random = np.random.default_rng(0)
head, faces = (
    builtin_head(),
    SyntheticFaces(split="test", identities=PEOPLE, images_per_identity=4, size=224, color=True),
)
faces = faces.load()
with tempfile.TemporaryDirectory() as name:
    now, lines = Path(name, "now"), []
    release = now / "NoW_Dataset" / "final_release_version"
    for i in range(len(faces)):
        subject, challenge = f"person_{faces.identity[i]:02}", CHALLENGES[i % 4]
        scans, marks = now / "scans" / subject, now / "scans_lmks_onlypp" / subject
        if not scans.exists():
            scans.mkdir(parents=True)
            marks.mkdir(parents=True)
            neutral = FLAME(head)(torch.from_numpy(faces.truth["shape"][i])[None])
            points, triangles = trimesh.remesh.subdivide(1000 * neutral.vertices[0].double().numpy(), head.faces)
            points += random.normal(0, NOISE, points.shape)
            (scans / "scan.obj").write_bytes(obj_bytes(Mesh(points, triangles)))
            picked = 1000 * neutral.landmarks[0, 17:][list(NOW_LANDMARKS)].numpy() + random.normal(0, 1, (7, 3))
            tags = ['<point x="{:.3f}" y="{:.3f}" z="{:.3f}"/>'.format(*row) for row in picked]
            (marks / "scan.pp").write_text(PICKED.format("\n".join(tags)))
        picture = release / "iphone_pictures" / subject / challenge / f"{i}.png"
        box = release / "detected_face" / subject / challenge / f"{i}.npy"
        for file in (picture, box):
            file.parent.mkdir(parents=True, exist_ok=True)
        image = np.asarray(faces.images[i])
        write_image(picture, image)
        middle, side = landmark_square((faces.landmarks[i] + 1) * (len(image) / 2))
        sides = ("left", middle[0] - 0.4 * side), ("top", middle[1] - 0.4 * side), ("right", middle[0] + 0.4 * side)
        np.save(box, np.array(dict([*sides, ("bottom", middle[1] + 0.4 * side)]), object))
        lines.append(f"{subject}/{challenge}/{i}.png")
    (now / "imagepathsvalidation.txt").write_text("\n".join(lines))
    out = Path(name, "out")
    main([str(now), "--checkpoint", sys.argv[1], "--out", str(out)])
    write_image("docs/now.jpg", read_image(out / "now.png"))
