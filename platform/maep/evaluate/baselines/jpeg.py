"""JPEG compression (Dziugaite et al. 2016, arXiv 1608.00853)."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maep import registry
from maep.data.image_set import to_float, to_uint8


@registry.baseline("jpeg-q50", quality=50)
@registry.baseline("jpeg-q75", quality=75)
class Jpeg(nn.Module):
    """Pillow's JPEG at `quality`, chroma at half resolution (4:2:0), after rounding to 8 bits."""

    differentiable = False
    randomised = False

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> the same, encoded and decoded; no gradient."""
        decoded = np.stack([self._once(pixels) for pixels in to_uint8(images).cpu().numpy()])
        return to_float(torch.from_numpy(decoded)).to(images)

    def _once(self, pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality, subsampling="4:2:0")
        return np.array(Image.open(buffer))
