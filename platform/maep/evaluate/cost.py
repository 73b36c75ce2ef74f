"""What attacks cost: images that pass forward through a model, and seconds of one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Cost:
    """Forward passes (of one image each), and seconds of one thread."""

    forward_passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward_passes + other.forward_passes, self.seconds + other.seconds)


@dataclass
class CostMeter:
    """The cost of all blocks under `on`."""

    cost: Cost = field(default_factory=Cost)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Counts while the block runs; `model` takes a batch as its first argument."""

        def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.cost += Cost(len(inputs[0]))

        handle, start = model.register_forward_pre_hook(count), time.thread_time()
        try:
            yield
        finally:
            self.cost += Cost(0, time.thread_time() - start)
            handle.remove()
