"""What the training tests share: tiny settings, and a callback that listens and can stop a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maep.artifact import Artifact
from maep.train.loop import Progress

MAE = {
    "image_size": 16,
    "patch_size": 4,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
LOOP = {"samples": 320, "batch_size": 32, "lr": 2e-3, "checkpoint_every": 96, "augment": False, "device": "cpu"}

Make = Callable[..., Any]


def weights(result: Artifact) -> str:
    """sha256 of the weights alone."""
    return result.files["model.safetensors"].sha256


class Heard:
    """A callback that keeps what it is told, and can stop a run as a kill would: between two steps."""

    def __init__(self, stop_after_checkpoints: int | None = None) -> None:
        self.steps: list[Progress] = []
        self.checkpoints: list[int] = []
        self.ends: list[Artifact] = []
        self.stop_after = stop_after_checkpoints

    def on_step(self, progress: Progress) -> None:
        self.steps.append(progress)

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        self.checkpoints.append(samples_seen)
        if len(self.checkpoints) == self.stop_after:
            raise KeyboardInterrupt

    def on_end(self, result: Artifact) -> None:
        self.ends.append(result)
