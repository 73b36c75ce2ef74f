"""Fill configuration classes from plain values. Errors name the path of an unknown key or a wrong type."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from maep.config.fields import Named, describe, kinds, section_class, sections_field, type_name
from maep.config.text import Word, apply_overrides, guess, parse_word, read_yaml
from maep.errors import ConfigError, few, nearest

T = TypeVar("T")
_LARGEST = 2**63 - 1
"""The largest integer that torch, Arrow and MLflow hold."""


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Reads YAML file `path` (None: defaults), applies `overrides` (`--section.key VALUE ...`) and builds `cls`."""
    values = read_yaml(path) if path is not None else {}
    return build(cls, apply_overrides(values, overrides))


def build(cls: type[T], values: Mapping[str, Any] | None, where: str = "", also: Iterable[str] = ()) -> T:
    """Fills dataclass `cls` from plain `values`.

    where: the dotted path of this section, for messages.
    also: paths that are not keys of `cls` but known to the caller, such as options of the command line.
    All keys are checked before any value is read, so that a misspelt key is refused before a value causes an import.
    Raises ConfigError for an unknown key (naming the nearest one, or the same key of another section), a wrong type, or
    a value that the class itself refuses.
    """
    values = {} if values is None else values
    for found in _unknown_keys(cls, values, where):
        raise ConfigError(_unknown(cls, found, where, list(also)))
    return typing.cast(T, _section(cls, values, where))


def _unknown_keys(cls: type, values: Any, where: str) -> Iterator[tuple[str, str, list[str]]]:
    """For each unknown key: its path, its name and the known names of its section."""
    values = _mapping(values, where)
    if not isinstance(values, Mapping):
        return  # refused when it is filled
    fields, named = _keys(cls)
    for name, value in _expanded(cls, values, where).items():
        path = f"{where}.{name}" if where else str(name)
        value = _mapping(value, path)
        chosen = value.get("name") if isinstance(value, Mapping) else None
        if name in fields:
            section = section_class(cls, fields[name], chosen if isinstance(chosen, str) else None)
        elif named is not None and name in set(named.names()):
            section = named.config_class(name)
        else:
            yield path, str(name), [*fields, *(named.names() if named is not None else ())]
            continue
        if section is not None:
            yield from _unknown_keys(section, value, path)


def _unknown(cls: type, found: tuple[str, str, list[str]], where: str, also: list[str]) -> str:
    path, name, known = found
    place = path.rpartition(".")[0]
    here = [other for other in also if other.rpartition(".")[0] == place]
    if name in here:
        return f"unknown key {path!r}: it is an option: --{path}"
    keys = [key.path for key in describe(cls, f"{where}." if where else "") if not key.is_section]
    elsewhere = [f"--{other}" for other in [*keys, *also] if other.rpartition(".")[2] == name and "[" not in other]
    if elsewhere:
        return f"unknown key {path!r}: did you mean {few(elsewhere, ' or ')}?"
    return f"unknown key {path!r}: {nearest(name, [*known, *here])}"


def _section(cls: type, values: Any, where: str) -> Any:
    values = _mapping(values, where)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'configuration'}: expected a section of keys, got {_shown(values)}")
    fields, sections = _keys(cls)
    filled: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for name, value in _expanded(cls, values, where).items():
        path = f"{where}.{name}" if where else str(name)
        if name not in fields:
            if sections is None or name not in set(sections.names()):
                raise ConfigError(f"unknown key {path!r}: {nearest(str(name), fields)}")
            inner[name] = _value(sections.config_class(name), value, path)
            continue
        named = fields[name].metadata.get("named")
        if named is not None:
            filled[name] = _named(named, fields[name].metadata["default_name"], value, path)
        else:
            filled[name] = _value(kinds(cls)[name], value, path)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in filled:
            raise ConfigError(f"missing key {f'{where}.{name}' if where else name!r}")
    holder = sections_field(cls)
    if holder is not None and inner:
        assert callable(holder.default_factory)
        filled[holder.name] = holder.default_factory() | dict(sorted(inner.items()))
    try:
        return cls(**filled)
    except ConfigError as error:
        if where and str(error).partition(":")[0] in fields:  # an unregistered name: `name: 'digit' is not known`
            raise ConfigError(f"{where}.{error}") from None
        raise
    except ValueError as error:
        raise ConfigError(f"{where + ': ' if where else ''}{error}") from None


