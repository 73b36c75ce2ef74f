"""Flags: what makes a robustness figure worth a second look, and yet need not be wrong.

After the automatic checks that AutoAttack warns by (Croce and Hein 2020, arXiv 2003.01690, and its notes on flags).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maep.evaluate.protocol.context import check_images, looks_like_probabilities
from maep.evaluate.trust.findings import TOLERANCE, Flag
from maep.evaluate.trust.probes import Probes, own_draws, seed_stream

CALLS = 3
SATURATED = 0.5
"""Share of the images whose probability float32 rounds to 1; ResNet-20 on CIFAR-10 is that sure of a third."""
DISTINCT = 0.5
"""Least share of distinct highest logits among different images."""


def flags(model: nn.Module, images: Tensor, labels: Tensor, passes: int | None = None, seed: int = 0) -> list[Flag]:
    """What is unusual about `model` (float [B, 3, H, W] in [0, 1] to logits) on a few images with int64 [B] labels.

    `passes`: over how many a randomised model's gradient is averaged, None: it says that it draws nothing. Raises
    DataError for images that are not float in [0, 1].
    """
    check_images(images)
    with own_draws(images.device):
        calls = []
        with torch.no_grad():
            for call in range(CALLS):
                seed_stream(seed, call)
                calls.append(model(images))
        slope = Probes(model, images, labels, labels, seed, passes).slope()
    found = [
        *([_randomised(calls)] if passes is None else []),
        _zero_gradients(slope),
        _equal_logits(calls[0]),
        _saturated(calls[0]),
        _probabilities(calls[0]),
        _discrete(images, calls[0]),
    ]
    return [flag for flag in found if flag is not None]


def gradient_free_stronger(gradient: Mapping[int, bool], gradient_free: Mapping[int, bool]) -> Flag | None:
    """Official index -> whether the image stands: on the images of both, those without gradients should not find more.

    By more than one point (or one image); by more than two it is a failure, see `sanity.black_box_within`.
    """
    common = gradient.keys() & gradient_free.keys()
    ours, theirs = sum(gradient[index] for index in common), sum(gradient_free[index] for index in common)
    if ours - theirs <= max(TOLERANCE * len(common), 1) + 1e-9:
        return None
    seen = f"{theirs} of {len(common)} stand attacks without gradients and {ours} those with"
    return Flag("gradient-free attack is stronger", f"{seen}: the gradient may be masked")


def _randomised(calls: list[Tensor]) -> Flag | None:
    apart = max(float((one - calls[0]).abs().max()) for one in calls[1:])
    if all(torch.allclose(one, calls[0], rtol=1e-4, atol=1e-5) for one in calls[1:]):
        return None
    return Flag("randomised", f"{CALLS} calls are up to {apart:.2g} apart: say that it is randomised, and use EOT")


def _zero_gradients(slope: Tensor | None) -> Flag | None:
    if slope is None:
        return Flag("zero gradients", "no gradient reaches the image: use BPDA")
    zero = int((slope.abs().amax(dim=(1, 2, 3)) == 0).sum())
    return (
        Flag("zero gradients", f"{zero} of {len(slope)} images have none: use BPDA, or another loss") if zero else None
    )


def _equal_logits(logits: Tensor) -> Flag | None:
    equal = int((logits.amax(dim=1) == logits.amin(dim=1)).sum())
    return Flag("equal logits", f"of {equal} of {len(logits)} images: no class is preferred") if equal else None


def _saturated(logits: Tensor) -> Flag | None:
    sure = int((logits.float().softmax(dim=1).amax(dim=1) == 1).sum())
    if sure <= SATURATED * len(logits):
        return None
    return Flag(
        "saturated loss", f"a probability of 1 for {sure} of {len(logits)} images: use a loss on the logits (DLR)"
    )


def _probabilities(logits: Tensor) -> Flag | None:
    if not looks_like_probabilities(logits):
        return None
    return Flag("probabilities", "rows are non-negative and sum to one: attack the logits before the softmax")


def _discrete(images: Tensor, logits: Tensor) -> Flag | None:
    """Of few distinct outputs the gradient says nothing, whatever it is; equal images are counted once."""
    different = len({image.numpy().tobytes() for image in images.cpu().contiguous()})
    distinct = len(set(logits.amax(dim=1).tolist()))
    if distinct >= DISTINCT * different:
        return None
    return Flag("discrete output", f"{different} images have {distinct} distinct highest logits: use BPDA, or Square")
