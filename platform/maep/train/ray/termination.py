"""How a notice reaches the steps of a worker on Ray: SIGTERM of its process, Ray's own, and a file of the driver's."""

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

LOOK_EVERY_S = 1.0
"""How long the driver's notice may take to be heard, beside the steps that an `Agreement` takes."""
DRAIN_POLL_S = 5.0
"""The same for a machine that Ray drains."""

sigterm = threading.Event()
"""Set once this worker was sent SIGTERM."""


def hearing() -> Any:
    """Ray's setting-up of PyTorch, and in each worker's main thread an ear for SIGTERM (the run has another thread)."""
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(_hear_sigterm)

    class Hearing(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Hearing()


def _hear_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sigterm.set())


class StopFile:
    """The driver's notice: a file in the output of the run, local or s3://, that rank 0 looks for."""

    def __init__(self, output: str | Path) -> None:
        self._uri = storage.join(output, "stop")

    def put(self) -> None:
        """Leaves it; returns at once, for a signal's handler calls this."""
        if storage.is_remote(self._uri):
            threading.Thread(target=storage.write_bytes, args=(self._uri, b"stop"), daemon=True).start()
        else:
            Path(self._uri).touch()

    def there(self) -> bool:
        """Whether it is there."""
        with suppress(FileNotFoundError):
            storage.size(self._uri)
            return True
        return False

    def remove(self) -> None:
        """Takes it away again."""
        storage.delete_file(self._uri)


def worker_notice(rank: int, stop: StopFile) -> Notice:
    """Whether this worker was told to end, by SIGTERM, by Ray, or (rank 0 hears it) by the file `stop`."""
    import ray.train
    from ray.exceptions import RayError

    heard = threading.Event()

    def watch_ray() -> None:
        # All workers ask equally often, as Ray wants it: a barrier that the steps do not wait at.
        with suppress(RayError):  # the group ends while this waits for the others
            while ray.train.get_preemption_info() is None:
                time.sleep(DRAIN_POLL_S)
            heard.set()

    def watch_file() -> None:
        while not heard.is_set():
            with suppress(UnavailableError):  # what S3 does not answer is asked again
                if stop.there():
                    heard.set()
            time.sleep(LOOK_EVERY_S)

    for watch in (watch_ray, *([watch_file] if rank == 0 else [])):
        threading.Thread(target=watch, name="maep-notice", daemon=True).start()
    return lambda: sigterm.is_set() or heard.is_set()
