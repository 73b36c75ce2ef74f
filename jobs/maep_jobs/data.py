"""`maep data`: fetch a data set, or say what lies there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maep.config import build
from maep.data.datasets import DataConfig, data_root, load
from maep.data.get import get
from maep.data.image_set import Split
from maep.errors import DataError, UserError, nearest
from maep_jobs.arguments import Parser

_NAMES = ("digits", "cifar10", "imagenet")
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_EXAMPLES = """examples:
  maep data get cifar10 --root data
  maep data show cifar10
  MAEP_DATA=/mnt/data maep data show imagenet --max-corrupt 10 --json"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = Parser("data", "Fetch a data set (get), or count what lies there by split (show).", _EXAMPLES)
    made.add_argument("action", choices=["get", "show"])
    made.add_argument("name", metavar="digits|cifar10|imagenet")
    made.add_argument("--root", help="data root (default: $MAEP_DATA, else ./data)")
    made.add_argument("--max-corrupt", type=int, default=0, help="so many images may be left out")
    made.add_argument("--json", action="store_true")
    options = made.parse_args(list(argv))
    if options.name not in _NAMES:
        raise UserError(f"data set {options.name!r} is not known: {nearest(options.name, _NAMES)}")
    values = {"name": options.name, "root": options.root, "max_corrupt": options.max_corrupt}
    config = build(DataConfig, values)
    if options.action == "get":
        print(get(options.name, Path(data_root(config))))
        return 0
    found = [_describe(config, split) for split in _SPLITS]
    if options.json:
        print(json.dumps(found))
    else:
        for entry in found:
            print("  ".join(f"{key} {value}" for key, value in entry.items()))
    return 0


def _describe(config: DataConfig, split: Split) -> dict[str, Any]:
    try:
        images = load(config, split)
    except DataError as error:
        if split != "train" or config.name != "imagenet":
            raise
        return {"split": split, "missing": str(error)}  # an evaluation needs no training images
    height, width = images.image_shape
    return {
        "split": split,
        "images": len(images),
        "size": f"{height}x{width}",
        "classes": len(images.classes),
        "corrupt": len(images.corrupt),
        "fingerprint": images.fingerprint[:16],
    }
