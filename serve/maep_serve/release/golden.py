"""Golden outputs: a purifier's outputs for fixed test patterns, recorded at promotion and compared on each replica.

The sha256 verifies the weights. Golden outputs catch differences in numerics, libraries or builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from maep.errors import ArtifactError
from maep_serve.images import to_float, to_uint8

TOLERANCE = 2
"""Levels of 255. Rounding sometimes moves a pixel by one level between machines."""

_NUM_PATTERNS = 4
_NUM_VALUES = 512


def record(purifier: nn.Module) -> str | None:
    """The golden outputs of `purifier` in hexadecimal; None for a randomised purifier."""
    if getattr(purifier, "randomised", False):
        return None
    return _outputs(purifier).tobytes().hex()


def check(purifier: nn.Module, golden: str) -> None:
    """Raises ArtifactError unless `purifier` reproduces `golden`, which `record` returned."""
    outputs = _outputs(purifier).astype(int)
    try:
        expected = np.frombuffer(bytes.fromhex(golden), np.uint8).astype(int)
    except ValueError:
        expected = np.empty(0, int)
    if expected.shape != outputs.shape:
        raise ArtifactError(
            f"golden outputs: found {len(expected)} values, expected {len(outputs)}: promote the purifier again"
        )
    difference = int(np.abs(outputs - expected).max())
    if difference > TOLERANCE:
        raise ArtifactError(
            f"golden outputs: differ by {difference} of 255, at most {TOLERANCE} are allowed: compare the library"
            " versions of this machine with those it was promoted on"
        )


def patterns(image_size: tuple[int, int]) -> torch.Tensor:
    """uint8 [4, 3, H, W], the same on every machine: triangle waves in integer arithmetic."""
    rows, columns = np.ogrid[: image_size[0], : image_size[1]]
    waves = [
        np.abs((rows * (5 + 8 * pattern) + columns * (11 + 6 * channel) + 60 * channel) % 510 - 255)
        for pattern in range(_NUM_PATTERNS)
        for channel in range(3)
    ]
    return torch.from_numpy(np.stack(waves).astype(np.uint8)).reshape(_NUM_PATTERNS, 3, *image_size)


@torch.inference_mode()
def _outputs(purifier: nn.Module) -> np.ndarray:
    inputs = patterns(cast(tuple[int, int], tuple(cast(Sequence[int], purifier.image_size))))
    values: np.ndarray = to_uint8(purifier(to_float(inputs))).flatten().numpy()
    return values[:: max(1, len(values) // _NUM_VALUES)][:_NUM_VALUES]
