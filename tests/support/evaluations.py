"""Finished evaluations to show and compare: the one that ships with maep, and copies of it with something changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from maep import storage
from maep.evaluate.results import rows, summary
from maep.evaluate.results.summary import Result


def bundled() -> Result:
    """Of `bundled:cifar10`: two purifiers and the baselines before two classifiers."""
    return summary.read(Path(str(resources.files("maep").joinpath("bundled/cifar10/evaluation"))))


def changed(
    result: Result,
    folder: Path,
    values: Callable[[dict[str, Any]], None] = lambda _: None,
    table: Callable[[pa.Table], pa.Table] = lambda same: same,
) -> Result:
    """A copy in `folder`, whole and valid, of which `values` and rows were changed."""
    copied = json.loads(json.dumps(result.values))
    data = rows.encode(table(result.rows()))
    values(copied)
    copied["images_sha256"] = storage.sha256(data)
    storage.write_bytes(folder / summary.IMAGES, data)
    storage.write_bytes(folder / summary.RESULT, json.dumps(copied).encode())
    return summary.read(folder)
