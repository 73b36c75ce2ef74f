"""A queue of metrics for MLflow: sent in batches by a daemon thread, kept while the server does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_log = logging.getLogger("maep.tracking")


class MetricPoint(NamedTuple):
    """One value of one metric.

    `timestamp` in ms since the epoch is set when it is logged, so that MLflow keeps one copy of a batch sent twice (the
    first response was lost).
    """

    key: str
    value: float
    timestamp: int
    step: int


class Refused(Exception):
    """The server rejects this batch, and would reject it again."""


class MetricQueue:
    """A bounded queue in front of `send(points)`, which may raise any exception while the server does not answer.

    Above `capacity` it drops every second logged step, so that a long outage costs resolution, not memory.
    """

    def __init__(
        self,
        send: Callable[[Sequence[MetricPoint]], None],
        where: str,
        interval: float = 3.0,
        capacity: int = 200_000,
        batch_size: int = 1000,
        longest_wait: float = 15.0,
    ) -> None:
        self._send = send
        self._where = where
        self._interval, self._capacity, self._batch_size = interval, capacity, batch_size
        self._longest_wait = longest_wait
        self._points: list[MetricPoint] = []
        self._changed = threading.Condition()
        self._hurry = False
        self._closed = False
        self._away = False
        self._thread = threading.Thread(target=self._work, name="maep-tracking", daemon=True)
        self._thread.start()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Queues `values`; returns at once."""
        now = int(time.time() * 1000)
        with self._changed:
            self._points += [MetricPoint(key, float(value), now, step) for key, value in values.items()]
            if len(self._points) > self._capacity:
                self._points = thin(self._points)
            if len(self._points) >= self._batch_size:
                self._changed.notify_all()

    @property
    def away(self) -> bool:
        """Whether the last attempt to send failed."""
        return self._away

    def flush(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds until the queue is empty; returns whether it is."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            empty = self._changed.wait_for(lambda: not self._points, timeout)
            self._hurry = False
        return empty

    def close(self, timeout: float) -> int:
        """Flushes for up to `timeout` seconds, stops the thread, and returns how many points were not sent."""
        self.flush(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)  # a thread in a hanging request ends with the process
        return len(self._points)

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._pause(failures)
                if self._closed:
                    return
                batch = self._points[: self._batch_size]
            if not batch:
                continue
            try:
                self._send(batch)
            except Refused as error:
                _log.warning("MLflow rejected %d metric values: %s", len(batch), error)
            except Exception as error:  # training continues through any outage
                failures += 1
                if not self._away:
                    self._away = True
                    _log.warning("MLflow at %s does not answer, buffering metrics: %s", self._where, error)
                continue
            failures = 0
            self._sent(batch)

    def _pause(self, failures: int) -> None:
        """Sleeps until a batch is full or due; after a failure, longer each time."""
        if failures:
            self._changed.wait_for(lambda: self._closed or self._hurry, min(self._longest_wait, 0.5 * 2**failures))
            if self._hurry:
                self._changed.wait_for(lambda: self._closed, 1.0)
        else:
            self._changed.wait_for(
                lambda: self._closed or len(self._points) >= self._batch_size or (self._hurry and bool(self._points)),
                self._interval,
            )

    def _sent(self, batch: Sequence[MetricPoint]) -> None:
        done = set(batch)
        with self._changed:
            # Thinning may have changed the queue meanwhile, so the batch need not be its head.
            head, tail = self._points[: len(batch)], self._points[len(batch) :]
            self._points = [point for point in head if point not in done] + tail
            left = len(self._points)
            self._changed.notify_all()
        if self._away:
            self._away = False
            _log.warning("MLflow at %s answers again; sending %d buffered values", self._where, left)


def thin(points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """Every second (timestamp, step) of `points`, including the newest."""
    moments = sorted({(point.step, point.timestamp) for point in points}, reverse=True)
    kept = set(moments[::2])
    return [point for point in points if (point.step, point.timestamp) in kept]
