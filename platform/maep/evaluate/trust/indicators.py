"""The six indicators of attack failure: why an attack that failed may say nothing of the model.

Pintor et al. 2022, Indicators of Attack Failure (arXiv 2106.09947), section 3, written anew for our attacks. Each is a
number, the threshold below which it is no failure, and the paper's mitigation for where it is one.
Each is taken of the attack that the protocol makes, watched from inside, on a few images.
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
from maep.evaluate.measure import Expectation
from maep.evaluate.protocol.context import check_images
from maep.evaluate.trust.findings import Check
from maep.evaluate.trust.probes import Probes, Trace, own_draws

DEAD_GRADIENTS = 0.05
"""Share of images that may have no gradient: a classifier that is sure of a few rounds theirs to zero."""
RADIUS = 1e-3
"""About a quarter of a grey level: no attack makes smaller steps."""
NEIGHBOURS = 2
UNEXPLAINED = 0.6
"""Share of the margin's change within RADIUS that the gradient may leave unexplained. ResNet-20 on CIFAR-10: 0.17 bare,
0.16 behind the bundled purifier, 0.41 behind a median filter; 1 where the gradient has nothing to do with the model."""
AGREEMENT = 0.2
"""Least cosine of two means of a randomised model's gradient. For Gaussian draws a mean of cosine c has each sign right
with probability Phi(sqrt(c / (1 - c))), 0.69 here: PGD's steps, 2.5 eps together, then still drift by one eps."""
SILENT = 0.1
"""Share of a randomised model's images: the iterate of highest mean loss need not be the one whose mean was wrong."""
LAST_STEPS = 0.25
STILL_RISING = 0.01
"""An attack whose best loss has risen by this share of it in its last steps has not converged."""
LONGER = 5
INCOMPLETE = 0.05
"""Share of the images that more steps may break, of few images two: the figures have stronger attacks than this one."""
NOT_TRANSFERRED = 0.1
NOT_DRAWN = 0.5
"""The same of a single draw of a randomised model, whose mean is over the boundary where half the draws are."""
LARGE = AttackConfig("pgd", 0.5, 50, random_start=False)
"""Half the range: uniform grey is within reach of every image, so no defence can stand. No random start, for noise of
that size would break what the gradient cannot."""
LARGE_RANDOMISED = replace(LARGE, steps=10)
"""The same in steps that the full budget of means over draws can pay for."""
LEFT_AT_LARGE = 0.05


@dataclass(frozen=True)
class Indicated:
    """The indicators, and the attack that they were read from: `stand` [B] after it; None where none could be made."""

    checks: list[Check]
    attacked: Tensor | None = None
    stand: Sequence[bool] = ()


def indicators(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    eps: float,
    seed: int,
    passes: int | None = None,
    surrogate: nn.Module | None = None,
    config: AttackConfig | None = None,
) -> list[Check]:
    """The indicators of `model` (float [B, 3, H, W] in [0, 1] to logits) on those of `images` that it gets right.

    `labels` and the images' official `indices` are int64 [B]. `passes`: of a randomised model, over how many a
    gradient is averaged. `surrogate`: what the attacker differentiates instead of the model, such as the
    straight-through model of BPDA, whose gradient nobody takes for the model's; None: the model itself. `config`: the
    attack, None: PGD-20 at `eps`. Raises DataError for images that are not float in [0, 1].
    """
    check_images(images)
    with own_draws(images.device):
        probes = Probes(model, images, labels, indices, seed, passes)
        right = torch.tensor(probes.stand(images))
        if not right.any():
            return [nothing_to_attack()]
        return indicate(probes.only(right), config or AttackConfig("pgd", eps, 20), surrogate).checks


def indicate(probes: Probes, config: AttackConfig, surrogate: nn.Module | None = None) -> Indicated:
    """`indicators` of probes that the model gets right; the first alone where there is no gradient to attack with."""
    target = probes.target if surrogate is None else surrogate
    slope = probes.slope(target)
    checks = [_unavailable_gradients(slope, len(probes.images))]
    if slope is None or not torch.isfinite(slope).all():
        return Indicated(checks)
    if surrogate is None:
        checks.append(_unstable_predictions(probes, slope))
    trace = probes.traced(config, target)
    stand = probes.stand(trace.attacked)
    checks += [
        _silent_success(trace, probes.passes is not None),
        _incomplete_optimization(probes, target, trace, stand, config),
        _transfer_failure(probes, target, trace, stand, config),
        _unconstrained_failure(probes, target),
    ]
    return Indicated(checks, trace.attacked, stand)


