"""The sanity battery: what must hold for a robustness figure to mean anything. A failure makes a result `unreliable`.

Follows Carlini et al. 2019 (arXiv 1902.06705, section 4.2) and Athalye et al. 2018 (arXiv 1802.00420, section 3.1).
`battery` tries a model on a few images; the other checks compare figures, and are functions of what was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.evaluate.config import Threat, eps_label
from maep.evaluate.measure import round_to_budget
from maep.evaluate.protocol.context import check_images, looks_like_probabilities
from maep.evaluate.trust.findings import TOLERANCE, Check, Flag, by_chance, failures, risen
from maep.evaluate.trust.indicators import indicate, nothing_to_attack
from maep.evaluate.trust.probes import Probes, own_draws, seed_stream

__all__ = [
    "Answers", "Check", "Flag", "at_eps_zero", "battery", "black_box_within", "budget_rounded", "eps_zero", "failures",
    "monotone", "monotone_steps", "within_oblivious",
]  # fmt: skip

FEWER_STEPS = (1, 5)
"""PGD of so few steps beside the battery's 20: one step that finds more than many is the mark of a masked gradient."""
VANISHING = 1e-9
"""A budget that float32 loses in all but nearly black pixels, yet one for which the attack does all that it does."""
BLACK_BOX = 0.02
"""Two points, by which an attacker who knows less may find more."""

Answers = Mapping[int, tuple[int, bool]]
"""Official index -> the predicted class, and whether it is right."""


def battery(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    threat: Threat,
    eps: float,
    seed: int = 0,
    passes: int | None = None,
) -> list[Check]:
    """The checks of `model` (images in [0, 1] to logits: a classifier behind a defence) on a few images.

    `indices` are the images' official indices (int64 [B]), `eps` the budget of the figures it stands beside,
    `passes` over how many passes a randomised model's gradient is averaged (None: the model draws nothing). `threat`
    is `adaptive`, whose checks of the gradient are added, or `bpda`, where `model` has the identity for the defence's
    gradient. Raises DataError for images that are not float in [0, 1].
    """
    check_images(images)
    with own_draws(images.device):
        return _battery(Probes(model, images, labels, indices, seed, passes), threat, eps)


def _battery(everything: Probes, threat: Threat, eps: float) -> list[Check]:
    model = everything.model
    calls = _calls(everything)
    checks = [_eval_mode(model), _logits(calls[0])]
    if everything.passes is None:
        checks.append(_draws_nothing(calls))
    right = torch.tensor(everything.stand(everything.images))
    if not right.any():
        return [*checks, nothing_to_attack()]
    probes = everything.only(right)
    indicated = indicate(probes, AttackConfig("pgd", eps, 20), model if threat == "bpda" else None)
    checks += indicated.checks
    if indicated.attacked is None:
        return checks
    checks.append(_budget(indicated.attacked, probes.images, eps))
    if threat == "adaptive":
        checks += [_noise(probes, indicated.stand, eps), _more_steps(probes, indicated.stand, eps)]
    return checks


def monotone(worst: Mapping[float, float], num_images: int) -> Check:
    """Adaptive worst-case accuracies by eps must not rise with eps, within one point (or one image)."""
    return _monotone("monotone in eps", {eps_label(eps): worst[eps] for eps in sorted(worst)}, num_images)


def monotone_steps(worst: Mapping[int, float], num_images: int) -> Check:
    """Adaptive accuracies by the steps of one attack at one eps must not rise with them, as `monotone`'s."""
    return _monotone("monotone in steps", {f"{steps} steps": worst[steps] for steps in sorted(worst)}, num_images)


def at_eps_zero(
    model: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, seed: int = 0, passes: int | None = None
) -> dict[int, tuple[int, bool]]:
    """Answers of `model`, called anew, on images attacked within a budget of nothing; arguments as `battery`'s."""
    with own_draws(images.device):
        probes = Probes(model, images, labels, indices, seed, passes)
        predictions = probes.predictions(probes.attacked(AttackConfig("pgd", VANISHING, 2)))
    right = (predictions == labels).tolist()
    return dict(zip(indices.tolist(), zip(predictions.tolist(), right, strict=True), strict=True))


def eps_zero(found: Answers, clean: Answers, randomised: bool = False) -> Check:
    """What the battery's images are taken for `at_eps_zero` must be what the clean rows of the same images say.

    It fails where the attacked model is not the one of the clean figure (another wrapper, other weights, changed by an
    attack), where its answer hangs on the batch it stands in, and where images, labels or indices are mixed up.
    A randomised model must be right as often, but for its draws.
    """
    differing = sum(clean.get(index) != answer for index, answer in found.items())
    before = [index in clean and clean[index][1] for index in found]
    after = [right for _, right in found.values()]
    detail = f"{sum(after)} of {len(after)} right at eps 0, {sum(before)} clean; answers that differ: {differing}"
    passed = by_chance(before, after) and by_chance(after, before) if randomised else differing == 0
    return Check("eps 0 is clean", passed, detail)


def within_oblivious(
    adaptive: Mapping[int, bool], oblivious: Mapping[int, bool], eps: float, randomised: bool = False
) -> Check:
    """Official index -> whether the image stands: at equal budget no more may stand `adaptive` than `oblivious`.

    The images of an oblivious attacker are there for the adaptive one too, so where they break more, the adaptive
    attack is too weak to tell anything. On the images that both have attacked, within one point (or one image).
    """
    common = sorted(adaptive.keys() & oblivious.keys())
    ours, theirs = [adaptive[index] for index in common], [oblivious[index] for index in common]
    detail = f"{sum(ours)} of {len(common)} stand adaptive and {sum(theirs)} oblivious attacks at {eps_label(eps)}"
    return Check("adaptive is not above oblivious", not risen(theirs, ours, randomised), detail)


