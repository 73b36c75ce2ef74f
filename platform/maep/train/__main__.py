"""`python -m maep.train`: both training phases on a machine that has PyTorch alone; run it again to resume.

    python -m maep.train --pretrain cifar10/pretrain.yaml --finetune cifar10/finetune.yaml --output out

The files are those of `maep pretrain` and `maep finetune`; their sections `tracking` and `workers` are ignored, and
`validation` is ignored with a warning. Further arguments override keys of either phase: `--finetune.loop.samples
500000`. `--minutes M` stops after M minutes and SIGTERM stops immediately, both with a checkpoint; the same command
resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from maep import config
from maep.artifact import Artifact
from maep.errors import ConfigError, Stopped, UserError
from maep.train.build_tasks import pretraining, purification
from maep.train.config import FinetuneConfig, PretrainConfig, WorkersConfig
from maep.train.loop.callback import Callback, TrainingProgress
from maep.train.loop.run import run
from maep.train.loop.termination import Notice, on_sigterm

T = TypeVar("T", PretrainConfig, FinetuneConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the phases; exit status 0 done, 1 failed, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m maep.train", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--pretrain", type=Path, help="configuration of the first phase (default: skip it)")
    parser.add_argument("--finetune", type=Path, help="configuration of the second phase (default: skip it)")
    parser.add_argument("--output", type=Path, required=True, help="folder for results and checkpoints")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this many minutes")
    arguments, overrides = parser.parse_known_args(argv)
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes else math.inf
    try:
        with on_sigterm() as notice:
            _phases(arguments, overrides, lambda: notice() or time.monotonic() > deadline)
    except UserError as error:
        print(f"maep.train: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"maep.train: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(stopped)
    return 0


def _phases(arguments: argparse.Namespace, overrides: Sequence[str], notice: Notice) -> None:
    files = {phase: path for phase in ("pretrain", "finetune") if (path := getattr(arguments, phase)) is not None}
    if not files:
        raise UserError("nothing to do: give --pretrain FILE, --finetune FILE or both")
    values = config.apply_overrides({phase: config.read_yaml(path) for phase, path in files.items()}, overrides)
    for key in values:
        if key not in files:
            raise ConfigError(f"unknown key {key!r}: overrides are written --{next(iter(files))}.section.key VALUE")
    autoencoder = arguments.output / "pretrain"
    first = _build(PretrainConfig, values["pretrain"]) if "pretrain" in files else None
    second = _build(FinetuneConfig, values["finetune"]) if "finetune" in files else None
    if first is not None:
        run(pretraining(first), autoencoder, [_Lines("pretrain")], notice=notice)
    if second is not None:
        if second.init is None and first is not None:
            second = dataclasses.replace(second, init=str(autoencoder / "model"))
        run(purification(second), arguments.output / "finetune", [_Lines("finetune")], notice=notice)


def _build(cls: type[T], values: dict[str, Any]) -> T:
    settings = config.build(cls, {key: value for key, value in values.items() if key != "tracking"})
    if settings.validation.every_checkpoint:
        best = f" and loop.keep_best {settings.loop.keep_best}" if settings.loop.keep_best else ""
        print(
            f"maep.train: warning: validation.every_checkpoint{best} has no effect here: only maep pretrain and maep"
            " finetune measure checkpoints",
            file=sys.stderr,
        )
    return dataclasses.replace(settings, workers=WorkersConfig())


class _Lines(Callback):
    """Prints progress as plain lines."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def on_step(self, progress: TrainingProgress) -> None:
        """One line."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in progress.headline.items())
        print(
            f"{self.phase} {progress.samples_seen:,}/{progress.samples:,}  {values}  ETA {progress.eta_s:.0f} s",
            flush=True,
        )

    def on_end(self, result: Artifact) -> None:
        """Prints the result."""
        print(f"{self.phase}: {result.folder} (sha256 {result.sha256[:12]})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