def nothing_to_attack() -> Check:
    """The one check of a model that gets no probe image right."""
    return Check("attackable", False, "no probe image is classified right, so nothing can be attacked")


def _unavailable_gradients(slope: Tensor | None, count: int) -> Check:
    """Number: images of no gradient. The paper's failure 1, shattered gradients."""
    name = "unavailable gradients"
    if slope is None:
        seen = "no gradient reaches the image: the defence is not differentiable"
        return Check(name, False, f"{seen}: use BPDA (threat model bpda)")
    peak = slope.abs().amax(dim=(1, 2, 3))
    bad, zero = int((~torch.isfinite(peak)).sum()), int((peak == 0).sum())
    passed = bad == 0 and zero <= DEAD_GRADIENTS * count
    seen = f"{zero} zero and {bad} NaN or infinite of {count}"
    return Check(
        name, passed, _with(seen, passed, "use BPDA, or a loss on the logits where it is the loss that is flat")
    )


def _unstable_predictions(probes: Probes, slope: Tensor) -> Check:
    """Number: the share of the margin's change nearby that its gradient does not explain. The paper's failure 2.

    The paper takes the mean change itself, relative to the loss (which for a confident model is the margin's change);
    that grows with the number of pixels, so an honest model of large images would fail. It stands beside. Of a
    randomised model, whose draws are averaged, the number is the agreement of two such means.
    """
    if probes.passes is not None:
        return _agreement(slope, probes.slope(stream=1), probes.passes)
    with torch.enable_grad():
        point = probes.images.detach().clone().requires_grad_(True)
        margins = _margins(probes.model(point), probes.labels)
        gradient = torch.autograd.grad(margins.sum(), point)[0]
    changes, predicted = [], []
    for neighbour in range(NEIGHBOURS):
        draws = seeding.uniform(seeding.mix(probes.seed, 2, neighbour, probes.indices), probes.images[0].numel())
        signs = (draws.to(probes.images.device).view(probes.images.shape) - 0.5).sign()
        moved = (probes.images + RADIUS * signs).clamp(0, 1)
        with torch.no_grad():  # seeds nothing: draws that are not said are to be seen
            changes.append(_margins(probes.model(moved), probes.labels) - margins.detach())
        predicted.append(((moved - probes.images).double() * gradient.double()).flatten(1).sum(dim=1))
    change, linear = torch.stack(changes), torch.stack(predicted)
    both = (change.abs() + linear.abs()).sum(dim=0)
    unexplained = float(((change - linear).abs().sum(dim=0) / both.clamp_min(1e-300)).mean())
    moves = f"within {RADIUS * 255:.2f}/255 the margin moves by {float(change.abs().mean()):.2g}"
    seen = f"{moves}, of which the gradient does not explain {unexplained:.0%}"
    passed = unexplained <= UNEXPLAINED
    return Check("unstable predictions", passed, _with(seen, passed, "use EOT, or a smoother model for the gradient"))


def _agreement(slope: Tensor, other: Tensor | None, passes: int) -> Check:
    assert other is not None
    # float64 at unit length: a confident model's gradients are too small for the square root of their squares' sum
    one, two = (F.normalize(part.flatten(1).double(), eps=1e-300) for part in (slope, other))
    cosine = float((one * two).sum(dim=1).mean())
    detail = f"two means of {passes} passes have a cosine of {cosine:.2f}, at least {AGREEMENT} is needed (eot)"
    return Check("gradients agree", cosine >= AGREEMENT, _with(detail, cosine >= AGREEMENT, "use EOT over more passes"))


