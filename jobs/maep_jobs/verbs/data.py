"""`maep data`: fetch a data set, count its images, or pack ImageNet for training."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maep import registry
from maep.config import build
from maep.data.config import DataConfig
from maep.errors import ConfigError, DataError, UserError
from maep_jobs.arguments import Parser, print_result

if TYPE_CHECKING:
    from maep.data.image_set import Split
    from maep.data.pack.build import PackedShard
    from maep.data.pack.plan import PackPlan

_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_EXAMPLES = """  maep data get cifar10 --root data
  maep data show cifar10
  MAEP_DATA=/mnt/data maep data show imagenet --max-corrupt 10 --json"""
_PACK_EXAMPLES = """  maep data pack imagenet --source ILSVRC2012_img_train.tar --dry-run
  maep data pack imagenet --source ILSVRC2012_img_train.tar --root data
  maep data pack imagenet --source raw/train --shards 1024 --max-corrupt 5
  maep data pack imagenet --part val --source ILSVRC2012_img_val.tar --labels synsets.txt"""


def parser() -> Parser:
    """The verb's options, an action each."""
    made = Parser("data", "Fetch a data set (get), count its images (show), or pack ImageNet (pack).", _EXAMPLES)
    actions = made.add_subparsers(dest="action", metavar="get|show|pack", required=True, parser_class=_Action)
    actions.add_parser("get", description="Fetch a data set.", epilog=_EXAMPLES).set_defaults(run=_get)
    show = actions.add_parser("show", description="Count the images of a data set, by split.", epilog=_EXAMPLES)
    show.set_defaults(run=_show)
    summary = "Pack ImageNet into Parquet shards. If it is interrupted, re-run the same command to resume."
    pack = actions.add_parser("pack", description=summary, epilog=_PACK_EXAMPLES)
    pack.set_defaults(run=_pack)
    for each in (show, pack):
        each.add_argument("--max-corrupt", type=int, default=0, help="images that may be skipped (default: 0)")
        each.add_json()
    pack.add_argument("--source", type=Path, required=True, help="folder of class folders, or an uncompressed tar")
    pack.add_argument("--part", choices=["train", "val"], default="train", help="(default: train)")
    pack.add_argument("--labels", type=Path, metavar="FILE", help="one synset a line, for images without class folders")
    pack.add_argument("--shards", type=int, help="number of files (default: files of about 256 MiB)")
    pack.add_argument("--seed", type=int, default=0, help="seed of the order of images (default: 0)")
    pack.add_argument("--dry-run", action="store_true", help="count the images and print the plan; write nothing")
    return made


class _Action(Parser):
    """`maep data ACTION DATASET`."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(prog.removeprefix("maep "), description, epilog)
        self.add_argument("name", metavar="|".join(registry.datasets.names()))
        self.add_argument("--root", help="data root (default: $MAEP_DATA, else ./data)")


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    options = parser().parse_args(list(argv))
    registry.datasets.require([options.name], "data set")
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)
    return 0


def _get(options: argparse.Namespace) -> None:
    from maep.data.get import get

    print(get(options.name, _root(options)))


def _show(options: argparse.Namespace) -> None:
    config = build(DataConfig, {"name": options.name, "root": options.root, "max_corrupt": options.max_corrupt})
    found = [_describe(config, split) for split in _SPLITS]
    print_result(options, found, *map(_line, found))


def _pack(options: argparse.Namespace) -> None:
    if options.name != "imagenet":
        raise UserError(f"{options.name} needs no packing: only imagenet does")
    if options.max_corrupt < 0:
        raise ConfigError(f"--max-corrupt {options.max_corrupt}: must be at least 0")
    from maep.data.pack.archive import open_archive
    from maep.data.pack.build import pack
    from maep.data.pack.plan import plan_pack
    from maep_jobs.terminal.progress import Bar

    with closing(Bar("list")) as bar:
        archive = open_archive(options.source, options.labels, bar.show)
    plan = plan_pack(archive, _root(options), options.part, options.shards, options.seed)
    if options.dry_run:
        result = _planned(plan)
    else:
        with closing(Bar("pack")) as bar:
            result = _packed(plan, pack(plan, options.max_corrupt, bar.show))
    print_result(options, result, _line(result))


def _root(options: argparse.Namespace) -> Path:
    from maep.data.datasets import data_root

    return data_root(build(DataConfig, {"name": options.name, "root": options.root}))


def _line(entry: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value}" for key, value in entry.items())


def _planned(plan: PackPlan) -> dict[str, Any]:
    from maep.data.pack.plan import OFFICIAL

    archive = plan.archive
    place = next(folder for folder in plan.folder.absolute().parents if folder.is_dir())
    return {
        "part": plan.part,
        "images": len(archive),
        "official": OFFICIAL[plan.part],
        "classes": len(set(archive.synsets)),
        "bytes": int(archive.sizes.sum()),
        "free": shutil.disk_usage(place).free,
        "shards": plan.num_shards,
        "folder": str(plan.folder),
    }


def _packed(plan: PackPlan, shards: dict[str, PackedShard]) -> dict[str, Any]:
    from maep.data.pack.build import left_out
    from maep.data.pack.plan import OFFICIAL

    for line in left_out(shards):
        print(f"skipped {line}", file=sys.stderr)
    return {
        "part": plan.part,
        "images": sum(shard.rows for shard in shards.values()),
        "official": OFFICIAL[plan.part],
        "corrupt": len(left_out(shards)),
        "bytes": sum(shard.size for shard in shards.values()),
        "shards": plan.num_shards,
        "manifest": str(plan.manifest),
    }


def _describe(config: DataConfig, split: Split) -> dict[str, Any]:
    from maep.data.datasets import load

    try:
        images = load(config, split)
    except DataError as error:
        if split != "train" or not registry.datasets.declared(config.name).streamed:
            raise
        return {"split": split, "missing": str(error)}  # evaluation needs no training images
    height, width = images.image_shape
    return {
        "split": split,
        "images": len(images),
        "size": f"{height}x{width}",
        "classes": len(images.classes),
        "corrupt": len(images.corrupt),
        "fingerprint": images.fingerprint[:16],
    }
