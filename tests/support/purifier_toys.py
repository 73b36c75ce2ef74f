"""A small purifier for tests that removes no attack."""

from __future__ import annotations

from pathlib import Path

import torch

from maep import artifact, config
from maep.artifact import Artifact
from maep.models.conv import ConvPurifier
from maep.models.families.conv import ConvConfig


def small_unet(folder: Path, seed: int, change: float) -> Artifact:
    """A U-Net for 16 x 16 pixels in `folder`; `change`: its last weights' deviation, and so how much it changes."""
    described = ConvConfig(image_size=(16, 16), channels=(4, 8), blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ConvPurifier(described)
        torch.nn.init.normal_(model.output.weight, std=change)
    values = {"model": config.to_dict(described)}
    return artifact.write(folder, "purifier", values, model.state_dict(), "# A test's\n")
