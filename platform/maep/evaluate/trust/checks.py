"""What the figures of one defence before one classifier must be to each other; a failure makes them `unreliable`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from maep.evaluate.protocol.context import Bench
from maep.evaluate.results import summary
from maep.evaluate.results.summary import Figure
from maep.evaluate.trust import sanity
from maep.evaluate.trust.findings import Check, Flag
from maep.evaluate.trust.flags import gradient_free_stronger


def pair_checks(bench: Bench, name: str, table: pa.Table, at_eps_zero: sanity.Answers) -> list[Check]:
    """The checks across the rows of one pair; `at_eps_zero` is what its battery found."""
    randomised = bench.defence(name).traits.randomised
    figures = [figure for figure in summary.summarise(table) if figure.norm == "Linf"]
    return [
        sanity.eps_zero(at_eps_zero, _clean_answers(table), randomised),
        _budget(table),
        *_more_effort(figures),
        *_weaker_attackers(table, figures, bench.config.oblivious_eps, randomised),
    ]


def pair_flags(table: pa.Table) -> list[Flag]:
    """What is worth a second look across the rows of one pair."""
    found = []
    for figure in _worst(summary.summarise(table), "black-box"):
        pair = (figure.purifier, figure.classifier)
        for threat in ("adaptive", "bpda"):
            ours = summary.outcomes(table, *pair, threat, figure.eps, figure.norm)
            theirs = summary.outcomes(table, *pair, "black-box", figure.eps, figure.norm)
            if ours:
                found.append(gradient_free_stronger(ours, theirs))
                break
    return [flag for flag in found if flag is not None]


def _worst(figures: Sequence[Figure], threat: str) -> list[Figure]:
    return [figure for figure in figures if figure.threat == threat and figure.attack == summary.WORST]


def _clean_answers(table: pa.Table) -> dict[int, tuple[int, bool]]:
    clean = table.filter(pc.equal(table["threat"], "clean"))
    index, prediction, correct = (clean[name].to_pylist() for name in ("index", "prediction", "correct"))
    return dict(zip(index, zip(prediction, correct, strict=True), strict=True))


def _budget(table: pa.Table) -> Check:
    """No row of an Linf attack is beyond its budget."""
    attacked = table.filter(pc.and_(pc.equal(table["norm"], "Linf"), pc.not_equal(table["threat"], "clean")))
    budgets = sorted(pc.unique(attacked["eps"]).to_pylist())
    found = [
        sanity.budget_rounded(attacked.filter(pc.equal(attacked["eps"], eps))["change"].to_pylist(), eps)
        for eps in budgets
    ]
    return next((check for check in found if not check.passed), found[-1])


def _more_effort(figures: Sequence[Figure]) -> list[Check]:
    """More eps and more steps leave no more images standing."""
    checks = []
    over_eps = _worst(figures, "adaptive")
    if len(over_eps) > 1:
        checks.append(sanity.monotone({f.eps: f.accuracy for f in over_eps}, over_eps[0].num_images))
    over_steps = [figure for figure in figures if figure.threat == "adaptive-steps"]
    if len(over_steps) > 1:
        checks.append(sanity.monotone_steps({f.steps: f.accuracy for f in over_steps}, over_steps[0].num_images))
    return checks


def _weaker_attackers(
    table: pa.Table, figures: Sequence[Figure], oblivious_eps: float, randomised: bool
) -> list[Check]:
    """Who knows less must not find more, at equal budget and on the images of both."""
    adaptive = {figure.eps: figure for figure in _worst(figures, "adaptive")}
    checks = []
    for threat in ("bpda", "black-box", "transfer"):
        for other in _worst(figures, threat):
            if other.eps in adaptive:
                pair = (other.purifier, other.classifier)
                ours = summary.outcomes(table, *pair, "adaptive", other.eps)
                theirs = summary.outcomes(table, *pair, threat, other.eps)
                checks.append(sanity.black_box_within(ours, theirs, other.eps, threat, randomised))
    wide = [eps for eps in adaptive if eps >= oblivious_eps - 1e-9]
    if wide:  # the least budget that takes in the oblivious one: what is wider, monotone holds below it
        eps = min(wide)
        pair = (adaptive[eps].purifier, adaptive[eps].classifier)
        ours = summary.outcomes(table, *pair, "adaptive", eps)
        theirs = summary.outcomes(table, *pair, "oblivious", oblivious_eps)
        checks.append(sanity.within_oblivious(ours, theirs, eps, randomised))
    return checks
