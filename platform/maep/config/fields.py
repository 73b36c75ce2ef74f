"""How a configuration class declares its keys, and what is read from the declarations: identity and help."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from maep.config.plain import to_plain

T = TypeVar("T")

REQUIRED: Any = dataclasses.MISSING
"""The default of a key that must be given."""


class Named(Protocol):
    """A set of configuration classes by name, such as a registry."""

    def names(self) -> Iterable[str]:
        """The names to choose from; nothing is imported for them."""

    def config_class(self, name: str) -> type:
        """The class that `name` is configured by. Raises ConfigError, with the nearest name, for another name."""


class Sections(Named, Protocol):
    """The same, of sections that are keys of one class."""

    def meaning(self, name: str) -> str:
        """What the section is for."""


def key(default: T, meaning: str, *, decides: bool, choices: Callable[[], Iterable[str]] | None = None) -> T:
    """A key with its default and its meaning.

    `decides`: whether the result depends on it. Keys that do not decide (places, workers, deadlines) are left out of
    identities, so that finished work is found again under other values of them.
    `choices`: for a text key, the names it may take (listed by `--help`; the class itself refuses others).
    """
    metadata = {"meaning": meaning, "decides": decides, "choices": choices}
    made: Any = (
        dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
        if isinstance(default, dict | list)
        else dataclasses.field(default=default, metadata=metadata)
    )
    return typing.cast(T, made)


def section(default: Callable[[], T], meaning: str = "") -> T:
    """A key that holds keys: another configuration class. Its own keys say whether they decide."""
    made: T = dataclasses.field(default_factory=default, metadata={"meaning": meaning})
    return made


def named_section(named: Named, default: str, meaning: str = "") -> Any:
    """A section whose class is chosen by its key `name` among `named`; without one it is `default`'s."""

    def make() -> Any:
        return named.config_class(default)()

    metadata = {"meaning": meaning, "named": named, "default_name": default}
    return dataclasses.field(default_factory=make, metadata=metadata)


def named_sections(named: Sections, default: Callable[[], dict[str, Any]]) -> Any:
    """A mapping of sections by name among `named`, whose names are keys of the class itself: terms.pixel is `pixel`."""
    return dataclasses.field(default_factory=default, metadata={"sections": named})


def sections_field(cls: type) -> dataclasses.Field[Any] | None:
    """The field of `cls` that is made by `named_sections`, if it has one."""
    return next((field for field in dataclasses.fields(cls) if "sections" in field.metadata), None)


@functools.cache
def kinds(cls: type) -> dict[str, Any]:
    """The types of a class's fields, evaluated once: evaluation takes most of the time of a build."""
    return typing.get_type_hints(cls)


def deciding(config: Any) -> dict[str, Any]:
    """A built configuration as plain values, without the keys that do not decide the result."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("decides", True):
            value = _deciding(getattr(config, field.name))
            if "sections" in field.metadata:
                values |= value
            elif value != {} or "decides" in field.metadata:  # a section of which nothing decides is left out
                values[field.name] = value
    return values


def _deciding(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return deciding(value)
    if isinstance(value, Mapping):
        return {str(name): _deciding(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_deciding(inner) for inner in value]
    return to_plain(value)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key or section of a configuration class, for help and documentation.

    `decides` is None where it is not declared, and for sections, whose own keys declare it.
    """

    path: str
    type: str
    default: str
    meaning: str
    decides: bool | None
    is_section: bool = False


