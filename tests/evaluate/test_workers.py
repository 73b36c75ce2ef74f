"""Workers of an evaluation: a worker that dies costs one task, and a missing cluster is a one-line error."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from processes import children, is_running

from maep import artifact
from maep.errors import UnavailableError
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.protocol.run import EvaluationProgress, evaluate
from maep.evaluate.results.summary import Result


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_worker_loses_no_row(
    small: EvaluateConfig, purifier: artifact.Artifact, result: Result, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(progress: EvaluationProgress) -> None:
        if progress.done >= 8 and not killed:
            worker = next(
                pid for pid in children(os.getpid()) if b"ray::_Worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
            )
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    two = replace(small, num_workers=2, cache=str(tmp_path / "cache"))
    found = evaluate(two, {"conv": purifier}, tmp_path / "out", kill_one)
    assert killed
    assert not is_running(killed[0])
    assert found.rows().equals(result.rows())


def test_no_cluster_is_one_line(small: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        evaluate(replace(small, num_workers=2, address="127.0.0.1:9"), {}, tmp_path / "out")


def test_batch_size_barely_changes_results(
    small: EvaluateConfig, purifier: artifact.Artifact, result: Result, tmp_path: Path
) -> None:
    """Other batches sum in another order: at most one image in 50 may change its prediction."""
    other = evaluate(replace(small, batch_size=5, cache=str(tmp_path / "cache")), {"conv": purifier}, tmp_path / "out")
    ours, theirs = result.rows().to_pandas(), other.rows().to_pandas()
    assert len(ours) == len(theirs)
    assert (ours["correct"] != theirs["correct"]).mean() <= 0.02
