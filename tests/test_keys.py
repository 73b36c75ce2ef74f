"""Each key of each configuration class declares its meaning and whether it decides the result."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import json
from collections.abc import Iterator

import pytest

from maep import config
from maep.attacks.config import AttackConfig
from maep.tracking.client import TrackingConfig
from maep_jobs.arguments import JobParser
from maep_jobs.cli import VERBS


def below(cls: type) -> Iterator[type]:
    """The class, then the classes of its sections and lists."""
    yield cls
    for inner in itertools.chain(*config.inner_classes(cls).values()):
        yield from below(inner)


def roots() -> Iterator[type]:
    """The configuration class of each verb, and classes that no verb uses."""
    for verb in VERBS:
        parser = importlib.import_module(f"maep_jobs.verbs.{verb}").parser()
        if isinstance(parser, JobParser):
            yield parser.settings_class
    yield from (TrackingConfig, AttackConfig)


CLASSES = list(dict.fromkeys(cls for root in roots() for cls in below(root)))
KEYS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls) if "decides" in field.metadata]


def unchecked(cls: type) -> object:
    """An instance of `cls` with its defaults, whether or not the class accepts them together."""
    made = object.__new__(cls)
    for field in dataclasses.fields(cls):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        object.__setattr__(made, field.name, None if value is dataclasses.MISSING else value)
    return made


def test_all_are_found() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert {"LoopConfig", "ConvConfig", "LoraConfig", "Axis", "MixtureConfig", "GateConfig", "ServeConfig"} <= names
    assert len(KEYS) > 150


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_key_is_declared(cls: type) -> None:
    for key in config.describe(cls):
        assert key.meaning, key.path
        assert key.is_section or key.decides is not None, key.path


@pytest.mark.parametrize(("cls", "name"), KEYS, ids=lambda value: getattr(value, "__name__", value))
def test_a_changed_value_changes_the_identity_exactly_if_it_decides(cls: type, name: str) -> None:
    before = unchecked(cls)
    after = copy.copy(before)
    object.__setattr__(after, name, "another value")
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    changed = config.digest(config.deciding(after)) != config.digest(config.deciding(before))
    assert changed is field.metadata["decides"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_deciding_values_are_plain(cls: type) -> None:
    json.dumps(config.deciding(unchecked(cls)))


ANY_SIGN = {"seed"}
"""Numbers that may be negative."""


def numbers() -> Iterator[tuple[type, str, float | int]]:
    """Each numeric key of the classes whose defaults fit together, and its default."""
    for cls in CLASSES:
        try:
            made = cls()
        except (ValueError, TypeError):
            continue
        for field in dataclasses.fields(cls):
            value = getattr(made, field.name)
            if type(value) in (int, float):
                yield cls, field.name, value


@pytest.mark.parametrize(
    ("cls", "name", "default"), [pytest.param(*each, id=f"{each[0].__name__}.{each[1]}") for each in numbers()]
)
def test_numbers_that_mean_nothing_are_refused(cls: type, name: str, default: float | int) -> None:
    """Also when the class is built in Python, past the checks of text."""
    if name not in ANY_SIGN:
        with pytest.raises(ValueError, match=name):
            cls(**{name: type(default)(-1)})
    if isinstance(default, float):
        with pytest.raises(ValueError, match=name):
            cls(**{name: float("nan")})
