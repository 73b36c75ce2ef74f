"""A trial of a search: its settings, the two training phases made of them, and whether settings are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maep import artifact, config
from maep.data.datasets import inventory
from maep.errors import ConfigError, nearest
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.tune.config import TuneConfig
from maep.tune.search import constraints
from maep.tune.search.space import Settings

NAMES: dict[str, tuple[str, ...]] = {
    "mask_ratio": ("pretrain.mask_ratio",),
    "patch_size": ("pretrain.model.patch_size", "finetune.model.mae.patch_size"),
    "width": ("pretrain.model.width", "finetune.model.mae.width"),
    "depth": ("pretrain.model.depth", "finetune.model.mae.depth"),
    "decoder_width": ("pretrain.model.decoder_width", "finetune.model.mae.decoder_width"),
    "decoder_depth": ("pretrain.model.decoder_depth", "finetune.model.mae.decoder_depth"),
    "pixel_weight": ("finetune.loss.pixel.weight",),
    "masked_weight": ("finetune.loss.masked.weight",),
    "feature_weight": ("finetune.loss.feature.weight",),
    "kl_weight": ("finetune.loss.kl.weight",),
    "noise": ("finetune.noise",),
    "test_mask_ratio": ("finetune.model.mask_ratio",),
    "seed": ("pretrain.loop.seed", "finetune.loop.seed"),
}
"""Short names of common settings, each with the keys that it sets: both phases contain the autoencoder."""

_FROM_BUDGET = ("pretrain.loop.samples", "finetune.loop.samples", "pretrain.loop.pause_at", "finetune.loop.pause_at")
PRETRAINED = "pretrained"
"""In the output of a search: the pretrainings, each shared by the trials that agree on it."""
SPENT = "spent.json"
"""In the folder of a training: the processor seconds that it has taken."""


@dataclass(frozen=True)
class Trial:
    """Settings to try, with the training phases made of them."""

    number: int
    settings: Settings
    pretrain: PretrainConfig | None
    """None where the purifier starts from random weights."""
    finetune: FinetuneConfig
    pretraining: str | None
    """Key of the pretraining, the same for all trials that share it; None where there is none."""

    @property
    def trial_id(self) -> str:
        """Made from number and settings."""
        return trial_id(self.number, self.settings)

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.finetune.loop.seed


def make_trial(search: TuneConfig, number: int, settings: Settings) -> Trial:
    """The trial with `settings`. Raises ConfigError where they are incompatible."""
    pretrain, finetune = phases(search, settings)
    key = None if pretrain is None else _pretraining_key(pretrain, search)
    return Trial(number, settings, pretrain, finetune, key)


def trial_id(number: int, settings: Settings) -> str:
    """The number, so that ids sort, and a digest of the settings."""
    return f"{number:04d}-{config.digest(settings)}"


def phases(search: TuneConfig, settings: Settings) -> tuple[PretrainConfig | None, FinetuneConfig]:
    """Pretraining, if any, and fine-tuning with `settings`. Raises ConfigError, naming the key, where they conflict."""
    values: dict[str, Any] = {"finetune": config.to_dict(search.finetune)}
    if search.pretrain is not None:
        values["pretrain"] = config.to_dict(search.pretrain)
    for key, value in {"seed": search.seed, **settings}.items():
        for path in _paths(search, key):
            _put(values, path.split("."), value, key)
    finetune = config.build(FinetuneConfig, values["finetune"], "finetune")
    if not hasattr(finetune.model, "mae") or "pretrain" not in values:
        return None, finetune
    pretrain = config.build(PretrainConfig, values["pretrain"], "pretrain")
    _check_same_autoencoder(pretrain, finetune)
    return pretrain, finetune


def reason_against(search: TuneConfig, settings: Settings) -> str | None:
    """The reason why these settings are not allowed; None if they are allowed."""
    try:
        known = _names(settings, *phases(search, settings))
        for text in search.constraints:
            if not constraints.holds(text, known):
                return f"{text} does not hold"
    except ConfigError as error:
        return str(error)
    return None


def pretrained_folder(output: Path, key: str) -> Path:
    """The folder of a shared pretraining."""
    return output / PRETRAINED / key


def is_pretrained(output: Path, key: str) -> bool:
    """Whether the shared pretraining is finished."""
    folder = pretrained_folder(output, key)
    return (folder / SPENT).is_file() and artifact.is_valid(folder / "model")


def _pretraining_key(pretrain: PretrainConfig, search: TuneConfig) -> str:
    """A digest of what decides a pretraining: configuration, data, initial weights and budget."""
    values = config.deciding(pretrain)
    del values["loop"]["samples"], values["init"]  # the budget sets the first; the weights are known by their digest
    start = artifact.read(pretrain.init).sha256 if pretrain.init is not None else None
    share = search.budget.amount * search.budget.pretrain_share
    return config.digest([values, start, inventory(pretrain.data), search.budget.kind, share])


def _paths(search: TuneConfig, key: str) -> tuple[str, ...]:
    """The configuration keys that a key of the space sets, in the phases that the search has."""
    paths = NAMES.get(key, (key,))
    first = key.partition(".")[0]
    if key not in NAMES and (first not in ("pretrain", "finetune") or first == key):
        options = [*NAMES, "pretrain.KEY", "finetune.KEY"]
        raise ConfigError(f"space.{key}: unknown key: {nearest(key, options)}")
    if key in _FROM_BUDGET:
        raise ConfigError(f"space.{key}: the budget sets it: change budget.amount or budget.pretrain_share")
    here = tuple(path for path in paths if search.pretrain is not None or not path.startswith("pretrain."))
    if not here:
        raise ConfigError(f"space.{key}: this search has no pretraining: add a section pretrain")
    return here


def _put(values: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    """Sets the value at `path`; a short name skips sections that the model lacks (a U-Net has no patches)."""
    section: Any = values
    for depth, name in enumerate(path[:-1]):
        inner = section.get(name) if isinstance(section, dict) else None
        if not isinstance(inner, dict):
            if key in NAMES:
                return
            raise ConfigError(f"space.{key}: this trial has no section {'.'.join(path[: depth + 1])}")
        section = inner
    section[path[-1]] = value


def _check_same_autoencoder(pretrain: PretrainConfig, finetune: FinetuneConfig) -> None:
    """Raises ConfigError for phases with different autoencoders or data: one could not start from the other."""
    mine, theirs = config.to_dict(finetune.model.mae), config.to_dict(pretrain.model)
    for key, value in mine.items():
        if theirs[key] != value:
            raise ConfigError(
                f"finetune.model.mae.{key}: {value!r}, but pretrain.model.{key} is {theirs[key]!r}: make them equal"
            )
    if finetune.data != pretrain.data:
        raise ConfigError("finetune.data: differs from pretrain.data: make them equal")


def _names(settings: Settings, pretrain: PretrainConfig | None, finetune: FinetuneConfig) -> Mapping[str, Any]:
    """The names that a constraint may use: keys of the space, and every dotted key of the phases."""
    names = config.flatten(config.to_dict(finetune), "finetune.")
    if pretrain is not None:
        names |= config.flatten(config.to_dict(pretrain), "pretrain.")
    for key, paths in NAMES.items():
        value = next((names[path] for path in reversed(paths) if path in names), None)
        names |= {key: value} if value is not None else {}
    return names | settings
