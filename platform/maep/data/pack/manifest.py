"""The manifest that `maep data pack` writes last, held against the shards that lie there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from maep.errors import DataError

Part = str


def name_of(part: Part) -> str:
    """Its name, for the part train or val."""
    return f"{part}-manifest.json"


def shards(text: bytes) -> dict[str, int | None]:
    """Bytes of each file that a manifest is of, None where it does not say; nothing where it is damaged."""
    try:
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        return {name: entry.get("size") for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def refuse_unlike(text: bytes, folder: str, found: Mapping[str, int]) -> None:
    """Raises DataError, which names the shard, where one of the manifest is missing or of another size.

    `found` are the bytes of the files that lie in `folder`. What they hold is not read: each image is, when it comes.
    """
    for name, size in shards(text).items():
        if name not in found:
            raise DataError(f"{folder}/{name} is missing, which was packed: fetch it, or pack again (maep data pack)")
        if size is not None and found[name] != size:
            raise DataError(
                f"{folder}/{name} has {found[name]:,} bytes, packed were {size:,}: it was truncated or replaced, fetch"
                " it, or pack again (maep data pack)"
            )
