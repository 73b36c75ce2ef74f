"""The manifest that `maep data pack` writes beside the Parquet files of a part, and its check against those files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from maep import storage
from maep.data.reading import store
from maep.errors import DataError


def manifest_name(part: str) -> str:
    """The manifest's file name, for the part train or val."""
    return f"{part}-manifest.json"


def read_manifest(folder: str, part: str, timeout_s: float) -> bytes | None:
    """The manifest of a part in `folder`; None if there is none."""
    with suppress(DataError):
        return store.read_bytes(storage.join(folder, manifest_name(part)), timeout_s)
    return None


def sizes(manifest: bytes) -> dict[str, int | None]:
    """Bytes of each file that the manifest lists, None where it does not say; empty if the manifest is damaged."""
    try:
        entries: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
        return {name: entry.get("size") for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def refuse_unlike(manifest: bytes, folder: str, found: Mapping[str, int]) -> None:
    """Raise DataError, naming the file, if one that the manifest lists is missing or of another size.

    found  bytes of each file in `folder`
    """
    for name, size in sizes(manifest).items():
        cure = "fetch it again, or pack again with `maep data pack`"
        if name not in found:
            raise DataError(f"{folder}/{name} is missing, though the manifest lists it: {cure}")
        if size is not None and found[name] != size:
            raise DataError(f"{folder}/{name} has {found[name]:,} bytes, its manifest says {size:,}: {cure}")
