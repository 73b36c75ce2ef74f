"""The six indicators of attack failure: signs that a failed attack says nothing about the model.

Pintor et al. 2022, Indicators of Attack Failure (arXiv 2106.09947), section 3, reimplemented for maep's attacks. Each
is a number with a threshold; a failed one names the paper's mitigation. They are computed on a few images, from the
trace of the protocol's own attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.evaluate.config import eps_label
from maep.evaluate.measure import DefendedModel, Expectation, ImageBatch
from maep.evaluate.trust.findings import Check
from maep.evaluate.trust.probes import Probes, Trace, isolated_draws

DEAD_GRADIENTS = 0.05
"""Largest share of images with a zero gradient: float32 rounds it to zero where a classifier is very confident."""
RADIUS = 1e-3
"""About a quarter of a grey level; no attack takes smaller steps."""
NEIGHBOURS = 2
UNEXPLAINED = 0.6
"""Largest share of the margin's change within RADIUS that the gradient leaves unexplained; 1 where the gradient is
unrelated to the model. Measured for ResNet-20 on CIFAR-10: 0.17 bare, 0.16 behind the bundled purifier, 0.41 behind a
median filter."""
AGREEMENT = 0.2
"""Smallest cosine of two EOT gradients. With Gaussian draws, a mean of cosine c has each sign right with probability
Phi(sqrt(c / (1 - c))), 0.69 here: PGD's steps, 2.5 eps in total, then still drift by one eps."""
SILENT = 0.1
"""Largest share of silent successes of a randomised model: its iterate of highest mean loss need not be one that its
mean misclassified. A deterministic model may have none."""
LAST_STEPS = 0.25
STILL_RISING = 0.01
"""An attack has not converged if its best loss rose by more than this share of itself in the last steps."""
LONGER = 5
INCOMPLETE = 0.05
"""Largest share of the images (at least two) on which more steps succeed; evaluations use stronger attacks."""
NOT_TRANSFERRED = 0.1
NOT_DRAWN = 0.5
"""Largest share of images that do not transfer; for a randomised model, whose mean crosses the boundary where half of
the draws do, the larger one."""
LARGE = AttackConfig("pgd", 0.5, 50, random_start=False)
"""Half the range: every image can reach uniform grey, so no defence can hold. No random start, because noise of that
size would succeed where the gradient does not."""
LARGE_RANDOMISED = replace(LARGE, steps=10)
"""The same with fewer steps: an attack on a randomised model takes every EOT gradient of its budget."""
LEFT_AT_LARGE = 0.05


@dataclass(frozen=True)
class IndicatorResult:
    """The indicators, the attacked images (None if no attack was run), and which of them are right [B]."""

    checks: list[Check]
    attacked: Tensor | None = None
    right: Sequence[bool] = ()


def indicators(
    defended: DefendedModel,
    batch: ImageBatch,
    config: AttackConfig,
    seed: int = 0,
    surrogate: nn.Module | None = None,
) -> list[Check]:
    """The indicators on the images that the model classifies right, for the attack `config`.

    `surrogate`: what the attacker differentiates instead of the model, such as BPDA's straight-through model; None:
    the model itself. Raises DataError for images that are not float in [0, 1].
    """
    with isolated_draws(batch.images.device):
        probes = Probes(defended, batch, seed)
        right = torch.tensor(probes.right(batch.images))
        return indicate(probes.where(right), config, surrogate).checks if right.any() else [nothing_to_attack()]


def indicate(probes: Probes, config: AttackConfig, surrogate: nn.Module | None = None) -> IndicatorResult:
    """`indicators` for probes that are all classified right; the first alone where there is no usable gradient."""
    target = probes.defended.target if surrogate is None else surrogate
    gradient = probes.gradient(target)
    checks = [_unavailable_gradients(gradient, len(probes.batch.images))]
    if gradient is None or not torch.isfinite(gradient).all():
        return IndicatorResult(checks)
    if surrogate is None:
        checks.append(_unstable_predictions(probes, gradient))
    trace = probes.traced(config, target)
    right = probes.right(trace.attacked)
    checks += [
        _silent_success(trace, probes.defended.randomised),
        _incomplete_optimization(probes, target, trace, right, config),
        _transfer_failure(probes, target, trace, right, config),
        _unconstrained_failure(probes, target),
    ]
    return IndicatorResult(checks, trace.attacked, right)


