"""The two training phases of a trial, made from its settings, and the check whether settings are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maep import config
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
"""Short names of common settings, each with the keys that it sets; both phases contain the autoencoder."""

_FROM_BUDGET = ("pretrain.loop.samples", "finetune.loop.samples", "pretrain.loop.pause_at", "finetune.loop.pause_at")


@dataclass(frozen=True)
class Phases:
    """The training of a trial; `pretrain` is None where the purifier starts from random weights."""

    pretrain: PretrainConfig | None
    finetune: FinetuneConfig


def phases(search: TuneConfig, settings: Settings) -> Phases:
    """The phases of the trial with `settings`. Raises ConfigError, naming the key, where settings are incompatible."""
    values: dict[str, Any] = {"finetune": config.to_dict(search.finetune)}
    if search.pretrain is not None:
        values["pretrain"] = config.to_dict(search.pretrain)
    for key, value in {"seed": search.seed, **settings}.items():
        for path in _paths(search, key):
            _put(values, path.split("."), value, key)
    finetune = config.build(FinetuneConfig, values["finetune"], "finetune")
    if not hasattr(finetune.model, "mae") or "pretrain" not in values:
        return Phases(None, finetune)
    pretrain = config.build(PretrainConfig, values["pretrain"], "pretrain")
    _check_same_autoencoder(pretrain, finetune)
    return Phases(pretrain, finetune)


def reason_against(search: TuneConfig, settings: Settings) -> str | None:
    """The reason why these settings are not allowed; None if they are."""
    try:
        made = phases(search, settings)
        known = _names(settings, made)
        for text in search.constraints:
            if not constraints.holds(text, known):
                return f"{text} does not hold"
    except ConfigError as error:
        return str(error)
    return None


def trial_id(number: int, settings: Settings) -> str:
    """The number, so that ids sort, and a digest of the settings."""
    return f"{number:04d}-{config.digest(settings)}"


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
    """Refuses phases with different autoencoders or data: fine-tuning could not start from the pretraining."""
    mine, theirs = config.to_dict(finetune.model.mae), config.to_dict(pretrain.model)
    for key, value in mine.items():
        if theirs[key] != value:
            raise ConfigError(
                f"finetune.model.mae.{key}: {value!r}, but pretrain.model.{key} is {theirs[key]!r}: set both alike"
            )
    if finetune.data != pretrain.data:
        raise ConfigError("finetune.data: differs from pretrain.data: set both alike")


def _names(settings: Settings, made: Phases) -> Mapping[str, Any]:
    """The names that a constraint may use: keys of the space, and every dotted key of the phases."""
    names: dict[str, Any] = {}
    for phase in ("pretrain", "finetune"):
        section = getattr(made, phase)
        if section is not None:
            names |= config.flatten(config.to_dict(section), f"{phase}.")
    for key, paths in NAMES.items():
        value = next((names[path] for path in reversed(paths) if path in names), None)
        names |= {key: value} if value is not None else {}
    return names | settings
