"""Checkpoints on their way: written in one thread while the training goes on, told of in another.

Whoever is told may upload for minutes, or hang with the store it uploads to. So nothing that is written ever waits for
it: the checkpoint of a notice lies on disk as fast as the disk takes it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from maep.artifact import Artifact
from maep.train.checkpoint.store import Checkpoints, Snapshot

DEADLINE_S = 300.0
"""How long the end of a run waits for those that are still being told of a checkpoint."""
_MOST_WAITING = 8
_log = logging.getLogger("maep.train")

Tell = Callable[[Artifact, int], None]
"""Hears of a checkpoint that lies complete on disk, and after how many images it was taken."""


class Writer:
    """Saves snapshots one after the other in a thread; of each, `tell(saved, samples_seen)` is called in another.

    At most one is being written. What goes wrong in either thread is raised by the next `check`, `put` or `wait`.
    """

    def __init__(self, checkpoints: Checkpoints, tell: Tell, deadline_s: float = DEADLINE_S) -> None:
        self.checkpoints, self.teller, self.deadline_s = checkpoints, Teller(checkpoints, tell), deadline_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maep-checkpoints")
        self._pending: Future[None] | None = None

    def put(self, taken: Snapshot) -> None:
        """Begins to save `taken`, once the one before lies there."""
        self.wait()
        self._pending = self._thread.submit(self._save, taken)

    def check(self) -> None:
        """Raises what went wrong; returns at once."""
        if self._pending is not None and self._pending.done():
            self.wait()
        self.teller.check()

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        self.teller.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for both; where the run has failed already, what goes wrong here too is a warning."""
        try:
            self.wait()
            self.teller.wait(self.deadline_s)
        except Exception as second:
            if error is None:
                raise
            warnings.warn(f"the last checkpoint was not saved: {second}", stacklevel=2)
        finally:
            self._thread.shutdown()

    def _save(self, taken: Snapshot) -> None:
        saved = self.checkpoints.save(taken.samples_seen, taken.config, taken.weights, taken.state)
        self.teller.put(saved, taken.samples_seen)


class Teller:
    """Calls `tell` for one checkpoint after the other, in a thread that no process waits for when it ends.

    A checkpoint is kept on disk until its turn is over. Of more than eight that wait, the oldest is passed over, with a
    warning: they would fill the disk.
    """

    def __init__(self, checkpoints: Checkpoints, tell: Tell) -> None:
        self._checkpoints, self._tell = checkpoints, tell
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Artifact, int]] = deque()
        self._telling: int | None = None
        self._error: BaseException | None = None
        self._failed = False

    def put(self, saved: Artifact, samples_seen: int) -> None:
        """Has it told of next, unless something went wrong before; returns at once."""
        with self._changed:
            if self._failed:
                return
            self._checkpoints.pin(saved)
            self._waiting.append((saved, samples_seen))
            if len(self._waiting) > _MOST_WAITING:
                passed, samples = self._waiting.popleft()
                _log.warning(
                    "the checkpoint after %d images is not recorded: what is told of them has not done with the one"
                    " after %d images yet",
                    samples,
                    self._telling or 0,
                )
                self._checkpoints.unpin(passed)
            if self._telling is None:
                self._telling = samples_seen
                threading.Thread(target=self._work, name="maep-tell", daemon=True).start()

    def check(self) -> None:
        """Raises what went wrong; returns at once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self, seconds: float) -> None:
        """Until nobody is being told, or for so long, with a warning. Raises what went wrong."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._telling is None, seconds):
                _log.warning(
                    "what is done with the checkpoint after %d images (an upload?) has taken over %g s: the run ends"
                    " without it",
                    self._telling,
                    seconds,
                )
        self.check()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._failed:
                    self._telling = None
                    self._changed.notify_all()
                    return
                saved, self._telling = self._waiting.popleft()
            try:
                self._tell(saved, self._telling)
            except BaseException as error:  # raised in the thread that trains
                self._error, self._failed = error, True
            finally:
                self._checkpoints.unpin(saved)
