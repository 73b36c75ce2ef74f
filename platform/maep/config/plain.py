"""Built configurations as plain values: dicts, YAML, flat keys, digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def to_dict(config: Any) -> dict[str, Any]:
    """A built configuration as plain dicts, lists and scalars, ready for JSON or YAML."""
    plain = to_plain(config)
    assert isinstance(plain, dict)
    return plain


def to_yaml(config: Any) -> str:
    """A built configuration as YAML that `load` reads back unchanged."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as text; everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            made = to_plain(getattr(value, field.name))
            plain |= made if "sections" in field.metadata else {field.name: made}
        return plain
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key: {"loop": {"lr": 1}} -> {"loop.lr": 1}. An empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def digest(values: Any) -> str:
    """Eight hex digits that identify plain `values`, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
