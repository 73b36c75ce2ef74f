"""What becomes of an error in one of Ray's workers: a fault is tried again, a mistake ends the run at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from maep.errors import UnavailableError, UserError, WriteError
from maep.train.checkpoint.history import note_lost
from maep.train.checkpoint.mirror import working_folder

_DEATH = "WorkerHealthCheckFailedError"
"""Ray's name (a private class) for a worker that does not answer any more: killed, or its machine gone."""
_log = logging.getLogger("maep.train")


def would_repeat(error: object) -> bool:
    """Whether other workers would fail alike: a mistake, or a loss that is not finite.

    Not a store that does not answer, or a disk that cannot be written, which another machine may not have.
    """
    return isinstance(error, UserError | FloatingPointError) and not isinstance(error, UnavailableError | WriteError)


def of_rank(rank: int, error: UserError | FloatingPointError) -> UserError | FloatingPointError:
    """`error` with the worker it happened to, where the machine of one is not that of another."""
    return error if would_repeat(error) else type(error)(f"worker {rank}: {error}")


def watching(output: str | Path) -> Any:
    """A callback for Ray Train's controller, which asks it before it starts workers anew.

    What would only repeat is raised there, which ends the run; of workers that died, word is left for the next group's
    history in the folder `output`. (Of an s3:// address only the log says it: each machine has a folder of its own.)
    """
    from ray.train import UserCallback

    class Watching(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if would_repeat(error):
                    # Ray would show the traceback of what a person is told in one line.
                    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
                    raise error
            died = [rank for rank, error in worker_exceptions.items() if type(error).__name__ == _DEATH]
            for name in note_lost(working_folder(output), died) if died else ():
                _log.warning("%s died", name)

    return Watching()


def cause(error: Exception, patience: float) -> Exception:
    """What a person has to know of Ray's `error`: the worker's own where it is ours, else Ray's."""
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
