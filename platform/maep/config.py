"""Typed configuration: YAML plus `--section.key VALUE` overrides into nested dataclasses, unknown keys refused.

Each configuration class is a frozen dataclass that lives beside what it configures; this module only fills them.
It needs nothing but PyYAML, because `python -m maep.train` runs where there is no more than PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from maep.errors import ConfigError, nearest

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any] | None, where: str = "") -> T:
    """Fills dataclass `cls` from plain `values`.

    `where` is the dotted path of this section, for messages.
    Raises ConfigError for an unknown key (with the nearest name), a wrong type, or what the class itself refuses.
    """
    return typing.cast(T, _section(cls, {} if values is None else values, where))


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Reads YAML file `path` (None: defaults), applies `overrides` (`--section.key VALUE ...`) and builds `cls`."""
    values = read_yaml(path) if path is not None else {}
    return build(cls, apply_overrides(values, overrides))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {str(path)!r}: {error}") from None
    try:
        values = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be a mapping, not {type(values).__name__}")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML, but a key written twice is a mistake: by itself the second silently wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `--section.key VALUE` (or `--section.key=VALUE`) set; VALUE is read as YAML."""
    result = _copy(values)
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"unexpected argument {word!r}: overrides are written --section.key VALUE")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise ConfigError(f"--{key} needs a value")
            text = words.pop(0)
        *parents, leaf = key.split(".")
        section = result
        for parent in parents:
            inner = section.get(parent)
            if not isinstance(inner, dict):
                inner = section[parent] = {}
            section = inner
        try:
            section[leaf] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: 2024-13-45 looks like a date
            raise ConfigError(f"--{key}: cannot read the value {text!r}") from None
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """A built configuration as plain dicts, lists and scalars, ready for JSON or YAML."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def to_yaml(config: Any) -> str:
    """A built configuration as YAML that `load` takes back unchanged."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _section(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'configuration'}: expected a section of keys, got {values!r}")
    kinds = _kinds(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = _expanded(cls, values, where)
    filled: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(f"unknown key {path!r}: {nearest(str(key), fields)}")
        filled[key] = _value(kinds[key], value, path)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in filled:
            raise ConfigError(f"missing key {f'{where}.{name}' if where else name!r}")
    try:
        return cls(**filled)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where + ': ' if where else ''}{error}") from None


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    """The types of the fields: to evaluate them anew takes most of the time of building, which a search does often."""
    return typing.get_type_hints(cls)


def _expanded(cls: type, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`values` with the shorthand resolved that a class knows by its own `expand`; what is built is explicit."""
    expand = getattr(cls, "expand", None)
    try:
        return expand(values) if expand is not None else values
    except ValueError as error:
        raise ConfigError(f"{where + '.' if where else ''}{error}") from None


def _value(kind: Any, value: Any, path: str) -> Any:
    """`value` as type `kind`, or a ConfigError that names `path`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(args, value, path)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _section(kind, value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}: {value!r} is not known: {nearest(str(value), map(str, args))}")
        return value
    if origin in (list, tuple):
        return _sequence(origin, args, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        return {_value(args[0], k, path): _value(args[1], v, f"{path}.{k}") for k, v in value.items()}
    return _scalar(kind, value, path)


def _union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    if len(options) == 1:
        return _value(options[0], value, path)
    sections = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    by_name = {str(option.__dataclass_fields__["name"].default): option for option in sections}
    if by_name and isinstance(value, Mapping):  # sections that say which they are by their key `name`
        name = value.get("name", next(iter(by_name)))
        if not isinstance(name, str) or name not in by_name:
            raise ConfigError(f"{path}.name: {name!r} is not known: {nearest(str(name), by_name)}")
        return _section(by_name[name], value, path)
    for option in options:
        try:
            return _value(option, value, path)
        except ConfigError:
            continue
    raise ConfigError(f"{path}: {value!r} fits none of {', '.join(_name(option) for option in options)}")


def _sequence(origin: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    fixed = origin is tuple and args and args[-1] is not Ellipsis
    if not isinstance(value, list | tuple):
        value = [value] * (len(args) if fixed else 1)  # one value stands for every place
    if fixed and len(value) != len(args):
        raise ConfigError(f"{path}: expected {len(args)} values, got {len(value)}")
    inner = args if fixed else [args[0]] * len(value)
    return origin(_value(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(inner, value, strict=True)))


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Any or (kind is not float and type(value) is kind):
        return value
    if kind is float and not isinstance(value, bool):
        number = _number(value)
        if number is not None and math.isfinite(number):
            return number
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{path}: expected {_name(kind)}, got {value!r}")


def _number(value: Any) -> float | None:
    """A float from 0.5, '1e-4' (which YAML reads as text) or '8/255' (how budgets are written)."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        top, slash, bottom = value.partition("/")
        try:
            return float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            return None
    return None


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