def nothing_to_attack() -> Check:
    """The one check of a model that classifies no probe image right."""
    return Check("attackable", False, "no probe image is classified right, so nothing can be attacked")


def _indicator(name: str, passed: bool, seen: str, mitigation: str) -> Check:
    return Check(name, passed, seen if passed else f"{seen}: {mitigation}")


def _unavailable_gradients(gradient: Tensor | None, count: int) -> Check:
    """Number: images without a gradient. The paper's failure 1, shattered gradients."""
    name = "unavailable gradients"
    if gradient is None:
        seen = "no gradient reaches the image: the defence is not differentiable"
        return _indicator(name, False, seen, "use BPDA (threat model bpda)")
    peak = gradient.abs().amax(dim=(1, 2, 3))
    bad, zero = int((~torch.isfinite(peak)).sum()), int((peak == 0).sum())
    passed = bad == 0 and zero <= DEAD_GRADIENTS * count
    seen = f"{zero} zero and {bad} NaN or infinite of {count}"
    return _indicator(name, passed, seen, "use BPDA, or a loss on the logits if the loss is what saturates")


def _unstable_predictions(probes: Probes, gradient: Tensor) -> Check:
    """Number: the share of the margin's change nearby that its gradient does not explain. The paper's failure 2.

    The paper uses the mean change itself, relative to the loss (for a confident model, the margin's change). It grows
    with the number of pixels, so honest models of large images would fail. For a randomised model, whose gradients are
    EOT means, the number is the agreement of two of them.
    """
    batch = probes.batch
    if probes.defended.randomised:
        return _agreement(gradient, probes.gradient(stream=1), probes.defended.eot)
    model = probes.defended.model
    with torch.enable_grad():
        point = batch.images.detach().clone().requires_grad_(True)
        margins = _margins(model(point), batch.labels)
        gradient = torch.autograd.grad(margins.sum(), point)[0]
    changes, predicted = [], []
    for neighbour in range(NEIGHBOURS):
        draws = seeding.uniform(seeding.mix(probes.seed, 2, neighbour, batch.indices), batch.images[0].numel())
        signs = (draws.to(batch.images.device).view(batch.images.shape) - 0.5).sign()
        moved = (batch.images + RADIUS * signs).clamp(0, 1)
        with torch.no_grad():  # not seeded, to expose undeclared draws
            changes.append(_margins(model(moved), batch.labels) - margins.detach())
        predicted.append(((moved - batch.images).double() * gradient.double()).flatten(1).sum(dim=1))
    change, linear = torch.stack(changes), torch.stack(predicted)
    both = (change.abs() + linear.abs()).sum(dim=0)
    unexplained = float(((change - linear).abs().sum(dim=0) / both.clamp_min(1e-300)).mean())
    moves = f"within {RADIUS * 255:.2f}/255 the margin changes by {float(change.abs().mean()):.2g}"
    seen = f"{moves}, of which the gradient leaves {unexplained:.0%} unexplained"
    mitigation = "use EOT, or a smoother model for the gradient"
    return _indicator("unstable predictions", unexplained <= UNEXPLAINED, seen, mitigation)


def _agreement(gradient: Tensor, other: Tensor | None, eot: int) -> Check:
    assert other is not None
    # float64 at unit length: a confident model's gradients are so small that their squares underflow in float32
    one, two = (F.normalize(part.flatten(1).double(), eps=1e-300) for part in (gradient, other))
    cosine = float((one * two).sum(dim=1).mean())
    seen = f"two gradients of {eot} passes have a cosine of {cosine:.2f}; it must be at least {AGREEMENT}"
    return _indicator("gradients agree", cosine >= AGREEMENT, seen, "use EOT over more passes (eot)")


