"""The verdict of an evaluation in words: adaptive accuracy first, then the oblivious lower bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep.evaluate.config import eps_label
from maep.evaluate.report.table import percent
from maep.evaluate.results.summary import WORST, Figure, Result

FELL = 0.05
"""An accuracy whose interval ends below this counts as broken."""


@dataclass(frozen=True)
class PurifierVerdict:
    """One paragraph on one purifier in front of one classifier."""

    purifier: str
    classifier: str
    reliable: bool
    text: str


def verdicts(result: Result) -> list[PurifierVerdict]:
    """One per purifier and classifier; of the baselines where nothing else was evaluated."""
    names = result.evaluated or list(result.values["purifiers"])
    return [
        PurifierVerdict(name, classifier, name not in result.unreliable, _paragraph(result, name, classifier))
        for name in names
        for classifier in result.values["classifiers"]
    ]


def worst_cases(result: Result, purifier: str, classifier: str, threat: str, norm: str = "Linf") -> list[Figure]:
    """The worst cases of a threat model (of `clean`, the clean accuracy) in ascending eps."""
    found = [
        figure
        for figure in result.figures
        if (figure.purifier, figure.classifier, figure.threat, figure.norm) == (purifier, classifier, threat, norm)
        and figure.attack in (WORST, "clean")
    ]
    return sorted(found, key=lambda figure: figure.eps)


def budget(figure: Figure) -> str:
    """The budget as written, such as 8/255."""
    return eps_label(figure.eps, figure.norm)


def cell(figure: Figure) -> str:
    """Accuracy and interval: 12.9 % [9.3, 17.5]."""
    return percent(figure).replace(" ", " % ", 1)


def _paragraph(result: Result, purifier: str, classifier: str) -> str:
    sentences = [_honest(result, purifier, classifier), _lower_bar(result, purifier, classifier)]
    sentences += [_gap(result, purifier, classifier), _trust(result, purifier)]
    return " ".join(sentence for sentence in sentences if sentence)


def _honest(result: Result, purifier: str, classifier: str) -> str:
    """The adaptive accuracies, or those under BPDA where there are none."""
    figures = _at_main_budgets(result, worst_cases(result, purifier, classifier, "adaptive"))
    if figures:
        return _attack_sentence(
            result, "Against an attacker who differentiates through purifier and classifier", figures
        )
    lacking = "No adaptive attack was run"
    figures = _at_main_budgets(result, worst_cases(result, purifier, classifier, "bpda"))
    if not figures:
        return f"{lacking}: this evaluation says nothing about an attacker who knows the purifier."
    return f"{lacking}. " + _attack_sentence(
        result, "Against BPDA, with the identity as the purifier's gradient", figures
    )


def _attack_sentence(result: Result, whose: str, figures: Sequence[Figure]) -> str:
    count = figures[0].num_images
    images = f"the {count:,} images" if count == result.values["num_images"] else f"the first {count:,} images"
    said = _join([f"{cell(figure)} at {budget(figure)}" for figure in figures])
    return f"{whose}, worst-case accuracy on {images} is {said}{_undefended(result, figures)}."


def _lower_bar(result: Result, purifier: str, classifier: str) -> str:
    figures = worst_cases(result, purifier, classifier, "oblivious")
    clean = worst_cases(result, purifier, classifier, "clean")
    parts = []
    if figures:
        said = _join([f"{cell(figure)} at {budget(figure)}" for figure in figures])
        bare = _undefended(result, figures)
        parts.append(f"The lower bar, attacks made without the purifier: {said}{bare}.")
    if clean:
        parts.append(f"Clean accuracy is {cell(clean[0])}{_undefended(result, clean)}.")
    return " ".join(parts)


def _gap(result: Result, purifier: str, classifier: str) -> str:
    """Warns of a purifier that protects only against attackers who do not know it."""
    adaptive = {figure.eps: figure for figure in worst_cases(result, purifier, classifier, "adaptive")}
    for oblivious in worst_cases(result, purifier, classifier, "oblivious"):
        honest = adaptive.get(oblivious.eps)
        if honest is not None and honest.high < FELL < oblivious.low:
            return (
                f"At {budget(honest)} an attacker who knows the purifier breaks nearly every image:"
                " it protects only against attackers who do not know it."
            )
    return ""


def _trust(result: Result, purifier: str) -> str:
    reasons = result.unreliable.get(purifier, [])
    if not reasons:
        return ""
    return f"These figures are unreliable: {len(reasons)} sanity check{'s' * (len(reasons) > 1)} failed."


def _at_main_budgets(result: Result, figures: Sequence[Figure]) -> list[Figure]:
    """Those at the configured `eps`; the others only draw a curve, with fewer attacks."""
    named = result.values["config"].get("eps", [])
    chosen = [figure for figure in figures if any(abs(figure.eps - eps) < 1e-9 for eps in named)]
    return chosen or list(figures)


def _undefended(result: Result, figures: Sequence[Figure]) -> str:
    """In brackets, the bare classifier's accuracy under the same threat model and budgets; empty for itself."""
    if "none" not in result.values["baselines"] or figures[0].purifier == "none":
        return ""
    bare = {f.eps: f for f in worst_cases(result, "none", figures[0].classifier, figures[0].threat)}
    if not all(figure.eps in bare for figure in figures):
        return ""
    return f" (undefended {_join([f'{100 * bare[figure.eps].accuracy:.1f} %' for figure in figures])})"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