def black_box_within(
    adaptive: Mapping[int, bool],
    other: Mapping[int, bool],
    eps: float,
    threat: str = "black-box",
    randomised: bool = False,
) -> Check:
    """Official index -> whether the image stands: at equal budget hardly more may stand `adaptive` than an attacker who
    knows less (`threat`: black-box, transfer, bpda).

    All that such a one finds is there for the adaptive attacker, so two points fewer (and one image) mean that the
    adaptive attack was too weak. On the images that both have attacked; it fails where there are none.
    """
    name = f"adaptive is not above {threat}"
    common = sorted(adaptive.keys() & other.keys())
    if not common:
        return Check(name, False, f"no image was attacked both ways at {eps_label(eps)}")
    ours, theirs = [adaptive[index] for index in common], [other[index] for index in common]
    detail = f"{sum(ours)} of {len(common)} stand adaptive and {sum(theirs)} {threat} attacks at {eps_label(eps)}"
    return Check(name, not risen(theirs, ours, randomised, BLACK_BOX), detail)


def budget_rounded(changes: Sequence[float], eps: float) -> Check:
    """Largest change of each attacked image (Linf, of images on the 8-bit grid): within `eps`, in 8 bits too.

    An eps off the grid may round up to the next level. NaN is no change within anything.
    """
    levels = math.ceil(eps * 255 - 1e-4)
    beyond = [c for c in changes if not (0 <= c <= eps + 1e-6 and round(c * 255) <= levels)]
    furthest = max(changes, default=0.0, key=lambda c: math.inf if math.isnan(c) else c)
    seen = f"{len(beyond)} of {len(changes)} beyond {eps_label(eps)}, furthest {furthest * 255:.3f}/255"
    return Check("budget of the rows", not beyond, seen)


def _monotone(name: str, worst: Mapping[str, float], num_images: int) -> Check:
    """`worst`: accuracies by effort, the least first."""
    slack = max(TOLERANCE, 1 / num_images)
    accuracies = list(worst.values())
    rises = any(after > before + slack + 1e-9 for i, before in enumerate(accuracies) for after in accuracies[i + 1 :])
    seen = ", ".join(f"{accuracy:.1%} at {effort}" for effort, accuracy in worst.items())
    return Check(name, not rises, f"adaptive worst case {seen}")


def _eval_mode(model: nn.Module) -> Check:
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    return Check("eval mode", not training, f"{training[0]} is in training mode" if training else "every module")


def _calls(probes: Probes) -> list[Tensor]:
    """Logits of three calls with draws of their own: the last one with a gradient, as an attack calls the model."""
    found = []
    for call, gradient in enumerate((False, False, True)):
        seed_stream(probes.seed, call)
        with torch.set_grad_enabled(gradient):
            found.append(probes.model(probes.images).detach())
    return found


def _logits(logits: Tensor) -> Check:
    if not torch.isfinite(logits).all():
        return Check("logits", False, "NaN or infinite on clean images")
    probabilities = looks_like_probabilities(logits)
    detail = "rows are non-negative and sum to one: probabilities" if probabilities else "not probabilities"
    return Check("logits", not probabilities, detail)


def _draws_nothing(calls: Sequence[Tensor]) -> Check:
    """A model that draws without saying so would be attacked through a single draw."""
    if all(torch.allclose(calls[0], other, rtol=1e-4, atol=1e-5) for other in calls[1:]):
        return Check("draws nothing", True, f"{len(calls)} calls give the same logits")
    apart = max(float((other - calls[0]).abs().max()) for other in calls[1:])
    return Check(
        "draws nothing", False, f"calls are up to {apart:.2g} apart, of a model that is not randomised: use EOT"
    )


def _budget(attacked: Tensor, images: Tensor, eps: float) -> Check:
    pixels = round_to_budget(attacked, images, eps)
    furthest = max(float((attacked - images).abs().max()), float((pixels - images).abs().max()))
    lowest, highest = float(attacked.min()), float(attacked.max())
    passed = furthest <= eps + 1e-6 and lowest >= 0 and highest <= 1
    return Check("budget and range", passed, f"change {furthest * 255:.3f}/255 of {eps_label(eps)}, in 8 bits too")


def _noise(probes: Probes, stand: Sequence[bool], eps: float) -> Check:
    """`stand` [B]: what PGD-20 leaves; noise of the same size must leave no less."""
    images = probes.images
    draws = seeding.uniform(seeding.mix(probes.seed, 1, probes.indices), images[0].numel()).view(images.shape)
    noisy = probes.stand((images + (2 * draws - 1).sign() * eps).clamp(0, 1))
    passed = sum(stand) <= sum(noisy) or (probes.passes is not None and by_chance(noisy, stand))
    broken = f"noise breaks {noisy.count(False)} and PGD-20 {stand.count(False)} of {len(images)}"
    return Check("noise is weaker than PGD", passed, f"{broken} at {eps_label(eps)}")


def _more_steps(probes: Probes, stand: Sequence[bool], eps: float) -> Check:
    """`stand` [B]: what PGD-20 leaves; PGD of fewer steps from the same start must leave no less."""
    fewer = [AttackConfig("pgd", eps, steps) for steps in FEWER_STEPS]
    left = {config.label: probes.stand(probes.attacked(config)) for config in fewer}
    passed = not any(risen(before, stand, probes.passes is not None) for before in left.values())
    seen = ", ".join(f"{sum(stands)} stand {label}" for label, stands in {**left, "PGD-20": stand}.items())
    return Check("more steps are not weaker", passed, f"of {len(stand)} at {eps_label(eps)} {seen}")
