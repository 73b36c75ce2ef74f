"""Termination notices of a worker on Ray: SIGTERM, Ray's preemption notice, and a file of the driver's."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from maep import storage
from maep.errors import UnavailableError
from maep.train.loop.termination import Notice

FILE_POLL_S = 1.0
"""Interval at which rank 0 looks for the driver's file."""
DRAIN_POLL_S = 5.0
"""Interval at which workers ask Ray whether their machine is being drained."""

sigterm = threading.Event()
"""Set once this worker has received SIGTERM."""


def torch_config() -> Any:
    """Ray's set-up of PyTorch, plus a SIGTERM handler in each worker's main thread (the run is in another thread)."""
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(_handle_sigterm)

    class ConfigWithHandler(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return ConfigWithHandler()


def _handle_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sigterm.set())


class StopFile:
    """The driver's notice: a file in the output of the run, local or s3://, that rank 0 polls."""

    def __init__(self, output: str | Path) -> None:
        self._uri = storage.join(output, "stop")

    def put(self) -> None:
        """Creates it; returns at once, because a signal handler calls this."""
        if storage.is_remote(self._uri):
            threading.Thread(target=storage.write_bytes, args=(self._uri, b"stop"), daemon=True).start()
        else:
            Path(self._uri).touch()

    def exists(self) -> bool:
        """Whether it exists."""
        with suppress(FileNotFoundError):
            storage.size(self._uri)
            return True
        return False

    def remove(self) -> None:
        """Deletes it."""
        storage.delete_file(self._uri)


def worker_notice(rank: int, stop: StopFile) -> Notice:
    """Whether this worker was asked to stop: by SIGTERM, by Ray, or (rank 0) by the file `stop`."""
    import ray.train
    from ray.exceptions import RayError

    asked = threading.Event()

    def poll_ray() -> None:
        # All workers must ask equally often, because Ray puts a barrier there; steps do not wait at it.
        with suppress(RayError):  # the group ends while this waits for the others
            while ray.train.get_preemption_info() is None:
                time.sleep(DRAIN_POLL_S)
            asked.set()

    def poll_file() -> None:
        while not asked.is_set():
            with suppress(UnavailableError):  # S3 did not answer: ask again
                if stop.exists():
                    asked.set()
            time.sleep(FILE_POLL_S)

    for poll in (poll_ray, *([poll_file] if rank == 0 else [])):
        threading.Thread(target=poll, name="maep-notice", daemon=True).start()
    return lambda: sigterm.is_set() or asked.is_set()
