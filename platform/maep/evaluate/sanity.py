"""The sanity battery: what must hold for a robustness figure to mean anything. A failure makes a result `unreliable`.

Follows Carlini et al. 2019 (arXiv 1902.06705, section 4.2) and Athalye et al. 2018 (arXiv 1802.00420, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
FEWER_STEPS = (1, 5)
"""PGD of so few steps beside the battery's 20: one step that finds more than many is the mark of a masked gradient."""
VANISHING = 1e-9
"""A budget that float32 loses in all but nearly black pixels, yet one for which the attack does all that it does."""
AGREEMENT = 0.2
"""Least cosine of two means of a randomised model's gradient. For Gaussian draws a mean of cosine c has each sign right
with probability Phi(sqrt(c / (1 - c))), 0.69 here: PGD's steps, 2.5 eps together, then still drift by one eps."""
CHANCE = 0.01
"""What a randomised model's draws explain with at least this probability is not held against it."""

Answers = Mapping[int, tuple[int, bool]]
"""Official index -> the predicted class, and whether it is right."""

_UNDIFFERENTIABLE = "no gradient reaches the image: the defence is not differentiable, it belongs under bpda"


@dataclass(frozen=True)
class _Probes:
    """The images of a battery (float [B, 3, H, W], int64 [B] twice) and the model that it tries."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    indices: Tensor
    seed: int
    passes: int | None

    @property
    def target(self) -> nn.Module:
        """What an attack takes the gradient of."""
        return self.model if self.passes is None else Expectation(self.model, self.passes)

    def attacked(self, config: AttackConfig) -> Tensor:
        """The images after an attack, as the protocol makes it."""
        keys = adversarial.attack_keys(config, self.seed, self.indices)
        return attack(self.target, self.images, self.labels, config, keys, stop_when_broken=True)

    def predictions(self, images: Tensor) -> Tensor:
        """int64 [B]: what the model, called anew, says of `images`; always with the same draws."""
        torch.manual_seed(self.seed)
        with torch.no_grad():
            logits: Tensor = self.model(images)
        return logits.argmax(dim=1)

    def stand(self, images: Tensor) -> list[bool]:
        """[B]: which of `images` are classified right."""
        right: list[bool] = (self.predictions(images) == self.labels).tolist()
        return right

    def risen(self, before: Sequence[bool], after: Sequence[bool]) -> bool:
        """Whether more stand `after` than `before`, see `_risen`."""
        return _risen(before, after, self.passes is not None)


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
    passes: int | None = None,
) -> list[Check]:
    """The checks of `model` (images in [0, 1] to logits: a classifier behind a defence) on a few images.

    `indices` are the images' official indices (int64 [B]), `eps` the budget of the figures it stands beside,
    `passes` over how many passes a randomised model's gradient is averaged (None: the model draws nothing). `threat`
    is `adaptive`, whose checks of the gradient are added, or `bpda`. Raises DataError for images that are not float
    in [0, 1].
    """
    check_images(images)
    probes = _Probes(model, images, labels, indices, seed, passes)
    checks = [_eval_mode(model), _logits(model, images)]
    if passes is None:
        checks.append(_draws_nothing(model, images, seed))
    right = torch.tensor(probes.stand(images))
    if not right.any():
        return [*checks, Check("attackable", False, "no probe image is classified right, so nothing can be attacked")]
    probes = _Probes(model, images[right], labels[right], indices[right], seed, passes)
    if threat == "adaptive":
        slope = _slope(probes, seed)
        checks.append(_gradients(slope, len(probes.images)))
        if slope is None:
            return checks
        if passes is not None:
            checks.append(_agreement(slope, _slope(probes, seed + 1), passes))
    attacked = probes.attacked(AttackConfig("pgd", eps, 20))
    checks.append(_budget(attacked, probes.images, eps))
    if threat == "adaptive":
        stand = probes.stand(attacked)
        checks += [_noise(probes, stand, eps), _more_steps(probes, stand, eps), _large_eps(probes)]
    return checks


def monotone(worst: Mapping[float, float], num_images: int) -> Check:
    """Adaptive worst-case accuracies by eps must not rise with eps, within one point (or one image)."""
    slack = max(TOLERANCE, 1 / num_images)
    budgets = sorted(worst)
    risen = [(a, b) for i, a in enumerate(budgets) for b in budgets[i + 1 :] if worst[b] > worst[a] + slack + 1e-9]
    seen = ", ".join(f"{worst[eps]:.1%} at {eps_label(eps)}" for eps in budgets)
    return Check("monotone in eps", not risen, f"adaptive worst case {seen}")


def at_eps_zero(
    model: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, seed: int = 0, passes: int | None = None
) -> dict[int, tuple[int, bool]]:
    """Answers of `model`, called anew, on images attacked within a budget of nothing; arguments as `battery`'s."""
    probes = _Probes(model, images, labels, indices, seed, passes)
    torch.manual_seed(seed)
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
    passed = _by_chance(before, after) and _by_chance(after, before) if randomised else differing == 0
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
    return Check("adaptive is not above oblivious", not _risen(theirs, ours, randomised), detail)


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


