"""Errors in Ray workers: which are retried, and how the history names a worker that died."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest

from maep.errors import ConfigError, DataError, UnavailableError, WriteError
from maep.train.checkpoint.history import HISTORY, History, read
from maep.train.ray.faults import cause, fault_callback, of_rank, would_repeat

WORKERS = [{"pid": 11, "host": "a"}, {"pid": 12, "host": "b"}]


class WorkerHealthCheckFailedError(Exception):
    """Called as Ray's own."""


def test_mistakes_repeat_and_machine_faults_do_not() -> None:
    assert all(map(would_repeat, (ConfigError("x"), DataError("x"), FloatingPointError("the loss is nan"))))
    assert not any(map(would_repeat, (UnavailableError("x"), WriteError("x"), RuntimeError("x"), OSError("x"))))
    assert str(of_rank(3, UnavailableError("s3://a/b: no answer"))) == "worker 3: s3://a/b: no answer"
    assert str(of_rank(3, ConfigError("x"))) == "x"


def test_repeating_error_ends_the_run_and_is_raised(tmp_path: Path) -> None:
    level = logging.getLogger("ray.train").level
    mistake = FloatingPointError("the loss is nan at step 3")
    try:
        with pytest.raises(FloatingPointError, match="3"):
            fault_callback(tmp_path).after_exception(None, {0: RuntimeError("connection closed by peer"), 1: mistake})
    finally:
        logging.getLogger("ray.train").setLevel(level)
    fault_callback(tmp_path).after_exception(None, {0: UnavailableError("worker 0: S3")})  # is tried again

    class OfTheController(Exception):
        controller_failure = mistake

    class OfTheWorkers(Exception):
        worker_failures: ClassVar = {0: RuntimeError("closed"), 1: UnavailableError("worker 1: S3")}

    assert cause(OfTheController(), 1.0) is mistake
    assert str(cause(OfTheWorkers(), 1.0)) == "worker 1: S3"


def begin(output: Path, step: int) -> None:
    """A group of two resumes at the step, takes two more and dies without reporting."""
    history = History(output, output / "checkpoints")
    history.__enter__()
    history.begin(step, WORKERS)
    history.at(step + 2)


@pytest.mark.parametrize("heard", [False, True])
def test_dead_worker_is_logged_with_its_process(heard: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether rank 0 was killed, or could still report that the other worker does not answer."""
    begin(tmp_path, 0)
    if heard:
        with (tmp_path / HISTORY).open("a") as file:
            file.write('{"event": "failed", "step": 2, "pid": 11, "host": "a", "error": "connection closed by peer"}\n')
    fault_callback(tmp_path).after_exception(None, {1: WorkerHealthCheckFailedError("RayActorError")})
    assert "worker 1 (process 12 on b)" in caplog.messages[-1]
    begin(tmp_path, 1)
    resumed: dict[str, Any] = read(tmp_path)[-1]
    assert (resumed["lost_rank"], resumed["lost_pid"], resumed["lost_host"]) == (1, 12, "b")
    assert resumed["redone"] == 1
    assert caplog.records[-1].args == ("worker 1 (process 12 on b)", 1, 1)
    begin(tmp_path, 3)
    assert read(tmp_path)[-1]["lost_pid"] == 11  # nobody saw who died this time: the group's first
