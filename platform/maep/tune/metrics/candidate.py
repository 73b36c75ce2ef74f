"""What every search metric is computed from."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import nn

from maep.attacks.config import AttackConfig
from maep.data.image_set import ImageSet
from maep.evaluate.measure import DefendedModel
from maep.models.classifiers.load import Classifier
from maep.models.purifier import defend
from maep.train.config import FinetuneConfig
from maep.tune.config import MeasureConfig


@dataclass(frozen=True)
class Candidate:
    """A trial's purifier, frozen and in eval mode, and what the search measures it with.

    Images, classifier and budget are those of the search (`common`), not of the trial's training: otherwise the trial
    trained against the weakest attack would look best.
    """

    purifier: nn.Module
    classifier: Classifier
    images: ImageSet
    """The first `how.num_images` of `dev`."""
    how: MeasureConfig
    common: FinetuneConfig
    seed: int

    @functools.cached_property
    def defended(self) -> DefendedModel:
        """The classifier behind the purifier."""
        model = defend(self.classifier, self.purifier)
        return DefendedModel(model, bool(self.purifier.randomised), self.how.eot, self.how.draws)

    @property
    def eps(self) -> float:
        """Budget of the oblivious attacks."""
        return self.common.attacks.eps if self.how.eps is None else self.how.eps

    @property
    def adaptive(self) -> AttackConfig:
        """The attack through purifier and classifier."""
        eps = self.eps if self.how.adaptive_eps is None else self.how.adaptive_eps
        return AttackConfig.of_effort(self.how.adaptive, eps, self.how.adaptive_steps)