def _silent_success(trace: Trace, randomised: bool) -> Check:
    """Number: images that were broken on the way and came back unbroken. The paper's failure 3, an attack's fault.

    Ours return the broken iterate, so this holds that they still do.
    """
    lost = int((trace.broken & ~trace.kept).sum())
    passed = lost <= (SILENT * len(trace.broken) if randomised else 0)
    seen = f"{lost} of {int(trace.broken.sum())} that were broken on the way came back unbroken"
    return Check("silent success", passed, _with(seen, passed, "return the best iterate"))


def _incomplete_optimization(
    probes: Probes, target: nn.Module, trace: Trace, stand: Sequence[bool], config: AttackConfig
) -> Check:
    """Number: images that stand, whose loss was still rising, and that more steps break. The paper's failure 4.

    The paper stops at the rising loss. But a loss may rise for ever and break nothing, and at a budget that leaves few
    images those few are near the boundary, where it rises fastest: so the steps are made, of the same size.
    """
    rising = torch.tensor([left and _rises(losses) for left, losses in zip(stand, trace.losses, strict=True)])
    fallen = 0
    if int(rising.sum()) > max(INCOMPLETE * len(stand), 1):
        size = config.step_size or 2.5 * config.eps / config.steps
        longer = replace(config, steps=LONGER * config.steps, step_size=size)
        part = probes.only(rising)
        fallen = part.stand(part.attacked(longer, target)).count(False)
    passed = fallen <= max(INCOMPLETE * len(stand), 2)
    seen = f"the loss of {int(rising.sum())} of {len(stand)} stands and still rises; {LONGER} times the steps break"
    mitigation = "more steps or a larger step"
    return Check("incomplete optimization", passed, _with(f"{seen} {fallen}", passed, mitigation))


def _rises(losses: Sequence[float]) -> bool:
    last = max(int(LAST_STEPS * len(losses)), 1)
    if len(losses) <= last:
        return False
    return max(losses) - max(losses[:-last]) > STILL_RISING * max(losses)


def _transfer_failure(
    probes: Probes, target: nn.Module, trace: Trace, stand: Sequence[bool], config: AttackConfig
) -> Check:
    """Number: the share of the images broken on what is differentiated that stand on the model. Failure 5.

    A model that is differentiated itself cannot fail so, unless its answer hangs on more than the image.
    """
    broken, left = trace.broken & trace.kept, torch.tensor(stand)
    if _is_other(probes, target):
        attacked = probes.attacked(config, target, full=True)
        broken = ~torch.tensor(probes.stand(attacked, target))
        left = torch.tensor(probes.stand(attacked))
    lost, of = int((broken & left).sum()), int(broken.sum())
    allowed = NOT_TRANSFERRED if probes.passes is None else NOT_DRAWN
    passed = lost <= max(allowed * of, 1)
    seen = f"{lost} of {of} that were broken on what was differentiated stand on the model"
    return Check("transfer failure", passed, _with(seen, passed, "attack the model itself, or a closer surrogate"))


def _unconstrained_failure(probes: Probes, target: nn.Module) -> Check:
    """Number: images that stand where nothing can. The paper's failure 6; it drops the budget, half the range does."""
    large = LARGE if probes.passes is None else LARGE_RANDOMISED
    stand = probes.stand(probes.attacked(large, target, full=_is_other(probes, target)))
    passed = sum(stand) <= max(LEFT_AT_LARGE * len(stand), 1)
    seen = f"{sum(stand)} of {len(stand)} stand {large.label} at {eps_label(large.eps)}"
    mitigation = "a large eps breaks all where the attack works: change its loss, or use BPDA"
    return Check("unconstrained attack failure", passed, _with(seen, passed, mitigation))


def _is_other(probes: Probes, target: nn.Module) -> bool:
    """Whether `target` is another model than is judged. Its first success lies just over its own boundary, which need
    not be the model's: such an attack takes the full budget.
    """
    return target is not probes.model and not isinstance(target, Expectation)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [B]: log-sum-exp of the other classes' logits less the label's. The cross-entropy is its softplus, and
    has the same gradient but for a factor, which of a confident model is too small for float32.
    """
    own = labels[:, None]
    others = logits.double().scatter(1, own, -torch.inf).logsumexp(dim=1)
    return others - logits.double().gather(1, own)[:, 0]


def _with(seen: str, passed: bool, mitigation: str) -> str:
    return seen if passed else f"{seen}: {mitigation}"
