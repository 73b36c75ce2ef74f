"""Names that a test registers for its own duration."""

from __future__ import annotations

from typing import Any

import pytest

from maep.registry import Registry


def registered(patch: pytest.MonkeyPatch, among: Registry[Any, Any], name: str, made: Any, **declared: Any) -> None:
    """Registers `made` as `name`, as its decorator with `declared` would, until the test ends."""
    patch.setitem(among._registered, name, (made, among._entry(**declared)))
