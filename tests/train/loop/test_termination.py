"""Termination notices: one checkpoint at the next step, no step lost, and a line in the history."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from train_toys import Heard, Make, weights

from maep.errors import Stopped
from maep.train.build_tasks import pretraining
from maep.train.checkpoint.history import HISTORY, read
from maep.train.loop.callback import TrainingProgress
from maep.train.loop.run import run
from maep.train.loop.termination import never, on_sigterm


class Signals(Heard):
    """Sends SIGTERM to its own process after a number of images."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.at = samples

    def on_step(self, progress: TrainingProgress) -> None:
        super().on_step(progress)
        if progress.samples_seen == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def events(output: Path) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in read(output)]


def test_sigterm_saves_a_checkpoint_and_repeats_no_step(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    task, heard = pretraining(pretrain()), Signals(160)
    with on_sigterm() as notice, pytest.raises(Stopped, match="160"):
        run(task, tmp_path, [heard], notice=notice)
    assert heard.checkpoints == [96, 160]
    assert isinstance(heard.failures[0], Stopped)
    again = Heard()
    result = run(pretraining(pretrain()), tmp_path, [again])
    assert [progress.samples_seen for progress in again.steps] == [192, 224, 256, 288, 320]
    assert weights(result) == weights(unkilled_pretrain[0])
    assert events(tmp_path) == [("started", 0), ("stopped", 5), ("resumed", 5), ("finished", 10)]
    assert [line["redone"] for line in read(tmp_path) if "redone" in line] == [0, 0]


def test_notice_at_a_due_checkpoint_saves_once(pretrain: Make, tmp_path: Path) -> None:
    heard = Signals(96)
    with on_sigterm() as notice, pytest.raises(Stopped):
        run(pretraining(pretrain()), tmp_path, [heard], notice=notice)
    assert heard.checkpoints == [96]


def test_a_notice_at_the_last_step_lets_the_run_finish(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    with on_sigterm() as notice:
        result = run(pretraining(pretrain()), tmp_path, [Signals(320)], notice=notice)
    assert result.sha256 == unkilled_pretrain[0].sha256


def test_second_sigterm_has_its_previous_effect() -> None:
    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append("before"))
    try:
        with on_sigterm(lambda: heard.append("told")) as notice:
            assert not notice()
            signal.raise_signal(signal.SIGTERM)
            assert notice()
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["told", "before", "before"]


def test_other_threads_get_no_notice() -> None:
    got: list[bool] = []

    def listen() -> None:
        with on_sigterm() as notice:
            got.append(notice is never)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert got == [True]


def test_redone_steps_are_counted(pretrain: Make, tmp_path: Path) -> None:
    """Ends between two checkpoints, as a fault does: the steps after the newest one are redone and reported."""

    class Fails(Heard):
        def on_step(self, progress: TrainingProgress) -> None:
            if progress.samples_seen == 160:
                raise FloatingPointError("a fault")

    with pytest.raises(FloatingPointError):
        run(pretraining(pretrain()), tmp_path, [Fails()])
    run(pretraining(pretrain()), tmp_path)
    lines = read(tmp_path)
    assert events(tmp_path) == [("started", 0), ("failed", 5), ("resumed", 3), ("finished", 10)]
    assert lines[1]["error"] == "a fault"
    assert lines[2]["redone"] == 2
    assert "lost_pid" not in lines[2]  # it said itself how it ended
    assert {line["pid"] for line in lines} == {os.getpid()}


def test_truncated_history_line_is_ignored(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    (tmp_path / HISTORY).write_text('{"event": "started", "step": 0}\n{"event": "res')
    assert read(tmp_path) == [{"event": "started", "step": 0}]
