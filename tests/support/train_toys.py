"""What the training tests share: tiny settings, and a callback that listens and can stop a run."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maep.artifact import Artifact
from maep.data.image_set import ImageSet
from maep.data.stream.plan import Sampling
from maep.data.stream.resident import ResidentLoader
from maep.errors import ConfigError
from maep.train.batch import Batch
from maep.train.checkpoint import history
from maep.train.loop.callback import TrainingProgress
from maep.train.loop.run import Task, batch_of

MAE = {
    "image_size": 16,
    "patch_size": 4,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
LOOP = {"samples": 320, "batch_size": 32, "lr": 2e-3, "checkpoint_every": 96, "augment": False, "device": "cpu"}

Make = Callable[..., Any]


def weights(result: Artifact) -> str:
    """sha256 of the weights alone."""
    return result.files["model.safetensors"].sha256


class Heard:
    """A callback that records its calls, and can stop a run between two steps, as a kill would.

    It stops it at the first step after so many checkpoints, of which there is one `every` so many images.
    """

    def __init__(self, stop_after_checkpoints: int | None = None, every: int = 96) -> None:
        self.steps: list[TrainingProgress] = []
        self.checkpoints: list[int] = []
        self.ends: list[Artifact] = []
        self.failures: list[BaseException] = []
        self.stop_after, self.every, self.told = stop_after_checkpoints, every, threading.Semaphore(0)

    def on_step(self, progress: TrainingProgress) -> None:
        self.steps.append(progress)
        if self.stop_after is not None and (progress.samples_seen - 1) // self.every == self.stop_after:
            assert all(self.told.acquire(timeout=60) for _ in range(self.stop_after))
            raise KeyboardInterrupt

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        self.checkpoints.append(samples_seen)
        self.told.release()

    def on_end(self, result: Artifact) -> None:
        self.ends.append(result)

    def on_failure(self, error: BaseException) -> None:
        self.failures.append(error)


class Written:
    """A callback for other processes: a line of JSON for each report, with the process's id."""

    def __init__(
        self,
        path: Path,
        kill_at: int | None = None,
        fail_at: int | None = None,
        term_at: int | None = None,
        kill_other_at: int | None = None,
    ) -> None:
        self.path, self.kill_at, self.fail_at, self.term_at = path, kill_at, fail_at, term_at
        self.kill_other_at = kill_other_at

    def on_step(self, progress: TrainingProgress) -> None:
        times = {"wall": time.perf_counter(), "cpu": time.process_time(), "thread": time.thread_time()}
        line = {"seen": progress.samples_seen, "pid": os.getpid(), **times, **progress.metrics}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self.fail_at == progress.samples_seen:
            raise ConfigError(f"what was given is wrong at {progress.samples_seen}")
        if self.kill_other_at == progress.samples_seen and self.first_time():
            os.kill(history.read(self.path.parent / "out")[-1]["workers"][1]["pid"], signal.SIGKILL)
        if self.term_at == progress.samples_seen and self.first_time():
            from maep.train.ray.termination import sigterm

            os.kill(os.getpid(), signal.SIGTERM)
            assert sigterm.wait(120), "the worker's main thread heard no SIGTERM"

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """Dies as by the kernel's out-of-memory killer, the first time it comes by `kill_at`."""
        if samples_seen == self.kill_at and self.first_time():
            os.kill(os.getpid(), signal.SIGKILL)

    def first_time(self) -> bool:
        """Whether the fault is still to come; then it has."""
        died = self.path.with_suffix(".died")
        if died.exists():
            return False
        died.touch()
        return True

    def on_end(self, result: Artifact) -> None:
        pass

    def on_failure(self, error: BaseException) -> None:
        pass


def written(path: Path, **faults: int) -> list[Written]:
    """What makes the callbacks, in the process where they run."""
    return [Written(path, **faults)]


def lines(path: Path) -> list[dict[str, Any]]:
    """What `Written` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


TURN = 10


class TakingTurns(Written):
    """Two processes that train alternately, `TURN` steps each: `mine` waits before its turn until `other` has had its.

    `plain` goes first. How many turns each has had stands in `folder`/NAME.turns.
    """

    def __init__(self, folder: Path, mine: str, other: str) -> None:
        super().__init__(folder / f"{mine}.log")
        self.mine, self.other = folder / f"{mine}.turns", folder / f"{other}.turns"
        self.ahead = 1 if mine == "ray" else 0
        self.done = self.steps = 0
        self.wait()

    def wait(self) -> None:
        """Waits for this process's turn; raises TimeoutError if the other process makes no progress."""
        deadline = time.monotonic() + 300
        while (int(self.other.read_text() or 0) if self.other.exists() else 0) < self.done + self.ahead:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.other} stands still")
            time.sleep(0.001)  # between two looks

    def on_step(self, progress: TrainingProgress) -> None:
        super().on_step(progress)
        self.steps += 1
        if self.steps % TURN == 0:
            self.done += 1
            self.mine.write_text(str(self.done))
            if progress.samples_seen < progress.samples:
                self.wait()


def taking_turns(folder: Path, mine: str, other: str) -> list[TakingTurns]:
    """What makes the callbacks, in the process where they run."""
    return [TakingTurns(folder, mine, other)]


def validated(settings: Any, output: Path, log: Path) -> list[Any]:
    """What makes a validation whose reports are lines of JSON, in the process where the run is."""
    from maep.train.validation import Validation

    def report(metrics: Mapping[str, float], samples_seen: int) -> None:
        with open(log, "a") as file:
            file.write(json.dumps({"seen": samples_seen, "metrics": dict(metrics)}) + "\n")

    return [Validation(settings, output, report)]


def batch_at(task: Task, step: int = 0, rank: int = 0, size: int = 1) -> Batch:
    """What the loop gives the objective of a step."""
    assert isinstance(task.images, ImageSet)
    loop = task.loop
    sampling = Sampling(loop.batch_size, loop.seed, loop.augment, rank, size)
    return batch_of(ResidentLoader(task.images, sampling, torch.device("cpu")).part(step), step, loop)