def _draws_nothing(model: nn.Module, images: Tensor, seed: int) -> Check:
    """A model that draws without saying so would be attacked through a single draw."""
    with torch.no_grad():
        torch.manual_seed(seed)
        first = model(images)
        torch.manual_seed(seed + 1)
        second = model(images)
    if torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        return Check("draws nothing", True, "two calls give the same logits")
    apart = float((first - second).abs().max())
    return Check("draws nothing", False, f"two calls are up to {apart:.2g} apart, of a model that is not randomised")


def _slope(probes: _Probes, seed: int) -> Tensor | None:
    """[B, 3, H, W]: the gradient of the loss; None where there is none to take."""
    torch.manual_seed(seed)
    point = probes.images.clone().requires_grad_(True)
    loss = F.cross_entropy(probes.target(point), probes.labels, reduction="sum")
    if loss.grad_fn is None:
        return None
    return torch.autograd.grad(loss, point, allow_unused=True, materialize_grads=True)[0]


def _gradients(slope: Tensor | None, count: int) -> Check:
    if slope is None:
        return Check("gradients", False, _UNDIFFERENTIABLE)
    peak = slope.abs().amax(dim=(1, 2, 3))
    bad, zero = int((~torch.isfinite(peak)).sum()), int((peak == 0).sum())
    passed = bad == 0 and zero <= DEAD_GRADIENTS * count
    return Check("gradients", passed, f"{zero} zero and {bad} NaN or infinite of {count}")


def _agreement(slope: Tensor, other: Tensor | None, passes: int) -> Check:
    assert other is not None
    # float64 at unit length: a confident model's gradients are too small for the square root of their squares' sum
    one, two = (F.normalize(part.flatten(1).double(), eps=1e-300) for part in (slope, other))
    cosine = float((one * two).sum(dim=1).mean())
    detail = f"two means of {passes} passes have a cosine of {cosine:.2f}, at least {AGREEMENT} is needed (eot)"
    return Check("gradients agree", cosine >= AGREEMENT, detail)


def _budget(attacked: Tensor, images: Tensor, eps: float) -> Check:
    pixels = adversarial.as_tensor(adversarial.round_to_budget(attacked, images, eps).numpy())
    furthest = max(float((attacked - images).abs().max()), float((pixels - images).abs().max()))
    lowest, highest = float(attacked.min()), float(attacked.max())
    passed = furthest <= eps + 1e-6 and lowest >= 0 and highest <= 1
    return Check("budget and range", passed, f"change {furthest * 255:.3f}/255 of {eps_label(eps)}, in 8 bits too")


def _noise(probes: _Probes, stand: Sequence[bool], eps: float) -> Check:
    """`stand` [B]: what PGD-20 leaves; noise of the same size must leave no less."""
    images = probes.images
    draws = seeding.uniform(seeding.mix(probes.seed, 1, probes.indices), images[0].numel()).view(images.shape)
    noisy = probes.stand((images + (2 * draws - 1).sign() * eps).clamp(0, 1))
    passed = sum(stand) <= sum(noisy) or (probes.passes is not None and _by_chance(noisy, stand))
    broken = f"noise breaks {noisy.count(False)} and PGD-20 {stand.count(False)} of {len(images)}"
    return Check("noise is weaker than PGD", passed, f"{broken} at {eps_label(eps)}")


def _more_steps(probes: _Probes, stand: Sequence[bool], eps: float) -> Check:
    """`stand` [B]: what PGD-20 leaves; PGD of fewer steps from the same start must leave no less."""
    fewer = [AttackConfig("pgd", eps, steps) for steps in FEWER_STEPS]
    left = {config.label: probes.stand(probes.attacked(config)) for config in fewer}
    passed = not any(probes.risen(before, stand) for before in left.values())
    seen = ", ".join(f"{sum(stands)} stand {label}" for label, stands in {**left, "PGD-20": stand}.items())
    return Check("more steps are not weaker", passed, f"of {len(stand)} at {eps_label(eps)} {seen}")


def _large_eps(probes: _Probes) -> Check:
    stand = probes.stand(probes.attacked(LARGE))
    passed = sum(stand) <= max(LEFT_AT_LARGE * len(stand), 1)
    detail = f"{sum(stand)} of {len(stand)} stand {LARGE.label} at {eps_label(LARGE.eps)}"
    return Check("a large eps breaks all", passed, detail)


def _risen(before: Sequence[bool], after: Sequence[bool], randomised: bool) -> bool:
    """Whether more images stand `after` than `before`, by more than the tolerance and, if randomised, than chance."""
    if sum(after) - sum(before) <= max(TOLERANCE * len(before), 1):
        return False
    return not (randomised and _by_chance(before, after))


def _by_chance(before: Sequence[bool], after: Sequence[bool]) -> bool:
    """Whether draws alone may have left as many more standing `after`: the sign test of those gained against lost."""
    from scipy.stats import binomtest  # half a second to import, and only needed for what is randomised

    gained = sum(new > old for old, new in zip(before, after, strict=True))
    lost = sum(new < old for old, new in zip(before, after, strict=True))
    return gained <= lost or bool(binomtest(gained, gained + lost, alternative="greater").pvalue >= CHANCE)
