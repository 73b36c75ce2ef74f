"""What the figures of one defence before one classifier must be to each other; a failure makes them `unreliable`."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from maep.evaluate import results, sanity
from maep.evaluate.bench import Bench


def pair_checks(bench: Bench, name: str, table: pa.Table, at_eps_zero: sanity.Answers) -> list[sanity.Check]:
    """The checks across the rows of one pair; `at_eps_zero` is what its battery found."""
    randomised = bench.defence(name).traits.randomised
    return [
        sanity.eps_zero(at_eps_zero, _clean_answers(table), randomised),
        *_adaptive_checks(table, bench.config.oblivious_eps, randomised),
    ]


def _clean_answers(table: pa.Table) -> dict[int, tuple[int, bool]]:
    clean = table.filter(pc.equal(table["threat"], "clean"))
    index, prediction, correct = (clean[name].to_pylist() for name in ("index", "prediction", "correct"))
    return dict(zip(index, zip(prediction, correct, strict=True), strict=True))


def _adaptive_checks(table: pa.Table, oblivious_eps: float, randomised: bool) -> list[sanity.Check]:
    """What the adaptive figures of one defence and classifier must be to each other and to the oblivious one."""
    figures = [f for f in results.summarise(table) if f.threat == "adaptive" and f.attack == results.WORST]
    checks = []
    if len(figures) > 1:
        checks.append(sanity.monotone({f.eps: f.accuracy for f in figures}, figures[0].num_images))
    wide = [figure for figure in figures if figure.eps >= oblivious_eps - 1e-9]
    if wide:  # the least budget that takes in the oblivious one: what is wider, monotone holds below it
        pair, eps = (wide[0].purifier, wide[0].classifier), min(figure.eps for figure in wide)
        adaptive = results.outcomes(table, *pair, "adaptive", eps)
        oblivious = results.outcomes(table, *pair, "oblivious", oblivious_eps)
        checks.append(sanity.within_oblivious(adaptive, oblivious, eps, randomised))
    return checks
