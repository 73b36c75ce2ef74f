"""System metrics of a run: processor, memory, disk, network and GPU, measured by MLflow's monitors.

MLflow's own thread ends at the first outage; this one uses the run's metric queue, which survives outages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from maep.errors import ConfigError

EVERY_S = 10.0
PREFIX = "system/"


class SystemMetrics:
    """A thread that calls `put(metrics, number)` every ten seconds, `number` counting from `first`.

    Names are MLflow's (system/cpu_utilization_percentage ...), shown by its pages under System Metrics. They are of the
    machine that records the run. `watched` comes from `monitors`.
    """

    def __init__(
        self, watched: Any, put: Callable[[Mapping[str, float], int], None], first: int, every_s: float = EVERY_S
    ) -> None:
        self._watched, self._put, self._number, self._every_s = watched, put, first, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="maep-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after a last measurement."""
        self._ended.set()
        self._thread.join(self._every_s)

    def _work(self) -> None:
        while True:
            self._watched.collect_metrics()
            self._ended.wait(self._every_s)
            metrics = self._watched.aggregate_metrics()
            for monitor in self._watched.monitors:
                monitor.clear_metrics()
            self._put({f"{PREFIX}{name}": value for name, value in metrics.items()}, self._number)
            self._number += 1
            if self._ended.is_set():
                return


def monitors(run_id: str, tracking_uri: str) -> Any:
    """MLflow's monitors of this machine. Raises ConfigError where psutil is missing."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        return SystemMetricsMonitor(run_id, tracking_uri=tracking_uri)
    except ImportError as error:
        raise ConfigError(
            f"tracking.system_metrics: {error.name or 'psutil'} is not installed: install it, or set it to false"
        ) from None
