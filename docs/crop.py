"""Draws docs/crop.jpg, the square around a face on a rendered one. From the checkout: python docs/crop.py"""

import cv2
import numpy as np
import torch

from ringnet_ext.data import prepare
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.detection.squares import cut_square, landmark_square
from ringnet_ext.files.images import write_image
from ringnet_ext.geometry.camera import FILL, yaw_of
from ringnet_ext.render.pictures import mark_points
from ringnet_ext.render.sheets import sheet

SIZE = 360
BOX, SQUARE, LOOSE = (30, 90, 220), (20, 150, 60), (150, 150, 150)

faces = SyntheticFaces(split="test", identities=4, images_per_identity=1, size=SIZE, color=True, occlusion=0.0).load()
index = int(yaw_of(torch.from_numpy(faces.truth["global_pose"])).abs().argmin())  # the one that looks most straight
image, points = np.array(faces.images[index]), (faces.landmarks[index] + 1) * (SIZE / 2)
middle, side = landmark_square(points)
_, loose_side = landmark_square(points, fill=prepare.LOOSE_FILL)
drawn = image.copy()
for low, high, color in (
    (middle - loose_side / 2, middle + loose_side / 2, LOOSE),
    (middle - side / 2, middle + side / 2, SQUARE),
    (points.min(0), points.max(0), BOX),
):
    cv2.rectangle(drawn, *(tuple(map(int, np.round(corner))) for corner in (low, high)), color, 2, cv2.LINE_AA)
mark_points(drawn, points, radius=2)
cv2.drawMarker(drawn, tuple(map(int, np.round(middle))), SQUARE, cv2.MARKER_CROSS, 14, 2, cv2.LINE_AA)
seen, kept = (cut_square(image, middle, each, SIZE).image for each in (side, loose_side))
columns = [
    "image: landmarks, their box, the squares",
    f"training, infer: the box fills {FILL:.0%}",
    f"prepare's files: {prepare.LOOSE_FILL:.0%}",
]
write_image("docs/crop.jpg", sheet([[drawn, seen, kept]], columns=columns))
