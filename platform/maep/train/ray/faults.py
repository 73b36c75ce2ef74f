"""Errors in Ray's workers: a fault is retried, a mistake ends the run immediately."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from maep.errors import UnavailableError, UserError, WriteError
from maep.train.checkpoint.history import note_lost
from maep.train.checkpoint.mirror import working_folder

_DEATH = "WorkerHealthCheckFailedError"
"""Ray's private class for a worker that no longer answers: it was killed, or its machine is gone."""
_log = logging.getLogger("maep.train")


def would_repeat(error: object) -> bool:
    """Whether other workers would fail in the same way: a mistake, or a loss that is not finite.

    A store that does not answer or a disk that cannot be written may work from another machine.
    """
    return isinstance(error, UserError | FloatingPointError) and not isinstance(error, UnavailableError | WriteError)


def of_rank(rank: int, error: UserError | FloatingPointError) -> UserError | FloatingPointError:
    """`error`, with the worker's rank where its cause may be that worker's machine."""
    return error if would_repeat(error) else type(error)(f"worker {rank}: {error}")


def fault_callback(output: str | Path) -> Any:
    """A callback that Ray Train's controller calls before it restarts workers.

    It raises an error that would only repeat, which ends the run, and records workers that died for the next group's
    history in the folder `output`. (For s3://, where each machine has its own folder, only the log names them.)
    """
    from ray.train import UserCallback

    class FaultCallback(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if would_repeat(error):
                    # Ray would log a traceback for an error that the user gets in one line.
                    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
                    raise error
            died = [rank for rank, error in worker_exceptions.items() if type(error).__name__ == _DEATH]
            for name in note_lost(working_folder(output), died) if died else ():
                _log.warning("%s died", name)

    return FaultCallback()


def cause(error: Exception, patience: float) -> Exception:
    """The cause of Ray's `error` for the user: the worker's own error where it is one of ours, else Ray's."""
    failure = getattr(error, "controller_failure", None)
    for each in [failure, *getattr(error, "worker_failures", {}).values()]:
        if isinstance(each, UserError | FloatingPointError):
            return each
    if type(failure).__name__ == "WorkerGroupStartupTimeoutError":
        return UnavailableError(
            f"the cluster did not place the workers within {patience:g} s: wait until it is free,"
            " raise workers.start_timeout_s, or lower workers.num_workers"
        )
    return error
