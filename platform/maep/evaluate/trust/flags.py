"""Flags: properties of a model that make a robustness figure worth a second look, though it may be right.

Modelled on AutoAttack's automatic checks (Croce and Hein 2020, arXiv 2003.01690, and the notes on its flags).
"""

from __future__ import annotations

import torch
from torch import Tensor

from maep.evaluate.measure import DefendedModel, ImageBatch
from maep.evaluate.trust.findings import Flag
from maep.evaluate.trust.probes import Probes, isolated_draws
from maep.models.check import looks_like_probabilities

SATURATED = 0.5
"""Largest share of images whose probability float32 rounds to 1; it is a third for ResNet-20 on CIFAR-10."""
DISTINCT = 0.5
"""Smallest share of distinct highest logits among distinct images."""


def flags(defended: DefendedModel, batch: ImageBatch, seed: int = 0) -> list[Flag]:
    """The flags of a model on a few images.

    Raises DataError for images that are not float in [0, 1].
    """
    probes, images = Probes(defended, batch, seed), batch.images
    with isolated_draws(images.device):
        calls = probes.calls((False, False, False))
        gradient = probes.gradient()
    logits, count = calls[0], len(images)
    found = {
        "zero gradients": _zero_gradients(gradient),
        "equal logits": _if(
            equal := int((logits.amax(dim=1) == logits.amin(dim=1)).sum()),
            f"{equal} of {count} images have the same logit for every class",
        ),
        "saturated loss": _if(
            (sure := int((logits.float().softmax(dim=1).amax(dim=1) == 1).sum())) > SATURATED * count,
            f"a probability of 1 for {sure} of {count} images: use a loss on the logits (DLR)",
        ),
        "probabilities": _if(
            looks_like_probabilities(logits),
            "rows are non-negative and sum to one: attack the logits before the softmax",
        ),
        "discrete output": _discrete(images, logits),
    }
    if not defended.randomised and (apart := spread(calls)):
        detail = f"logits of {len(calls)} calls differ by up to {apart:.2g}: declare the model randomised, and use EOT"
        found = {"randomised": detail, **found}
    return [Flag(name, detail) for name, detail in found.items() if detail]


def spread(calls: list[Tensor]) -> float:
    """The largest difference between the logits of repeated calls; 0 where they are equal within rounding."""
    if all(torch.allclose(calls[0], other, rtol=1e-4, atol=1e-5) for other in calls[1:]):
        return 0.0
    return max(float((other - calls[0]).abs().max()) for other in calls[1:])


def _if(flagged: object, detail: str) -> str:
    return detail if flagged else ""


def _zero_gradients(gradient: Tensor | None) -> str:
    if gradient is None:
        return "no gradient reaches the image: use BPDA"
    zero = int((gradient.abs().amax(dim=(1, 2, 3)) == 0).sum())
    return _if(zero, f"{zero} of {len(gradient)} images have no gradient: use BPDA, or another loss")


def _discrete(images: Tensor, logits: Tensor) -> str:
    """With few distinct outputs the gradient is meaningless, whatever its value. Equal images count once."""
    different = len({image.numpy().tobytes() for image in images.cpu().contiguous()})
    distinct = len(set(logits.amax(dim=1).tolist()))
    detail = f"{different} images have {distinct} distinct highest logits: use BPDA, or Square"
    return _if(distinct < DISTINCT * different, detail)
