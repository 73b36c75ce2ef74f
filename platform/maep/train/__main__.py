"""`python -m maep.train`: both training phases on a machine that has PyTorch alone; run it again to resume.

    python -m maep.train --pretrain cifar10/pretrain.yaml --finetune cifar10/finetune.yaml --output out

The files are those of `maep pretrain` and `maep finetune`; their sections tracking and workers are ignored, and
validation with a warning. Further words override keys of either phase: `--finetune.loop.samples 500000`. `--minutes M`
stops after M minutes, SIGTERM at once, with a checkpoint; the same command resumes.
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
    parser.add_argument("--pretrain", type=Path, help="configuration of the first phase (left out: none)")
    parser.add_argument("--finetune", type=Path, help="configuration of the second phase (left out: none)")
    parser.add_argument("--output", type=Path, required=True, help="folder for results and checkpoints")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, resumable")
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
    if not arguments.pretrain and not arguments.finetune:
        raise UserError("nothing to do: give --pretrain FILE, --finetune FILE or both")
    phases = [phase for phase in ("pretrain", "finetune") if getattr(arguments, phase)]
    over = config.apply_overrides({}, overrides)
    for key in over:
        if key not in phases:
            raise ConfigError(f"unknown key {key!r}: overrides are written --{phases[0]}.section.key VALUE")
    autoencoder = arguments.output / "pretrain"
    first = _load(PretrainConfig, arguments.pretrain, over.get("pretrain", {})) if arguments.pretrain else None
    second = _load(FinetuneConfig, arguments.finetune, over.get("finetune", {})) if arguments.finetune else None
    if first is not None:
        run(pretraining(first), autoencoder, [_Lines("pretrain")], notice=notice)
    if second is not None:
        if second.init is None and first is not None:
            second = dataclasses.replace(second, init=str(autoencoder / "model"))
        run(purification(second), arguments.output / "finetune", [_Lines("finetune")], notice=notice)


def _load(cls: type[T], path: Path, over: dict[str, Any]) -> T:
    values: dict[str, Any] = config.read_yaml(path)
    values.pop("tracking", None)
    settings = config.build(cls, _merge(values, over))
    if settings.validation.every_checkpoint:
        best = f" and loop.keep_best {settings.loop.keep_best}" if settings.loop.keep_best else ""
        print(
            f"maep.train: warning: {path}: validation.every_checkpoint{best} has no effect here: only maep pretrain and"
            " maep finetune measure checkpoints",
            file=sys.stderr,
        )
    return dataclasses.replace(settings, workers=WorkersConfig())


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


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
