"""DECA's FLAME on this project's decoder: for code written for ``from decalib.models.FLAME import FLAME``, and for
photometric_optimization's ``from models.FLAME import FLAME``.

State dicts have the original's names, and those of the original load. What is different, and meant to be:

- contour landmarks are on the visible side whatever the pitch and roll. DECA chooses the row of the contour by the
  second Euler angle of the head, which is its yaw only while the head isn't pitched and rolled. At 10 degrees of both,
  23 % of heads turned by up to 30 degrees get another row, and contour points differ by 0.07 mm in the mean (0.3 mm
  where the row does) and by up to 2 mm. ``original_contour = True`` in the configuration gives DECA's own choice
- any batch size will do; no argument has to be given, and fewer coefficients than configured stand for the first ones
- model files are read without running what is in them
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flame import FLAME as _Layer
from .flame import FlameModel, LandmarkEmbedding
from .flame_pytorch import Decoder, OriginalContour
from .ops import batch_rodrigues, lbs, vertices2landmarks  # noqa: F401 (the names of decalib.models.lbs)


class _OriginalContour(OriginalContour):
    sign = 1


class FLAME(Decoder):
    """DECA's layer.

    Args:
        config: has `flame_model_path`, `flame_lmk_embedding_path`, `n_shape` and `n_exp`, as DECA's `cfg.model` has
            them, or `shape_params` and `expression_params` for the last two, as photometric_optimization has them.
            Optional: `original_contour`, see above.
    """

    def __init__(self, config):
        model = FlameModel.load(config.flame_model_path, config.flame_lmk_embedding_path)
        layer = _OriginalContour if getattr(config, "original_contour", False) else _Layer
        shape_params, expression_params = (
            _first(config, *names) for names in (("n_shape", "shape_params"), ("n_exp", "expression_params"))
        )
        super().__init__(layer(model, shape_params=shape_params, expression_params=expression_params))
        full = LandmarkEmbedding.load(config.flame_lmk_embedding_path, full=True)
        self.register_buffer("full_lmk_faces_idx", torch.tensor(full.static_faces_idx)[None])
        self.register_buffer("full_lmk_bary_coords", torch.tensor(full.static_bary_coords, dtype=torch.float32)[None])

    def forward(
        self,
        shape_params: Tensor | None = None,
        expression_params: Tensor | None = None,
        pose_params: Tensor | None = None,
        eye_pose_params: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vertices (B, V, 3), landmarks (B, 68, 3) with the contour as it is seen, and 68 points fixed on the head.

        shape_params, expression_params (B, n) coefficients; pose_params (B, 6) axis-angle of the root and the jaw;
        eye_pose_params (B, 6). Metres, y up.
        """
        output = self.posed(shape_params, expression_params, pose_params, eye_pose=eye_pose_params)
        return output.vertices, output.landmarks, self.seletec_3d68(output.vertices)

    def seletec_3d68(self, vertices: Tensor) -> Tensor:
        """The 68 points fixed on the head (B, 68, 3) of a mesh (B, V, 3); DECA's name for it."""
        return vertices2landmarks(vertices, self.faces_tensor, self.full_lmk_faces_idx[0], self.full_lmk_bary_coords[0])


def _first(config, *names):
    """The attribute of the first of these names that there is."""
    found = [name for name in names if hasattr(config, name)]
    if not found:
        raise AttributeError(f"config: expected {' or '.join(names)}, got neither")
    return getattr(config, found[0])
