"""A part of a search's page: its charts, with what each says in words and in figures; what cannot be drawn is said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from maep.evaluate.report.page import Picture


@dataclass(frozen=True)
class Section:
    """The charts of one question; `remarks` say what could not be drawn, and why. `key` is its place on the page."""

    key: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def setting_text(settings: dict[str, Any]) -> str:
    """Settings as they are written in a sentence."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in settings.items()) or "nothing varied"


def value_text(value: Any) -> str:
    """One setting's value: a number in four digits, a section as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
