"""A trial of a search: its settings, its two training phases, and the pretraining that it may share with others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maep import artifact, config
from maep.data.datasets import inventory
from maep.train.config import PretrainConfig
from maep.tune.config import TuneConfig
from maep.tune.search.space import Settings
from maep.tune.trial.trial_config import Phases, phases, trial_id

PRETRAINED = "pretrained"
SPENT = "spent.json"
"""In the folder of a training: the processor seconds it has taken."""


@dataclass(frozen=True)
class Trial:
    """Settings to try, with the training phases made of them."""

    number: int
    settings: Settings
    phases: Phases
    pretraining: str | None
    """Key of its pretraining, the same for all trials that share it; None where it has none."""

    @property
    def trial_id(self) -> str:
        """Made from number and settings."""
        return trial_id(self.number, self.settings)

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.phases.finetune.loop.seed


def make_trial(search: TuneConfig, number: int, settings: Settings) -> Trial:
    """The trial with `settings`. Raises ConfigError where they are not compatible."""
    made = phases(search, settings)
    key = None if made.pretrain is None else _pretraining_key(made.pretrain, search)
    return Trial(number, settings, made, key)


def _pretraining_key(pretrain: PretrainConfig, search: TuneConfig) -> str:
    """A digest of what decides a pretraining: configuration, data, initial weights and budget."""
    values = config.deciding(pretrain)
    del values["loop"]["samples"], values["init"]  # the budget sets the first; the weights are known by their digest
    start = artifact.read(pretrain.init).sha256 if pretrain.init is not None else None
    share = search.budget.amount * search.budget.pretrain_share
    return config.digest([values, start, inventory(pretrain.data), search.budget.kind, share])


def pretrained_folder(output: Path, key: str) -> Path:
    """The folder of a shared pretraining."""
    return output / PRETRAINED / key


def is_pretrained(output: Path, key: str) -> bool:
    """Whether the shared pretraining is finished."""
    folder = pretrained_folder(output, key)
    return (folder / SPENT).is_file() and artifact.is_valid(folder / "model")
