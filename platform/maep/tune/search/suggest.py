"""Chooses the settings to try, a generation at a time, as a pure function of the seed and the earlier results.

With several trials at once, Optuna's TPE depends on which trial ends first, and resuming would need its saved state.
Here a generation is chosen once all earlier ones have ended, from their records in the order of their numbers, by a new
sampler with its own seed. A search therefore makes the same trials on one CPU or a hundred, killed or not.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maep import seeding
from maep.errors import ConfigError
from maep.tune.config import TuneConfig
from maep.tune.search import space
from maep.tune.search.space import Axis, Settings
from maep.tune.trial.trial import phases, reason_against

_DRAW, _SAMPLER = 301, 302
_ATTEMPTS = 1000
_CHECKED = 100


@dataclass(frozen=True)
class Tried:
    """A trial that has ended: `values` at its last rung, one per objective, higher is better; None if it failed."""

    settings: Settings
    values: tuple[float, ...] | None
    rung: int
    is_done: bool
    """Whether it trained to the end."""


def choose(search: TuneConfig, count: int, tried: Sequence[Tried]) -> list[Settings]:
    """The next `count` settings after those `tried`; fewer where the space has no more new and allowed ones."""
    if not search.space:
        return []
    known = [trial.settings for trial in tried]
    if search.searcher == "grid":
        left = (settings for settings in space.grid(search.space) if _is_new(search, settings, known))
        return list(itertools.islice(left, count))
    searched = sum(settings.keys() == search.space.keys() for settings in known)
    if search.searcher == "tpe" and searched:
        return _suggested(search, count, tried)
    return _drawn(search, count, known)


def generation_size(search: TuneConfig) -> int:
    """How many settings are chosen together: all, where no choice depends on the results of others."""
    independent = search.searcher != "tpe" and search.halving is None
    return search.num_trials if independent else search.generation


def check(search: TuneConfig) -> int | None:
    """The number of allowed settings in the space; None for a large or continuous one.

    Raises ConfigError, with the reason, where none is allowed, where a value of a key never is, or where one of `fixed`
    is not.
    """
    for settings in search.fixed:
        phases(search, settings)
    if not search.space:
        return 0
    count = space.size(search.space)
    whole = count is not None and count <= _CHECKED
    reasons = [(s, reason_against(search, s)) for s in (space.grid if whole else _sample)(search.space)]
    allowed = [settings for settings, reason in reasons if reason is None]
    if not allowed:
        raise ConfigError(f"space: none of {len(reasons)} settings checked is allowed: {reasons[0][1]}")
    for key, axis in search.space.items():
        values = axis.values or ()
        for value in values if len(values) <= _CHECKED else ():
            if not any(settings[key] == value for settings in allowed):
                _check_value(search, key, value)
    return len(allowed) if whole else None


def most_trials(search: TuneConfig) -> int:
    """The most trials that the search can have: `fixed`, and `num_trials` or all settings of a smaller space."""
    allowed = check(search)
    return len(search.fixed) + (search.num_trials if allowed is None else min(search.num_trials, allowed))


def _check_value(search: TuneConfig, key: str, value: Any) -> None:
    """Raises ConfigError where `value` is not allowed with any values of the other keys."""
    pinned = {**search.space, key: Axis(choice=(value,))}
    count = space.size(pinned)
    candidates = space.grid(pinned) if count is not None and count <= _CHECKED else _sample(pinned)
    reasons = [reason_against(search, settings) for settings in candidates]
    if None not in reasons:
        raise ConfigError(f"space.{key}: {value!r} is never allowed: {reasons[0]}")


def _sample(axes: Mapping[str, Axis]) -> Iterator[Settings]:
    shares = seeding.stream(int(seeding.mix(_DRAW)))
    return (space.draw(axes, shares) for _ in range(_CHECKED))


def _is_new(search: TuneConfig, settings: Settings, known: Sequence[Settings]) -> bool:
    return settings not in known and settings not in search.fixed and reason_against(search, settings) is None


def _drawn(search: TuneConfig, count: int, known: Sequence[Settings]) -> list[Settings]:
    """Settings drawn at random: draw n of a search does not depend on earlier results."""
    found: list[Settings] = []
    for number in range(len(known), len(known) + count):
        shares = seeding.stream(int(seeding.mix(search.seed, _DRAW, number)))
        candidates = (space.draw(search.space, shares) for _ in range(_ATTEMPTS))
        settings = next((each for each in candidates if _is_new(search, each, [*known, *found])), None)
        if settings is None:
            break
        found.append(settings)
    return found


def _suggested(search: TuneConfig, count: int, tried: Sequence[Tried]) -> list[Settings]:
    """Settings suggested by TPE (Bergstra et al. 2011; several objectives: Ozaki et al. 2022)."""
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {key: _distribution(axis) for key, axis in search.space.items()}
    seed = int(seeding.mix(search.seed, _SAMPLER, len(tried))) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # No result of this generation is known; the constant liar keeps its suggestions apart.
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
    study = optuna.create_study(directions=["maximize"] * len(search.objectives), sampler=sampler)
    for trial in tried:
        if (frozen := _frozen(search, trial, axes)) is not None:
            study.add_trial(frozen)
    known, found = [trial.settings for trial in tried], list[Settings]()
    while len(found) < count:
        for _ in range(_ATTEMPTS // 10):
            asked = study.ask(axes)
            settings = {key: _external(axis, asked.params[key]) for key, axis in search.space.items()}
            if _is_new(search, settings, [*known, *found]):
                break
            study.tell(asked, state=TrialState.FAIL)
        else:  # TPE only suggests settings that are not allowed or were tried
            more = _drawn(search, 1, [*known, *found])
            if not more:
                return found
            settings = more[0]
        found.append(settings)
    return found


def _frozen(search: TuneConfig, trial: Tried, axes: Mapping[str, Any]) -> Any:
    """The trial as an Optuna trial; None for one outside the space, or one that failed (several objectives).

    With one objective, stopped trials rank below finished ones, the later stopped the better, and failed trials last.
    With several objectives, each trial counts with its last values.
    """
    from optuna.trial import TrialState, create_trial

    params = {}
    for key, axis in search.space.items():
        if key not in trial.settings or not _has(axis, trial.settings[key]):
            return None
        params[key] = _internal(axis, trial.settings[key])
    make: Callable[..., Any] = create_trial
    if len(search.objectives) > 1:
        return trial.values and make(params=params, distributions=axes, values=list(trial.values))
    if trial.values is not None and trial.is_done:
        return make(params=params, distributions=axes, value=trial.values[0])
    reached = {} if trial.values is None else {trial.rung: trial.values[0]}
    return make(params=params, distributions=axes, state=TrialState.PRUNED, intermediate_values=reached)


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values is not None:
        last = len(axis.values) - 1
        return IntDistribution(0, last) if axis.is_scale else CategoricalDistribution(range(last + 1))
    low, high = axis.uniform or axis.log_uniform or (0.0, 1.0)
    return FloatDistribution(low, high, log=axis.log_uniform is not None)


def _internal(axis: Axis, value: Any) -> Any:
    return value if axis.values is None else axis.values.index(value)


def _external(axis: Axis, value: Any) -> Any:
    return value if axis.values is None else axis.values[value]


def _has(axis: Axis, value: Any) -> bool:
    if axis.values is not None:
        return value in axis.values
    low, high = axis.uniform or axis.log_uniform or (0.0, 1.0)
    return isinstance(value, int | float) and low <= value <= high
