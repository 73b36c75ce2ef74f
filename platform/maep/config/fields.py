"""Declare the keys of a configuration class, and read identities and help from the declarations."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from maep.config.plain import to_plain
from maep.errors import UserError

T = TypeVar("T")

REQUIRED: Any = dataclasses.MISSING
"""The default of a key that must be given."""


class Named(Protocol):
    """Configuration classes by name, such as those of a registry."""

    def names(self) -> Iterable[str]:
        """The names to choose from. Imports nothing."""

    def config_class(self, name: str) -> type:
        """The configuration class of `name`. Raises ConfigError, naming the nearest name, for an unknown one."""


class Sections(Named, Protocol):
    """Configuration classes by name whose sections are keys of one class."""

    def meaning(self, name: str) -> str:
        """What the section is for."""


def key(default: T, meaning: str, *, decides: bool, choices: Callable[[], Iterable[str]] | None = None) -> T:
    """A key with its default and its meaning.

    decides: whether the result depends on it. Identities leave out the other keys (paths, workers, deadlines), so
        that finished work is found again when their values change.
    choices: for a text key, the names that `--help` lists. The class itself refuses others.
    """
    metadata = {"meaning": meaning, "decides": decides, "choices": choices}
    made: Any = (
        dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
        if isinstance(default, dict | list)
        else dataclasses.field(default=default, metadata=metadata)
    )
    return typing.cast(T, made)


def section(default: Callable[[], T], meaning: str = "") -> T:
    """A section: a key whose value is another configuration class, whose own keys say whether they decide."""
    made: T = dataclasses.field(default_factory=default, metadata={"meaning": meaning})
    return made


def named_section(named: Named, default: str, meaning: str = "") -> Any:
    """A section whose class its key `name` chooses among `named`; without that key, the class of `default`."""

    def make() -> Any:
        return named.config_class(default)()

    metadata = {"meaning": meaning, "named": named, "default_name": default}
    return dataclasses.field(default_factory=make, metadata=metadata)


def named_sections(named: Sections, default: Callable[[], dict[str, Any]]) -> Any:
    """A mapping from names among `named` to sections, written as keys of the class itself: terms.pixel is `pixel`."""
    return dataclasses.field(default_factory=default, metadata={"sections": named})


def sections_field(cls: type) -> dataclasses.Field[Any] | None:
    """The field of `cls` that `named_sections` made, or None."""
    return next((field for field in dataclasses.fields(cls) if "sections" in field.metadata), None)


@functools.cache
def kinds(cls: type) -> dict[str, Any]:
    """The types of the fields of `cls`. Cached: evaluating them takes most of the time of `build`."""
    return typing.get_type_hints(cls)


def deciding(config: Any) -> dict[str, Any]:
    """A built configuration as plain values, only with the keys that decide the result."""
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

    Paths are dotted: `mixture[].share` is a key of a list's items, `space.NAME.choice` of a mapping's values. Defaults
    are those of the instance `filled` if given, else of the class. A named section is described by its default class,
    and the type of its key `name` is all of `names`.
    """
    for field in dataclasses.fields(cls):
        if "sections" in field.metadata:
            sections: Sections = field.metadata["sections"]
            for name in sections.names():
                try:
                    chosen, meaning = sections.config_class(name), sections.meaning(name)
                except UserError as error:  # a package that fails must not take the help of the others away
                    yield Key(f"{prefix}{name}", "section", "", str(error), None, is_section=True)
                    continue
                yield Key(f"{prefix}{name}", "section", "", meaning, None, is_section=True)
                yield from describe(chosen, f"{prefix}{name}.", _default(field, filled).get(name))
            continue
        path, metadata, kind = f"{prefix}{field.name}", field.metadata, kinds(cls)[field.name]
        meaning = " ".join(metadata.get("meaning", "").split())
        inner = section_class(cls, field)
        if inner is not None:
            headline = " ".join((inner.__doc__ or "").partition("\n\n")[0].split())
            words, default = ("section or null", "null") if types.NoneType in get_args(kind) else ("section", "")
            yield Key(path, words, default, meaning or headline, None, is_section=True)
            yield from describe(inner, f"{path}.", _default(field, filled), _section_names(cls, field))
            continue
        words = "|".join(names) if field.name == "name" and names else type_name(kind)
        if metadata.get("choices") is not None:
            words = words.replace("text", "|".join(metadata["choices"]()))
        yield Key(path, words, _written(_default(field, filled)), meaning, metadata.get("decides"))
        item = _item_class(kind)
        if item is not None:
            yield from describe(item, f"{path}.NAME." if get_origin(kind) is dict else f"{path}[].")


def section_class(cls: type, field: dataclasses.Field[Any], name: str | None = None) -> type | None:
    """The class of a field's section, where `name` is the value of its key `name`; None if the field is no section.

    An optional section is one; an unknown name gives the default class.
    """
    named: Named | None = field.metadata.get("named")
    if named is not None:
        return named.config_class(name if name in set(named.names()) else field.metadata["default_name"])
    kind = kinds(cls)[field.name]
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def inner_classes(cls: type) -> dict[str, list[type]]:
    """For each key of `cls`, the possible classes of its section, or of the items of its list or mapping."""
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
    return [] if named is None else list(named.names())


def _item_class(kind: Any) -> type | None:
    """The configuration class of the items of a list or mapping, if they have one."""
    args = get_args(kind)
    item = args[1] if get_origin(kind) is dict else args[0] if get_origin(kind) in (list, tuple) else None
    return item if isinstance(item, type) and dataclasses.is_dataclass(item) else None


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
    """A value as a user writes it; a number that is only short as a fraction of 255 is written N/255."""
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
