"""The progress of a training run, and the base class of its callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maep.artifact import Artifact


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training run."""

    samples_seen: int
    samples: int
    metrics: dict[str, float]
    """Means since the last report: loss and its parts, grad_norm, lr, images_per_s; seconds of a step by phase: data_s
    (about 0 unless input-bound), craft_s, forward_s, backward_s (without communication_s), optimizer_s;
    peak_memory_mib; mfu where the objective knows its FLOPs (training FLOPs over the peak of all workers' devices);
    corrupt, the images of this worker that replaced unreadable ones, if any."""
    eta_s: float

    @property
    def headline(self) -> dict[str, float]:
        """The metrics that fit on one line."""
        hidden = ("_s", "grad_norm", "peak_memory_mib")
        return {k: v for k, v in self.metrics.items() if k == "images_per_s" or not k.endswith(hidden)}


class Callback:
    """Is called on the events of a run, in the process of rank 0. The base class does nothing."""

    def on_step(self, progress: TrainingProgress) -> None:
        """Called about 200 times in a run."""

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """Called when a checkpoint is complete on disk, where it stays until this returns.

        Runs in a thread of its own, one checkpoint at a time, while training continues.
        """

    def on_end(self, result: Artifact) -> None:
        """Called when the result is complete on disk, also if it was there before."""

    def on_failure(self, error: BaseException) -> None:
        """Called when the run ends without a result: on an error, Ctrl-C or a termination notice, not after a kill."""
