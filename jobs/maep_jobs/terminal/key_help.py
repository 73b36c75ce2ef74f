"""The configuration keys of a verb as `--help` shows them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from maep.config import Key

_COLUMN = 28
"""Where meanings begin."""


def keys_text(keys: Sequence[Key]) -> str:
    """Keys with type, meaning and default, by section, wrapped to the terminal."""
    width = max(shutil.get_terminal_size().columns - 2, 60)
    sections: dict[str, list[str]] = {"": []}
    for key in keys:
        if key.is_section:
            optional = " (null by default)" if key.default == "null" else ""
            heading = f"{key.path}: {key.meaning}{optional}"
            sections[key.path] = ["", *textwrap.wrap(heading, width, subsequent_indent="  ")]
        else:
            owner = key.path
            while owner not in sections:
                owner = owner.rpartition(".")[0]
            sections[owner] += _entry(key, width)
    return "\n".join(line for lines in sections.values() for line in lines).strip("\n")


def _entry(key: Key, width: int) -> list[str]:
    name = f"  --{key.path}"
    default = "required" if key.default == "required" else f"default: {key.default or 'empty'}"
    kind = key.type.replace("|", " | ") if len(key.type) > _COLUMN else key.type  # may break between choices
    text = f"{key.meaning} ({kind}; {default})"
    margin = " " * _COLUMN
    lines = textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    if len(name) < _COLUMN - 1:
        return [f"{name:<{_COLUMN}}{lines[0].strip()}", *lines[1:]]
    return [name, *lines]
