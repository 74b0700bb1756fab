"""Draws docs/maps.jpg: a rendered face with its own head, and that head's maps. Run from the root of the checkout:
python docs/maps.py"""

import tempfile

import numpy as np
import torch

from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.files.images import write_image
from ringnet_ext.flame import FLAME, builtin_head
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.inference.outputs import read_map, write
from ringnet_ext.inference.reconstruction import reconstruction
from ringnet_ext.render.sheets import sheet

head = builtin_head()
faces = SyntheticFaces(split="test", identities=4, images_per_identity=1, size=224, color=True, occlusion=0.0).load()
truth = {name: torch.from_numpy(np.asarray(value[1:2], np.float32)) for name, value in faces.truth.items()}
params = HeadParams(*(truth[name] for name in HeadParams._fields))
image = np.array(faces.images[1])
face = reconstruction(FLAME(head), head, fit_square(image), params)
with tempfile.TemporaryDirectory() as folder:
    depth, normals, coordinates = map(read_map, write(folder, "face", face, ["depth", "normals", "coordinates"]))


def shown(values, low, high):
    """From low to high as dark to bright, white where the head isn't."""
    scaled = np.clip((values - low) / (np.asarray(high) - low), 0, 1)
    picture = np.where(np.isnan(values), 1, scaled) * 255
    return (np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture).astype(np.uint8)


extent = head.v_template.min(0), head.v_template.max(0)
row = [
    image,
    face.overlay(image),
    shown(depth, np.nanmax(depth), np.nanmin(depth)),
    shown(normals, -1, 1),
    shown(coordinates, *extent),
]
write_image("docs/maps.jpg", sheet([row], columns=["image", "overlay", "depth", "normals", "coordinates"]))
