"""`maep gpu`: pack code, configuration and CIFAR-10 for a machine that has PyTorch and no more."""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import maep
from maep.data.datasets import DataConfig, data_root
from maep.errors import DataError
from maep_jobs.arguments import Parser, find

_ROOM = 60 * 2**20
_EXAMPLES = """examples:
  maep gpu
  maep gpu --pretrain my/pretrain.yaml --finetune my/finetune.yaml --output packed"""
_NEXT = """
on the machine, in a folder that holds the parts (they may come one after the other):
  for part in maep-gpu-*.tar; do tar xf "$part"; done
  cd maep-gpu && MAEP_DATA=data PYTHONPATH=code python -m maep.train --pretrain pretrain.yaml \\
      --finetune finetune.yaml --output out --minutes 8
the second line again goes on from what it left; out/finetune/model is the purifier
to bring what it made back in files of 15 MiB (there, in maep-gpu), and to join them (here, beside them):
  tar cf - out | split -b 15M - out.tar.
  cat out.tar.* | tar xf -
how fast the machine trains, and what of it the time goes to (there, before or instead):
  PYTHONPATH=code python -m maep.train.benchmark --preset B/16 --image_size 224 --batch_size 256 --steps 50"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = Parser(
        "gpu", "Pack code, configuration and CIFAR-10 into parts under 60 MiB, and print what to run there.", _EXAMPLES
    )
    made.add_argument("--pretrain", default="cifar10/pretrain", metavar="NAME|FILE")
    made.add_argument("--finetune", default="cifar10/finetune", metavar="NAME|FILE")
    made.add_argument("--output", type=Path, default=Path("outputs/gpu"), metavar="DIR")
    options = made.parse_args(list(argv))
    files = [*_code(), *_configurations(options), *_data(data_root(DataConfig("cifar10")))]
    options.output.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(_parts(files)):
        path = options.output / f"maep-gpu-{number}.tar"
        with tarfile.open(path, "w") as tar:
            for source, name in part:
                tar.add(source, f"maep-gpu/{name}")
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB, {len(part)} files")
    print(_NEXT)
    return 0


def _code() -> Iterator[tuple[Path, str]]:
    root = Path(maep.__file__).parent
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and path.suffix != ".pyc" and inside.parts[0] != "bundled":
            yield path, f"code/maep/{inside.as_posix()}"


def _configurations(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    for phase in ("pretrain", "finetune"):
        yield find(getattr(options, phase)), f"{phase}.yaml"


def _data(root: Path) -> list[tuple[Path, str]]:
    """CIFAR-10's training images and the classifiers; raises DataError where they are missing."""
    images = sorted((root / "cifar10").glob("train*.parquet"))
    weights = sorted((root / "weights").glob("cifar10_*.safetensors"))
    if not images or not weights:
        lacking = "cifar10/train*.parquet" if not images else "weights/cifar10_*.safetensors"
        raise DataError(f"{root / lacking} is missing: set $MAEP_DATA to the folder that holds it")
    return [(path, f"data/{path.relative_to(root).as_posix()}") for path in (*weights, *images)]


def _parts(files: Sequence[tuple[Path, str]]) -> list[list[tuple[Path, str]]]:
    """Files in the order given, each part under 60 MiB with tar's own headers counted."""
    parts: list[list[tuple[Path, str]]] = [[]]
    size = 10_240
    for source, name in files:
        needed = source.stat().st_size + 2_048
        if needed > _ROOM:
            raise DataError(f"{source} has {needed / 2**20:.0f} MiB, more than a part may have: split it")
        if size + needed > _ROOM:
            parts.append([])
            size = 10_240
        parts[-1].append((source, name))
        size += needed
    return parts