def _keys(cls: type) -> tuple[dict[str, dataclasses.Field[Any]], Named | None]:
    """The keys that `cls` declares, and the named sections that are also its keys."""
    holder = sections_field(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field is not holder}
    return fields, holder.metadata["sections"] if holder is not None else None


def _named(named: Any, default: str, value: Any, path: str) -> Any:
    """A section of the class that its key `name` chooses; a built section is returned as it is."""
    if dataclasses.is_dataclass(value):
        return value
    value = _mapping(value, path)
    name = value.get("name", default) if isinstance(value, Mapping) else default
    known = list(named.names())
    if name not in known:
        raise ConfigError(f"{path}.name: {_shown(name)} is not known: {nearest(str(name), known)}")
    return _section(named.config_class(str(name)), value, path)


def _mapping(values: Any, where: str) -> Any:
    """A mapping that was written as one word, `{lr: 1}`; anything else is returned as it is."""
    return parse_word(values, f"--{where}") if isinstance(values, Word) and values.startswith("{") else values


def _expanded(cls: type, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`values` with the class's own shorthand (its method `expand`) resolved."""
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
        return _literal(args, value, path)
    if origin in (list, tuple):
        return _sequence(origin, args, value, path)
    if origin is dict:
        value = _mapping(value, path)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {_shown(value)}")
        names = {name: Word(name) if isinstance(name, str) else name for name in value}  # read as the key's type
        return {_value(args[0], names[k], path): _value(args[1], v, f"{path}.{k}") for k, v in value.items()}
    return _any(value) if kind is Any else _scalar(kind, value, path)


def _union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if types.NoneType in options:
        options = tuple(option for option in options if option is not types.NoneType)
        empty = isinstance(value, Word) and (value == "null" or (value == "" and str not in options))
        if value is None or empty:
            return None
    if len(options) == 1:
        return _value(options[0], value, path)
    for option in options:
        try:
            return _value(option, value, path)
        except ConfigError:
            continue
    raise ConfigError(f"{path}: {_shown(value)} fits none of {', '.join(map(type_name, options))}")


def _literal(args: tuple[Any, ...], value: Any, path: str) -> Any:
    read = {str(arg): arg for arg in args}.get(value, value) if isinstance(value, Word) else value
    if not any(read == arg and type(read) is type(arg) for arg in args):
        raise ConfigError(f"{path}: {_shown(value)} is not known: {nearest(str(value), map(str, args))}")
    return read


def _sequence(origin: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    fixed = origin is tuple and args and args[-1] is not Ellipsis
    if isinstance(value, Word) and value.startswith("["):
        value = parse_word(value, f"--{path}")
    if not isinstance(value, list | tuple):
        value = [value] * (len(args) if fixed else 1)  # one value is used for every position
    if fixed and len(value) != len(args):
        raise ConfigError(f"{path}: expected {len(args)} values, got {len(value)}")
    inner = args if fixed else [args[0]] * len(value)
    return origin(_value(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(inner, value, strict=True)))


def _any(value: Any) -> Any:
    """A value of a key of type Any: words are read as YAML reads them."""
    if isinstance(value, Word):
        return _any(parse_word(value, "--")) if value[:1] in ("[", "{") else guess(value)
    if isinstance(value, Mapping):
        return {str(name): _any(inner) for name, inner in value.items()}
    return [_any(inner) for inner in value] if isinstance(value, list) else value


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind is Path and isinstance(value, str):
        return Path(str(value))
    if kind is float and not isinstance(value, bool):
        number = _number(value)
        if number is not None and math.isfinite(number):
            return number
    elif isinstance(value, Word) and kind in (int, bool):
        read = int(value) if kind is int and re.fullmatch("[+-]?[0-9]+", value) else guess(value)  # 0123 is 123
        if type(read) is kind and abs(read) <= _LARGEST:
            return read
    elif kind is not float and type(value) is kind and (kind is not int or abs(value) <= _LARGEST):
        return value
    raise ConfigError(f"{path}: expected {getattr(kind, '__name__', kind)}, got {_shown(value)}")


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


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Word) else repr(value)
