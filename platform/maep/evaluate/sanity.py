"""The sanity battery: what must hold for a robustness figure to mean anything. A failure makes a result `unreliable`.

Follows Carlini et al. 2019 (arXiv 1902.06705, section 4.2) and Athalye et al. 2018 (arXiv 1802.00420, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.gradient import attack
from maep.data import adversarial
from maep.evaluate.bench import Expectation, check_images, looks_like_probabilities
from maep.evaluate.config import Threat, eps_label

LARGE = AttackConfig("pgd", 0.5, 50, random_start=False)
"""Half the range: uniform grey is within reach of every image, so no defence can stand. No random start, for noise of
that size would break what the gradient cannot."""
LEFT_AT_LARGE = 0.05
DEAD_GRADIENTS = 0.05
TOLERANCE = 0.01
"""One point, for more effort that by chance finds less; on few images, one image."""

_UNDIFFERENTIABLE = "no gradient reaches the image: the defence is not differentiable, it belongs under bpda"


@dataclass(frozen=True)
class Check:
    """One check: whether it held, and one line that says what was seen."""

    name: str
    passed: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def battery(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    threat: Threat,
    eps: float,
    seed: int = 0,
    passes: int = 1,
) -> list[Check]:
    """The checks of `model` (images in [0, 1] to logits: a classifier behind a defence) on a few images.

    `indices` are the images' official indices (int64 [B]), `eps` the budget of the figures it stands beside,
    `passes` over how many passes a randomised model's gradient is averaged. `threat` is `adaptive`, whose checks of
    the gradient are added, or `bpda`. Raises DataError for images that are not float in [0, 1].
    """
    check_images(images)
    target = Expectation(model, passes) if passes > 1 else model
    small = AttackConfig("pgd", eps, 20)
    checks = [_eval_mode(model), _logits(model, images), _eps_zero(model, target, images, labels, indices, seed)]
    right = _predictions(model, images, seed) == labels
    if not right.any():
        return [*checks, Check("attackable", False, "no probe image is classified right, so nothing can be attacked")]
    images, labels, indices = images[right], labels[right], indices[right]
    gradients = _gradients(target, images, labels, seed)
    if threat == "adaptive":
        checks.append(gradients)
        if _UNDIFFERENTIABLE in gradients.detail:
            return checks
    keys = adversarial.attack_keys(small, seed, indices)
    attacked = attack(target, images, labels, small, keys, stop_when_broken=True)
    checks.append(_budget(attacked, images, eps))
    if threat == "adaptive":
        checks.append(_noise(model, attacked, images, labels, indices, eps, seed))
        checks.append(_large_eps(model, target, images, labels, indices, seed))
    return checks


def monotone(worst: Mapping[float, float], num_images: int) -> Check:
    """Adaptive worst-case accuracies by eps must not rise with eps, within one point (or one image)."""
    slack = max(TOLERANCE, 1 / num_images)
    budgets = sorted(worst)
    risen = [(a, b) for i, a in enumerate(budgets) for b in budgets[i + 1 :] if worst[b] > worst[a] + slack + 1e-9]
    seen = ", ".join(f"{worst[eps]:.1%} at {eps_label(eps)}" for eps in budgets)
    return Check("monotone in eps", not risen, f"adaptive worst case {seen}")


def failures(checks: Iterable[Check]) -> list[str]:
    """One line for each check that failed."""
    return [f"{check.name}: {check.detail}" for check in checks if not check.passed]


def _eval_mode(model: nn.Module) -> Check:
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    return Check("eval mode", not training, f"{training[0]} is in training mode" if training else "every module")


def _logits(model: nn.Module, images: Tensor) -> Check:
    with torch.no_grad():
        logits = model(images)
    if not torch.isfinite(logits).all():
        return Check("logits", False, "NaN or infinite on clean images")
    probabilities = looks_like_probabilities(logits)
    detail = "rows are non-negative and sum to one: probabilities" if probabilities else "not probabilities"
    return Check("logits", not probabilities, detail)


def _eps_zero(model: nn.Module, target: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Check:
    zero = AttackConfig("pgd", 0.0, 20)
    keys = adversarial.attack_keys(zero, seed, indices)
    attacked = attack(target, images, labels, zero, keys, stop_when_broken=True)
    clean, after = (_predictions(model, batch, seed) == labels for batch in (images, attacked))
    detail = f"{int(after.sum())} of {len(labels)} right at eps 0, {int(clean.sum())} clean"
    return Check("eps 0 is clean", bool((clean == after).all()), detail)


def _gradients(target: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Check:
    torch.manual_seed(seed)
    point = images.clone().requires_grad_(True)
    loss = F.cross_entropy(target(point), labels, reduction="sum")
    if loss.grad_fn is None:
        return Check("gradients", False, _UNDIFFERENTIABLE)
    (slope,) = torch.autograd.grad(loss, point, allow_unused=True, materialize_grads=True)
    peak = slope.abs().amax(dim=(1, 2, 3))
    bad, zero = int((~torch.isfinite(peak)).sum()), int((peak == 0).sum())
    passed = bad == 0 and zero <= DEAD_GRADIENTS * len(images)
    return Check("gradients", passed, f"{zero} zero and {bad} NaN or infinite of {len(images)}")


def _budget(attacked: Tensor, images: Tensor, eps: float) -> Check:
    pixels = adversarial.as_tensor(adversarial.round_to_budget(attacked, images, eps).numpy())
    furthest = max(float((attacked - images).abs().max()), float((pixels - images).abs().max()))
    lowest, highest = float(attacked.min()), float(attacked.max())
    passed = furthest <= eps + 1e-6 and lowest >= 0 and highest <= 1
    return Check("budget and range", passed, f"change {furthest * 255:.3f}/255 of {eps_label(eps)}, in 8 bits too")


def _noise(
    model: nn.Module, attacked: Tensor, images: Tensor, labels: Tensor, indices: Tensor, eps: float, seed: int
) -> Check:
    draws = seeding.uniform(seeding.mix(seed, 1, indices), images[0].numel()).view(images.shape)
    noisy = (images + (2 * draws - 1).sign() * eps).clamp(0, 1)
    by_noise, by_attack = (int((_predictions(model, batch, seed) != labels).sum()) for batch in (noisy, attacked))
    detail = f"noise breaks {by_noise} and PGD-20 {by_attack} of {len(labels)} at {eps_label(eps)}"
    return Check("noise is weaker than PGD", by_noise <= by_attack, detail)


def _large_eps(
    model: nn.Module, target: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, seed: int
) -> Check:
    keys = adversarial.attack_keys(LARGE, seed, indices)
    attacked = attack(target, images, labels, LARGE, keys, stop_when_broken=True)
    left = int((_predictions(model, attacked, seed) == labels).sum())
    passed = left <= max(LEFT_AT_LARGE * len(labels), 1)
    return Check(
        "a large eps breaks all", passed, f"{left} of {len(labels)} stand {LARGE.label} at {eps_label(LARGE.eps)}"
    )


@torch.no_grad()
def _predictions(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    predictions: Tensor = model(images).argmax(dim=1)
    return predictions
