"""Checks across the rows of one defence before one classifier. A failure makes the figures `unreliable`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from maep.evaluate.config import eps_label
from maep.evaluate.results import summary
from maep.evaluate.results.summary import Figure
from maep.evaluate.trust.findings import TOLERANCE, Check, Flag, by_chance, risen
from maep.evaluate.trust.sanity import Predictions

BLACK_BOX = 0.02
"""Share of the images by which a less-informed attacker may succeed more often; for `oblivious`, TOLERANCE."""

Right = Mapping[int, bool]
"""Official index -> whether the image is right after every attack of a threat model."""


def pair_checks(table: pa.Table, at_eps_zero: Predictions, oblivious_eps: float, randomised: bool) -> list[Check]:
    """The checks across the rows of one pair; `at_eps_zero` comes from its sanity battery."""
    figures = [figure for figure in summary.summarise(table) if figure.norm == "Linf"]
    return [
        eps_zero(at_eps_zero, _clean_predictions(table), randomised),
        _budget(table),
        *_more_effort(figures),
        *_weaker_attackers(table, figures, oblivious_eps, randomised),
    ]


def pair_flags(table: pa.Table) -> list[Flag]:
    """The flags across the rows of one pair."""
    found = []
    for other in _worst(summary.summarise(table), "black-box"):
        for threat in ("adaptive", "bpda"):
            if ours := _right(table, other, threat, other.eps):
                found.append(gradient_free_stronger(ours, _right(table, other, "black-box", other.eps)))
                break
    return [flag for flag in found if flag is not None]


def eps_zero(found: Predictions, clean: Predictions, randomised: bool = False) -> Check:
    """At eps 0 the attacked model must predict what the clean rows record for the same images.

    It fails where the clean rows come from another model (another wrapper, other weights, weights changed by an
    attack), where predictions depend on the rest of the batch, and where images, labels or indices are mixed up. A
    randomised model must be right equally often, up to chance.
    """
    differing = sum(clean.get(index) != prediction for index, prediction in found.items())
    before = [index in clean and clean[index][1] for index in found]
    after = [right for _, right in found.values()]
    detail = f"{sum(after)} of {len(after)} right at eps 0, {sum(before)} clean; predictions that differ: {differing}"
    passed = by_chance(before, after) and by_chance(after, before) if randomised else differing == 0
    return Check("eps 0 is clean", passed, detail)


def budget_rounded(changes: Sequence[float], eps: float) -> Check:
    """The largest change of each attacked image (Linf) must be within `eps`, also after rounding to 8 bits.

    An eps off the 8-bit grid may round up to the next level. NaN always fails.
    """
    levels = math.ceil(eps * 255 - 1e-4)
    beyond = [c for c in changes if not (0 <= c <= eps + 1e-6 and round(c * 255) <= levels)]
    furthest = max(changes, default=0.0, key=lambda c: math.inf if math.isnan(c) else c)
    seen = f"{len(beyond)} of {len(changes)} beyond {eps_label(eps)}, furthest {furthest * 255:.3f}/255"
    return Check("budget of the rows", not beyond, seen)


def monotone(by: str, accuracies: Mapping[float, float], num_images: int) -> Check:
    """Adaptive accuracies must not rise with effort (`by`: eps or steps), beyond one point or one image."""
    ordered = sorted(accuracies.items())
    slack = max(TOLERANCE, 1 / num_images) + 1e-9
    passed = all(after <= before + slack for i, (_, before) in enumerate(ordered) for _, after in ordered[i + 1 :])
    efforts = [(eps_label(effort) if by == "eps" else f"{effort:g} {by}", accuracy) for effort, accuracy in ordered]
    seen = ", ".join(f"{accuracy:.1%} at {effort}" for effort, accuracy in efforts)
    return Check(f"monotone in {by}", passed, f"adaptive worst case {seen}")


def adaptive_not_above(adaptive: Right, other: Right, threat: str, eps: float, randomised: bool = False) -> Check:
    """At equal budget the adaptive attacker must succeed about as often as one who knows less (`threat`).

    The adaptive attacker could use any image that the other finds, so fewer successes mean a weak attack. The two are
    compared on the images that both attacked; the check fails where there are none.
    """
    name = f"adaptive is not above {threat}"
    common = sorted(adaptive.keys() & other.keys())
    if not common:
        return Check(name, False, f"no image was attacked both ways at {eps_label(eps)}")
    ours, theirs = [adaptive[index] for index in common], [other[index] for index in common]
    detail = f"{sum(ours)} of {len(common)} right after adaptive and {sum(theirs)} after {threat} attacks"
    tolerance = TOLERANCE if threat == "oblivious" else BLACK_BOX
    return Check(name, not risen(theirs, ours, randomised, tolerance), f"{detail} at {eps_label(eps)}")


def gradient_free_stronger(gradient: Right, gradient_free: Right) -> Flag | None:
    """Flags attacks without gradients that succeed more often than those with, by more than one point or one image."""
    common = sorted(gradient.keys() & gradient_free.keys())
    ours, theirs = [gradient[index] for index in common], [gradient_free[index] for index in common]
    if not risen(theirs, ours, randomised=False):
        return None
    seen = f"{sum(theirs)} of {len(common)} images right after attacks without gradients, {sum(ours)} after those with"
    return Flag("gradient-free attack is stronger", f"{seen}: the gradient may be masked")


def _worst(figures: Iterable[Figure], threat: str) -> list[Figure]:
    return [figure for figure in figures if figure.threat == threat and figure.attack == summary.WORST]


def _right(table: pa.Table, pair: Figure, threat: str, eps: float) -> Right:
    return summary.outcomes(table, pair.purifier, pair.classifier, threat, eps, pair.norm)


def _clean_predictions(table: pa.Table) -> dict[int, tuple[int, bool]]:
    clean = table.filter(pc.equal(table["threat"], "clean"))
    index, prediction, correct = (clean[name].to_pylist() for name in ("index", "prediction", "correct"))
    return dict(zip(index, zip(prediction, correct, strict=True), strict=True))


def _budget(table: pa.Table) -> Check:
    attacked = table.filter(pc.and_(pc.equal(table["norm"], "Linf"), pc.not_equal(table["threat"], "clean")))
    budgets = sorted(pc.unique(attacked["eps"]).to_pylist())
    found = [
        budget_rounded(attacked.filter(pc.equal(attacked["eps"], eps))["change"].to_pylist(), eps) for eps in budgets
    ]
    return next((check for check in found if not check.passed), found[-1])


def _more_effort(figures: Sequence[Figure]) -> list[Check]:
    over_eps = {figure.eps: figure for figure in _worst(figures, "adaptive")}
    over_steps = {float(figure.steps): figure for figure in figures if figure.threat == "adaptive-steps"}
    return [
        monotone(by, {effort: figure.accuracy for effort, figure in over.items()}, next(iter(over.values())).num_images)
        for by, over in (("eps", over_eps), ("steps", over_steps))
        if len(over) > 1
    ]


def _weaker_attackers(
    table: pa.Table, figures: Sequence[Figure], oblivious_eps: float, randomised: bool
) -> list[Check]:
    adaptive = {figure.eps: figure for figure in _worst(figures, "adaptive")}
    pairs = [
        (other, threat, other.eps)
        for threat in ("bpda", "black-box", "transfer")
        for other in _worst(figures, threat)
        if other.eps in adaptive
    ]
    # For oblivious, the smallest adaptive budget that includes its own; larger ones follow by monotonicity.
    wide = [eps for eps in adaptive if eps >= oblivious_eps - 1e-9]
    if wide:
        pairs.append((adaptive[min(wide)], "oblivious", oblivious_eps))
    checks = []
    for figure, threat, eps in pairs:
        ours, theirs = _right(table, figure, "adaptive", figure.eps), _right(table, figure, threat, eps)
        checks.append(adaptive_not_above(ours, theirs, threat, figure.eps, randomised))
    return checks
