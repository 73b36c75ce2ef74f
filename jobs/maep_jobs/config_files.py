"""Configuration files: find one by path or shipped name, and read the section of a verb."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

from maep import config
from maep.errors import ConfigError, nearest

_PHASES = {"pretrain", "finetune"}
"""Verbs that read their own section from a file for several verbs, such as the best.yaml of a search."""


def find(name: str, where: str = "--config") -> Path:
    """The file at path `name`, or the shipped configuration of that name (`cifar10/pretrain`).

    Raises ConfigError naming `where` if neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = Path(str(resources.files("maep_jobs"))) / "configs"
    inside = shipped / f"{name}.yaml"
    if inside.is_file() and ".." not in Path(name).parts:
        return inside
    names = [path.relative_to(shipped).with_suffix("").as_posix() for path in shipped.rglob("*.yaml")]
    raise ConfigError(f"{where} {name!r}: there is no such file or shipped configuration: {nearest(name, names)}")


def read(source: str, verb: str, settings_class: type) -> tuple[dict[str, Any], str]:
    """The values in `source` for `verb`, scalars unread, and a name for results made from them.

    From a file with one section per verb, a verb reads its own section and `tracking`.
    """
    values = config.read_yaml(find(source))
    keys = {field.name for field in dataclasses.fields(settings_class)}
    others = [key for key in values if key in _PHASES - keys]
    if verb in _PHASES and verb not in values and others:  # best.yaml of a U-Net has nothing to pretrain
        raise ConfigError(f"{source}: has no section {verb}, only sections for maep {' and maep '.join(others)}")
    if verb not in values or verb in keys:
        return _with_sections(values, settings_class), source
    mixed = [key for key in values if key in keys]
    if mixed:
        raise ConfigError(f"{source}: {mixed[0]} must be inside the section {verb}")
    section = values[verb]
    section = config.read_yaml(find(section, verb)) if isinstance(section, str) else section
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: {verb}: expected a section of keys, got {section!r}")
    shared = {key: values[key] for key in ("tracking",) if key in values}
    return _with_sections({**section, **shared}, settings_class), f"{source.removesuffix('.yaml')}/{verb}"


def _with_sections(values: dict[str, Any], settings_class: type) -> dict[str, Any]:
    """`values` with each section given by name (`finetune: cifar10/finetune`) read from that configuration."""
    for field in dataclasses.fields(settings_class):
        value = values.get(field.name)
        if isinstance(value, str) and not value.startswith("{") and config.section_class(settings_class, field):
            values[field.name] = config.read_yaml(find(value, field.name))
            values[field.name].pop("tracking", None)
    return values


def default_output(name: str) -> Path:
    """The folder for results where --output is not given: `outputs/` and the name of the configuration."""
    return Path("outputs") / name.removesuffix(".yaml").lstrip("./")
