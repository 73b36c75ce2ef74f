"""Targets of benchmarks: report a missed target, and fail below the value reached before."""

from __future__ import annotations


def held(what: str, reached: float, asked: float, floor: float | None = None) -> None:
    """Prints both, and fails below `floor`: what was asked for, or less where that is known to be missed."""
    print(f"asked for: {what} at least {asked:g}; reached {reached:.3f}{'' if reached >= asked else ', missed'}")
    assert reached >= (asked if floor is None else floor), what
