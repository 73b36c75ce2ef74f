"""Weights in shares: FSDP2 over all workers, and whole tensors out of shares and back.

A checkpoint holds whole tensors by the names and places that one process gives them, so that a run goes on with
another number of workers, sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def shard(model: nn.Module, method: str, device: torch.device, num_workers: int) -> None:
    """Divides each block's weights, and the rest's, among the workers, in place; `model` is called by `method` alone.

    Weights must be the same on all workers before.
    """
    from torch.distributed.device_mesh import init_device_mesh  # seconds to import, for those who need it
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (num_workers,))
    for module in list(model.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, method)


def whole(value: Any) -> Any:
    """`value` with every share in it, in dicts and lists too, gathered into a whole tensor; all workers must call."""
    if hasattr(value, "full_tensor"):  # a DTensor
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The whole `tensor`, or this worker's share of it, as `other` is held."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
