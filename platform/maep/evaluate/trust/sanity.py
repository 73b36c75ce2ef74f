"""The sanity battery: checks of one defended model on a few images, without which a robustness figure means nothing.

Follows Carlini et al. 2019 (arXiv 1902.06705, section 4.2) and Athalye et al. 2018 (arXiv 1802.00420, section 3.1).
`maep.evaluate.trust.checks` compares figures. A failed check of either makes a result `unreliable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.evaluate.config import Threat, eps_label
from maep.evaluate.measure import DefendedModel, ImageBatch
from maep.evaluate.trust.findings import Check, by_chance, risen
from maep.evaluate.trust.flags import spread
from maep.evaluate.trust.indicators import indicate, nothing_to_attack
from maep.evaluate.trust.probes import Probes, isolated_draws
from maep.models.check import looks_like_probabilities

FEWER_STEPS = (1, 5)
"""PGD with this many steps is compared with PGD-20: if one step succeeds more often, the gradient is masked."""
VANISHING = 1e-9
"""A budget below float32's resolution except in nearly black pixels; the attack still runs every step."""

Predictions = Mapping[int, tuple[int, bool]]
"""Official index -> the predicted class, and whether it is right."""


def battery(defended: DefendedModel, batch: ImageBatch, threat: Threat, eps: float, seed: int = 0) -> list[Check]:
    """The checks of a defended model on a few images.

    threat  `adaptive`, or `bpda` where the model passes gradients through the defence unchanged; checks of the
            gradient are for `adaptive` only
    eps     the Linf budget of the evaluation's figures

    Raises DataError for images that are not float in [0, 1].
    """
    with isolated_draws(batch.images.device):
        return _battery(Probes(defended, batch, seed), threat, eps)


def at_eps_zero(defended: DefendedModel, batch: ImageBatch, seed: int = 0) -> dict[int, tuple[int, bool]]:
    """Predictions on images attacked within a vanishing budget."""
    with isolated_draws(batch.images.device):
        probes = Probes(defended, batch, seed)
        predictions = probes.predictions(probes.attacked(AttackConfig("pgd", VANISHING, 2)))
    right = (predictions == batch.labels).tolist()
    return dict(zip(batch.indices.tolist(), zip(predictions.tolist(), right, strict=True), strict=True))


def _battery(everything: Probes, threat: Threat, eps: float) -> list[Check]:
    defended = everything.defended
    calls = everything.calls((False, False, True))  # the last as an attack calls the model
    checks = [_eval_mode(defended.model), _logits(calls[0])]
    if not defended.randomised:
        checks.append(_draws_nothing(calls))
    right = torch.tensor(everything.right(everything.batch.images))
    if not right.any():
        return [*checks, nothing_to_attack()]
    probes = everything.where(right)
    indicated = indicate(probes, AttackConfig("pgd", eps, 20), defended.model if threat == "bpda" else None)
    checks += indicated.checks
    if indicated.attacked is None:
        return checks
    checks.append(_budget(indicated.attacked, probes.batch.images, eps))
    if threat == "adaptive":
        checks += [_noise(probes, indicated.right, eps), _more_steps(probes, indicated.right, eps)]
    return checks


def _eval_mode(model: nn.Module) -> Check:
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    return Check("eval mode", not training, f"{training[0]} is in training mode" if training else "every module")


def _logits(logits: Tensor) -> Check:
    if not torch.isfinite(logits).all():
        return Check("logits", False, "NaN or infinite on clean images")
    probabilities = looks_like_probabilities(logits)
    detail = "rows are non-negative and sum to one: probabilities" if probabilities else "not probabilities"
    return Check("logits", not probabilities, detail)


def _draws_nothing(calls: list[Tensor]) -> Check:
    """A randomised model that is not declared so would be attacked through a single draw."""
    if not (apart := spread(calls)):
        return Check("draws nothing", True, f"{len(calls)} calls give the same logits")
    detail = f"logits of {len(calls)} calls differ by up to {apart:.2g} though the model is not declared randomised"
    return Check("draws nothing", False, f"{detail}: use EOT")


def _budget(attacked: Tensor, images: Tensor, eps: float) -> Check:
    furthest = float((attacked - images).abs().max())
    lowest, highest = float(attacked.min()), float(attacked.max())
    passed = furthest <= eps + 1e-6 and lowest >= 0 and highest <= 1
    return Check("budget and range", passed, f"change {furthest * 255:.3f}/255 of {eps_label(eps)}, in 8 bits")


def _noise(probes: Probes, right: Sequence[bool], eps: float) -> Check:
    """`right` [B]: images right after PGD-20. Noise of the same size must leave at least as many right."""
    images = probes.batch.images
    draws = seeding.uniform(seeding.mix(probes.seed, 1, probes.batch.indices), images[0].numel()).view(images.shape)
    noisy = probes.right((images + (2 * draws - 1).sign() * eps).clamp(0, 1))
    passed = sum(right) <= sum(noisy) or (probes.defended.randomised and by_chance(noisy, right))
    seen = f"noise succeeds on {noisy.count(False)} and PGD-20 on {right.count(False)} of {len(images)} images"
    return Check("noise is weaker than PGD", passed, f"{seen} at {eps_label(eps)}")


def _more_steps(probes: Probes, right: Sequence[bool], eps: float) -> Check:
    """`right` [B]: images right after PGD-20. PGD with fewer steps from the same start must leave at least as many."""
    fewer = [AttackConfig("pgd", eps, steps) for steps in FEWER_STEPS]
    left = {config.label: probes.right(probes.attacked(config)) for config in fewer}
    passed = not any(risen(before, right, probes.defended.randomised) for before in left.values())
    seen = ", ".join(f"{sum(images)} after {label}" for label, images in {**left, "PGD-20": right}.items())
    return Check("more steps are not weaker", passed, f"right of {len(right)} at {eps_label(eps)}: {seen}")
