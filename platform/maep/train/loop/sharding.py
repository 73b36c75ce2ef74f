"""Sharded weights: FSDP2 over all workers, and conversion between shards and whole tensors.

A checkpoint holds whole tensors under single-process names, so that a run can resume with another number of workers,
sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def shard(model: nn.Module, method: str, device: torch.device, num_workers: int) -> None:
    """Shards the weights of each block, and the rest, over the workers, in place.

    All workers must hold equal weights before. Afterwards only `method` of `model` may be called.
    """
    from torch.distributed.device_mesh import init_device_mesh  # imports take seconds
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (num_workers,))
    for module in list(model.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, method)


def whole(value: Any) -> Any:
    """`value` with every shard in it, also in dicts and lists, gathered whole; all workers must call it."""
    if hasattr(value, "full_tensor"):  # a DTensor
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The whole `tensor`, or this worker's shard of it, like `other`."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
