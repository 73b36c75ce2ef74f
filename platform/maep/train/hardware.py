"""The device: its peak rate of matrix products, and the peak memory of this process."""

from __future__ import annotations

import functools
import resource
import sys
import time

import torch

_DENSE_BF16 = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
"""FLOP/s by a part of the device's name (NVIDIA's data sheets, without sparsity)."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s against which MFU is computed: from the data sheet for bf16 on a GPU, else measured.

    Measured once in a process; on a CPU for the current number of threads.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, rate in _DENSE_BF16.items():
            if part in name:
                return rate
    return _measured(device, dtype, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    if device.type == "cuda":
        size, count = 8192, 4
    else:  # few threads: short products, some of which run undisturbed on a busy machine
        size, count = (512, 20) if num_threads < 8 else (2048, 8)
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(count):
        start = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def peak_memory_mib(device: torch.device) -> float:
    """MiB: peak of tensors on a GPU; on a CPU, peak of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
