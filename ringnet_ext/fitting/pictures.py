"""How sure a fit is, as a picture."""

from __future__ import annotations

import io

import cv2
import numpy as np

from ..render.pictures import head_picture
from ..render.sheets import sheet

_TURNED = np.radians(50)


def uncertainty(
    vertices: np.ndarray, triangles: np.ndarray, std: np.ndarray, limit: float | None = None, size: int = 360
) -> np.ndarray:
    """A head from the front and from both sides, coloured by the standard deviation of its surface, with a scale in
    millimetres.

    Args:
        vertices: (V, 3) metres, y up. triangles: (F, 3). std: (V,) millimetres.
        limit: at the end of the scale; None for the largest but for one in a hundred.
        size: of each view, pixels.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib import colormaps  # takes a second to import
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    scale = Normalize(0, float(np.quantile(std, 0.99)) if limit is None else limit)
    colors = colormaps["viridis"](scale(std))[:, :3].astype(np.float32)
    views = [head_picture(vertices, triangles, size, yaw=yaw, albedo=colors) for yaw in (-_TURNED, 0.0, _TURNED)]
    figure = Figure(figsize=(0.9, size / 100), dpi=100)
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), cax=figure.add_axes((0.1, 0.08, 0.25, 0.84)))
    bar.set_label("standard deviation, mm", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None  # matplotlib wrote it
    legend = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return np.concatenate([sheet([views]), legend], axis=1)
