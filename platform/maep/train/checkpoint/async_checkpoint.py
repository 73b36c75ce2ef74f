"""Asynchronous checkpoints: one thread writes them to disk, another notifies callbacks.

A callback may upload for minutes or hang. Writing never waits for it, so the checkpoint after a termination notice is
written at the speed of the disk.
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
"""How long the end of a run waits for callbacks."""
_MOST_WAITING = 8
_log = logging.getLogger("maep.train")

Notify = Callable[[Artifact, int], None]
"""Called with a checkpoint that is complete on disk, and the images seen."""


class CheckpointWriter:
    """Saves snapshots one at a time in a thread; after each, `notify(saved, samples_seen)` runs in another thread.

    An error in either thread is raised by the next `check`, `put` or `wait`.
    """

    def __init__(self, checkpoints: Checkpoints, notify: Notify, deadline_s: float = DEADLINE_S) -> None:
        self.checkpoints, self.notifier, self.deadline_s = checkpoints, Notifier(checkpoints, notify), deadline_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maep-checkpoints")
        self._pending: Future[None] | None = None

    def put(self, taken: Snapshot) -> None:
        """Starts saving `taken` once the previous snapshot is on disk."""
        self.wait()
        self._pending = self._thread.submit(self._save, taken)

    def check(self) -> None:
        """Raises an error of either thread; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()
        self.notifier.check()

    def wait(self) -> None:
        """Waits until nothing is being written. Raises an error of either thread."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        self.notifier.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for both threads; if the run has failed already, their errors become warnings."""
        try:
            self.wait()
            self.notifier.wait(self.deadline_s)
        except Exception as second:
            if error is None:
                raise
            warnings.warn(f"the last checkpoint was not saved: {second}", stacklevel=2)
        finally:
            self._thread.shutdown()

    def _save(self, taken: Snapshot) -> None:
        self.notifier.put(self.checkpoints.save(taken), taken.samples_seen)


class Notifier:
    """Calls `notify` for one checkpoint after the other, in a daemon thread.

    A checkpoint is kept on disk until its callback returns. At most eight wait; beyond that the oldest is skipped with
    a warning, because they would fill the disk.
    """

    def __init__(self, checkpoints: Checkpoints, notify: Notify) -> None:
        self._checkpoints, self._notify = checkpoints, notify
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Artifact, int]] = deque()
        self._running: int | None = None
        self._error: BaseException | None = None
        self._failed = False

    def put(self, saved: Artifact, samples_seen: int) -> None:
        """Queues a checkpoint, unless an earlier callback failed; returns at once."""
        with self._changed:
            if self._failed:
                return
            self._checkpoints.pin(saved)
            self._waiting.append((saved, samples_seen))
            if len(self._waiting) > _MOST_WAITING:
                skipped, samples = self._waiting.popleft()
                _log.warning("skipping upload of checkpoint %d: upload of %d still running", samples, self._running)
                self._checkpoints.unpin(skipped)
            if self._running is None:
                self._running = samples_seen
                threading.Thread(target=self._work, name="maep-notify", daemon=True).start()

    def check(self) -> None:
        """Raises a callback's error; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self, seconds: float) -> None:
        """Waits until the callbacks have run, at most `seconds`, then warns. Raises a callback's error."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._running is None, seconds):
                _log.warning("upload of checkpoint %d still running after %g s: ending the run", self._running, seconds)
        self.check()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._failed:
                    self._running = None
                    self._changed.notify_all()
                    return
                saved, self._running = self._waiting.popleft()
            try:
                self._notify(saved, self._running)
            except BaseException as error:  # raised in the thread that trains
                self._error, self._failed = error, True
            finally:
                self._checkpoints.unpin(saved)