def describe(cls: type, prefix: str = "", filled: Any = None, names: Sequence[str] = ()) -> Iterator[Key]:
    """Every section and key of `cls` in the order of declaration, each section before its keys.

    Paths are dotted; keys of the items of a list have paths such as `mixture[].share`, those of the values of a
    mapping `space.NAME.choice`. Defaults are those of the instance `filled`, if given, else of the class. A section of
    several classes has the keys of the default one, and its key `name` all `names`.
    """
    for field in dataclasses.fields(cls):
        if "sections" in field.metadata:
            yield from _describe_sections(field.metadata["sections"], _default(field, filled), prefix)
            continue
        path, metadata, kind = f"{prefix}{field.name}", field.metadata, kinds(cls)[field.name]
        meaning = " ".join(metadata.get("meaning", "").split())
        inner = section_class(cls, field)
        if inner is not None:
            words, default = ("section or null", "null") if types.NoneType in get_args(kind) else ("section", "")
            yield Key(path, words, default, meaning or _headline(inner), None, is_section=True)
            yield from describe(inner, f"{path}.", _default(field, filled), _section_names(cls, field))
            continue
        words = "|".join(names) if field.name == "name" and names else type_name(kind)
        if metadata.get("choices") is not None:
            words = words.replace("text", "|".join(metadata["choices"]()))
        yield Key(path, words, _written(_default(field, filled)), meaning, metadata.get("decides"))
        item = _item_class(kind)
        if item is not None:
            yield from describe(item, f"{path}.NAME." if get_origin(kind) is dict else f"{path}[].")


def _describe_sections(named: Sections, filled: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    for name in named.names():
        inner = named.config_class(name)
        yield Key(f"{prefix}{name}", "section", "", named.meaning(name), None, is_section=True)
        yield from describe(inner, f"{prefix}{name}.", filled.get(name))


def section_class(cls: type, field: dataclasses.Field[Any], name: str | None = None) -> type | None:
    """The class that a field's section is filled from, where `name` is its key `name`; None: the field is no section.

    An optional section is one; of several classes, `name` chooses, and the first is the default.
    """
    named: Named | None = field.metadata.get("named")
    if named is not None:
        default: str = field.metadata["default_name"]
        return named.config_class(name if name in set(named.names()) else default)
    sections = _sections(kinds(cls)[field.name])
    by_name = {str(option.__dataclass_fields__["name"].default): option for option in sections if len(sections) > 1}
    return by_name.get(name or "", sections[0] if sections else None)


def inner_classes(cls: type) -> dict[str, list[type]]:
    """By key of `cls`, every class that its section, or the items of its list or mapping, may have."""
    classes: dict[str, list[type]] = {}
    for field in dataclasses.fields(cls):
        if "sections" in field.metadata:
            sections: Sections = field.metadata["sections"]
            classes |= {name: [sections.config_class(name)] for name in sections.names()}
            continue
        names: list[str | None] = [*_section_names(cls, field)] or [None]
        found = [*(section_class(cls, field, name) for name in names), _item_class(kinds(cls)[field.name])]
        classes[field.name] = [each for each in found if each is not None]
    return classes


def _section_names(cls: type, field: dataclasses.Field[Any]) -> list[str]:
    """The names that choose a section's class; empty where there is only one."""
    named: Named | None = field.metadata.get("named")
    if named is not None:
        return list(named.names())
    sections = _sections(kinds(cls)[field.name])
    return [str(option.__dataclass_fields__["name"].default) for option in sections if len(sections) > 1]


def _item_class(kind: Any) -> type | None:
    """The configuration class of the items of a list or mapping, if they have one."""
    args = get_args(kind)
    item = args[1] if get_origin(kind) is dict else args[0] if get_origin(kind) in (list, tuple) else None
    return item if isinstance(item, type) and dataclasses.is_dataclass(item) else None


def _sections(kind: Any) -> list[Any]:
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]


def _headline(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def type_name(kind: Any) -> str:
    """A type as a user reads it: text, number, A|B|C, list of text."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if option is types.NoneType else type_name(option) for option in args)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (list, tuple):
        inner = type_name(args[0])
        return f"list of {inner}" if origin is list or args[-1] is Ellipsis else f"[{', '.join(map(type_name, args))}]"
    if origin is dict:
        return f"mapping to {type_name(args[1])}"
    words = {str: "text", int: "integer", float: "number", bool: "true|false", Any: "any"}
    return words.get(kind, "section" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind)))


def _default(field: dataclasses.Field[Any], filled: Any) -> Any:
    if filled is not None:
        return getattr(filled, field.name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _written(value: Any) -> str:
    """A value as a user writes it; numbers that are short only in steps of 1/255 are written so."""
    value = to_plain(value)
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, float):
        short, levels = f"{value:g}", f"{value * 255:g}"
        return short if float(short) == value or float(levels) / 255 != value else f"{levels}/255"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
