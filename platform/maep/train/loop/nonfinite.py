"""Non-finite losses and gradients: one error that names step and images, the same on every worker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SHOWN = 5
OF_ALL = "the gradient's norm"
"""Start of an error message about all workers together; an error about a loss comes from one worker."""


def anywhere(error: FloatingPointError | None, num_workers: int, device: torch.device) -> bool:
    """Whether any worker has an error; all workers must call it."""
    if num_workers == 1:
        return error is not None
    flag: Tensor = torch.tensor(float(error is not None), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


def named(error: FloatingPointError, step: int, images: Sequence[int], num_workers: int) -> FloatingPointError:
    """The same error on every worker, from the first whose own images cause it; all workers must call it.

    `images` are the official indices of this worker's part of the batch; an `error` without a message has no known
    cause.
    """
    mine = str(error), list(images[:_SHOWN])
    found: list[tuple[str, list[int]]] = [mine]
    if num_workers > 1:
        found = [mine] * num_workers
        torch.distributed.all_gather_object(found, mine)
    message, first = min(found, key=lambda each: (not each[0], each[0].startswith(OF_ALL)))
    return FloatingPointError(f"{message} at step {step}, first images {first}")
