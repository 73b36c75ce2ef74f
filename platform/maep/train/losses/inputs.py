"""The inputs of every term of the purification loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from maep.models.classifiers.features import logits_and_features
from maep.train.batch import Batch
from maep.train.loss_config import LossConfig


@dataclass
class LossInputs:
    """A batch before and after the purifier. Images are float [B, 3, H, W]."""

    batch: Batch
    """With the clean images, in [0, 1]."""
    model: nn.Module
    """The purifier that is trained."""
    attacked: Tensor
    """In [0, 1]: the input of the purifier, noise included."""
    targets: Tensor
    """int64 [B]: the class that the classifier should give, the true one or the verdict that the decoder is given."""
    purify: Callable[[LossInputs], Tensor]
    """Gives `purified`."""
    teacher: nn.Module
    """The frozen classifier that `loss.teacher` names."""
    config: LossConfig
    seeded: Callable[[], AbstractContextManager[None]]
    """A context in which the batch seeds torch's global generator."""

    @functools.cached_property
    def purified(self) -> Tensor:
        """The purifier's output, before it is cut to [0, 1]."""
        return self.purify(self)

    @functools.cached_property
    def head_logits(self) -> Tensor:
        """Logits [B, classes] of the head of a robust purifier."""
        logits: Tensor = self.model.get_submodule("encoder")(self.attacked)
        return logits

    @functools.cached_property
    def taught(self) -> tuple[Tensor, Tensor]:
        """The teacher's logits [B, classes] and last features [B, features] of the clean images."""
        assert self.batch.wanted is not None, "the term is not registered with teacher=True"
        return self.batch.wanted

    @functools.cached_property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """The same of the purified images, with gradient."""
        return logits_and_features(self.teacher, self.purified.clamp(0, 1))
