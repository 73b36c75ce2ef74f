"""Configuration as text: YAML files and command-line overrides, before any type is known.

An unquoted scalar stays a `Word`, exactly as written, until the type of its key decides how to read it: a text key
keeps it (`0123`, `/data/set #1`), a number key reads a number. YAML's own guesses (octal, comments) never apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maep.errors import ConfigError

_MOST_VALUES = 100_000
_TAGS = {"map", "seq", "null", "str", "int", "float", "bool", "timestamp", "value"}


class Word(str):
    """An unquoted scalar as it was written; quoted ones are plain `str`."""

    __slots__ = ()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, scalars unread (`Word`); an empty file is an empty mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {str(path)!r}: {error}") from None
    try:
        values = parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be a mapping, not {type(values).__name__}")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `--section.key VALUE` (or `--section.key=VALUE`) set to the word VALUE, unread."""
    result = _copy(values)
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"unexpected argument {word!r}: overrides are written --section.key VALUE")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise ConfigError(f"--{key} is not an option, and a key needs a value")
            text = words.pop(0)
        *parents, leaf = key.split(".")
        section = result
        for parent in parents:
            inner = section.get(parent)
            if isinstance(inner, Word) and inner.startswith("{"):
                inner = parse_word(inner, f"--{parent}")
            section[parent] = section = inner if isinstance(inner, dict) else {}
        section[leaf] = Word(text)
    return result


def parse_word(word: Word, path: str) -> Any:
    """A word that is a list or mapping in YAML's flow style, scalars unread. Raises ConfigError naming `path`."""
    try:
        return parse(word)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{path}: cannot read the value {str(word)!r}") from None


def parse(text: str) -> Any:
    """YAML with its scalars unread: dict, list, `Word`, `str` (quoted) or None.

    Raises yaml.YAMLError or ValueError for what is not plain YAML, duplicate keys, and recursive anchors.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _expanded(node, {}) > _MOST_VALUES:
            raise ValueError(f"its anchors expand to more than {_MOST_VALUES:,} values")
        return None if node is None else _read(loader, node, ())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()


def guess(word: Word) -> Any:
    """`word` as YAML reads it, for keys of type Any."""
    try:
        return yaml.safe_load(word)
    except (yaml.YAMLError, ValueError):  # 2024-13-45 looks like a date
        return str(word)


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values `node` has once every anchor in it is copied; `sizes` holds those of nodes seen before."""
    if id(node) not in sizes:
        sizes[id(node)] = 1  # of an anchor inside itself, which `_read` refuses
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [value for _, value in node.value]
        sizes[id(node)] = 1 + sum(_expanded(each, sizes) for each in inner)
    return sizes[id(node)]


def _read(loader: yaml.SafeLoader, node: yaml.Node, inside: tuple[yaml.Node, ...]) -> Any:
    prefix, _, tag = node.tag.rpartition(":")
    if prefix != "tag:yaml.org,2002" or tag not in _TAGS:
        raise ValueError(f"{node.tag} is not plain YAML")
    if node in inside:
        raise ValueError("an anchor contains itself")
    inside = (*inside, node)
    if isinstance(node, yaml.MappingNode):
        return _read_mapping(loader, node, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_read(loader, item, inside) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    if tag == "null":
        return None
    return Word(node.value) if node.style is None else str(node.value)


def _read_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, inside: tuple[yaml.Node, ...]) -> dict[str, Any]:
    names = [key.value for key, _ in node.value]
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError("a key is not a scalar")
        if name in names[:i]:
            raise ValueError(f"the key {name!r} is given twice")
    loader.flatten_mapping(node)  # `<<` merges another mapping; the mapping's own keys win
    return {key.value: _read(loader, value, inside) for key, value in node.value}


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which no two sections are one object, as those of a YAML anchor are: an override changes one only."""
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