def _silent_success(trace: Trace, randomised: bool) -> Check:
    """Number: images misclassified at some iterate but not at the returned one. The paper's failure 3.

    This is a fault of the attack. Our attacks return the misclassified iterate; the indicator verifies it.
    """
    lost = int((trace.broken & ~trace.kept).sum())
    passed = lost <= (SILENT * len(trace.broken) if randomised else 0)
    seen = f"{lost} of {int(trace.broken.sum())} images misclassified at some iterate were returned right"
    return _indicator("silent success", passed, seen, "return the best iterate")


def _incomplete_optimization(
    probes: Probes, target: nn.Module, trace: Trace, right: Sequence[bool], config: AttackConfig
) -> Check:
    """Number: images right whose loss was still rising, and on which more steps succeed. The paper's failure 4.

    The paper's indicator fails on the rising loss alone. But a loss may rise without ever succeeding, and the last few
    images left are near the boundary, where it rises fastest. So the longer attack is run, with steps of the same size.
    """
    rising = torch.tensor([left and _rises(losses) for left, losses in zip(right, trace.losses, strict=True)])
    broken = 0
    if int(rising.sum()) > max(INCOMPLETE * len(right), 1):
        size = config.step_size or 2.5 * config.eps / config.steps
        longer = replace(config, steps=LONGER * config.steps, step_size=size)
        part = probes.where(rising)
        broken = part.right(part.attacked(longer, target)).count(False)
    passed = broken <= max(INCOMPLETE * len(right), 2)
    seen = f"{int(rising.sum())} of {len(right)} attacks had not converged; with {LONGER}x the steps {broken} succeed"
    return _indicator("incomplete optimization", passed, seen, "use more steps or a larger step")


def _rises(losses: Sequence[float]) -> bool:
    last = max(int(LAST_STEPS * len(losses)), 1)
    if len(losses) <= last:
        return False
    return max(losses) - max(losses[:-last]) > STILL_RISING * max(losses)


def _transfer_failure(
    probes: Probes, target: nn.Module, trace: Trace, right: Sequence[bool], config: AttackConfig
) -> Check:
    """Number: the share of images misclassified by the differentiated model but not by the real one. Failure 5.

    A model that is differentiated directly cannot fail, unless its predictions depend on the rest of the batch.
    """
    broken, left = trace.broken & trace.kept, torch.tensor(right)
    if _is_surrogate(probes, target):
        attacked = probes.attacked(config, target, full=True)
        broken = ~torch.tensor(probes.right(attacked, target))
        left = torch.tensor(probes.right(attacked))
    lost, of = int((broken & left).sum()), int(broken.sum())
    passed = lost <= max((NOT_DRAWN if probes.defended.randomised else NOT_TRANSFERRED) * of, 1)
    seen = f"{lost} of {of} images that the differentiated model misclassifies are right on the real one"
    return _indicator("transfer failure", passed, seen, "attack the model itself, or a closer surrogate")


def _unconstrained_failure(probes: Probes, target: nn.Module) -> Check:
    """Number: images right at half the range, where none can be. The paper's failure 6, where no budget is set."""
    large = LARGE_RANDOMISED if probes.defended.randomised else LARGE
    right = probes.right(probes.attacked(large, target, full=_is_surrogate(probes, target)))
    passed = sum(right) <= max(LEFT_AT_LARGE * len(right), 1)
    seen = f"{sum(right)} of {len(right)} images are right after {large.label} at {eps_label(large.eps)}"
    mitigation = "a working attack succeeds on all at such an eps: change its loss, or use BPDA"
    return _indicator("unconstrained attack failure", passed, seen, mitigation)


def _is_surrogate(probes: Probes, target: nn.Module) -> bool:
    """Whether `target` is another model. An attack on it takes its full budget: the first success lies just beyond the
    surrogate's own boundary, which need not be the real model's.
    """
    return target is not probes.defended.model and not isinstance(target, Expectation)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [B]: log-sum-exp of the other classes' logits less the label's logit.

    The cross-entropy is its softplus. Both have the same gradient up to a factor, which underflows in float32 for a
    confident model.
    """
    own = labels[:, None]
    others = logits.double().scatter(1, own, -torch.inf).logsumexp(dim=1)
    return others - logits.double().gather(1, own)[:, 0]
