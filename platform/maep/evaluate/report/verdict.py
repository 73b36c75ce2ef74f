"""What an evaluation says, in words made from its figures alone: the honest figure first, the lower bar beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from maep.attacks.config import Norm
from maep.evaluate.config import eps_label
from maep.evaluate.results.summary import WORST, Figure, Result

THREATS = {
    "clean": "No attack.",
    "oblivious": (
        "The attacker knows the classifier and attacks it alone, without the purifier. A lower bar: such a figure is"
        " no claim of robustness, because whoever learns of the purifier attacks it too."
    ),
    "transfer": "The attacker attacks another purifier or classifier, and sends the image here.",
    "bpda": (
        "The attacker knows purifier and classifier, and takes the identity for the purifier's gradient (BPDA). The"
        " strongest attack by gradient where a defence has none; elsewhere it stands beside the adaptive one."
    ),
    "black-box": "The attacker asks purifier and classifier as often as the attack says, and sees no gradient.",
    "fixed-mask": "The attacker knows the very masks that the purifier will draw, more than any real one could.",
    "adaptive": (
        "The attacker knows purifier and classifier and differentiates through both, over many draws where the"
        " purifier draws (EOT). The figure to judge a purifier by."
    ),
}
"""Who knows what. What a later maep adds is shown without such words."""
FELL = 0.05
"""Below this, by the upper end of the interval, nearly every image is broken."""


@dataclass(frozen=True)
class Verdict:
    """One paragraph on one purifier before one classifier."""

    purifier: str
    classifier: str
    reliable: bool
    text: str


def verdicts(result: Result) -> list[Verdict]:
    """One for each purifier and classifier; for the baselines where nothing else was evaluated."""
    baselines = result.values["baselines"]
    names = [name for name in result.values["purifiers"] if name not in baselines] or list(result.values["purifiers"])
    return [
        Verdict(name, classifier, name not in result.unreliable, _paragraph(result, name, classifier))
        for name in names
        for classifier in result.values["classifiers"]
    ]


def worst_cases(result: Result, purifier: str, classifier: str, threat: str, norm: str = "Linf") -> list[Figure]:
    """The worst-case figures of a threat model (of `clean`, the clean one) in ascending eps."""
    found = [
        figure
        for figure in result.figures
        if (figure.purifier, figure.classifier, figure.threat, figure.norm) == (purifier, classifier, threat, norm)
        and figure.attack in (WORST, "clean")
    ]
    return sorted(found, key=lambda figure: figure.eps)


def budget(figure: Figure) -> str:
    """The budget of a figure as it is written."""
    return eps_label(figure.eps, cast(Norm, figure.norm))


def cell(figure: Figure) -> str:
    """Accuracy and interval: 12.9 % [9.3, 17.5]."""
    return f"{100 * figure.accuracy:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def _paragraph(result: Result, purifier: str, classifier: str) -> str:
    sentences = [_honest(result, purifier, classifier), _lower_bar(result, purifier, classifier)]
    sentences += [_gap(result, purifier, classifier), _trust(result, purifier)]
    return " ".join(sentence for sentence in sentences if sentence)


def _honest(result: Result, purifier: str, classifier: str) -> str:
    """The adaptive figures, or what stands for them where there are none."""
    figures = _at_main_budgets(result, worst_cases(result, purifier, classifier, "adaptive"))
    if figures:
        whose = "Under an attacker who differentiates through purifier and classifier"
        return _attack_sentence(result, whose, figures)
    figures = _at_main_budgets(result, worst_cases(result, purifier, classifier, "bpda"))
    lacking = "No adaptive attack was made"
    if not figures:
        return f"{lacking}: nothing here says what is left by an attacker who knows the purifier."
    return f"{lacking}. " + _attack_sentence(
        result, "Under one who takes the identity for its gradient (BPDA)", figures
    )


def _attack_sentence(result: Result, whose: str, figures: Sequence[Figure]) -> str:
    count = figures[0].num_images
    images = f"the {count:,} images" if count == result.values["num_images"] else f"the first {count:,} images"
    said = _join([f"{cell(figure)} at {budget(figure)}" for figure in figures])
    return f"{whose}, the worst case leaves {said} of {images} right{_undefended(result, figures)}."


def _lower_bar(result: Result, purifier: str, classifier: str) -> str:
    figures = worst_cases(result, purifier, classifier, "oblivious")
    clean = worst_cases(result, purifier, classifier, "clean")
    parts = []
    if figures:
        said = _join([f"{cell(figure)} at {budget(figure)}" for figure in figures])
        bare = _undefended(result, figures)
        parts.append(f"The lower bar beside it: attacks that do not know of the purifier leave {said}{bare}.")
    if clean:
        parts.append(f"Without attack {cell(clean[0])} are right{_undefended(result, clean)}.")
    return " ".join(parts)


def _gap(result: Result, purifier: str, classifier: str) -> str:
    """The sentence that nobody may miss: what stands only against those who do not know of it."""
    adaptive = {figure.eps: figure for figure in worst_cases(result, purifier, classifier, "adaptive")}
    for oblivious in worst_cases(result, purifier, classifier, "oblivious"):
        honest = adaptive.get(oblivious.eps)
        if honest is not None and honest.high < FELL < oblivious.low:
            return (
                f"At {budget(honest)} an attacker who knows the purifier breaks nearly every image: there it protects"
                " against those only who do not know of it."
            )
    return ""


def _trust(result: Result, purifier: str) -> str:
    reasons = result.unreliable.get(purifier, [])
    if not reasons:
        return ""
    return f"These figures are unreliable: {len(reasons)} check{'s' * (len(reasons) > 1)} of the sanity battery failed."


def _at_main_budgets(result: Result, figures: Sequence[Figure]) -> list[Figure]:
    """Those at the budgets that the configuration names: the further ones draw a curve, with fewer attacks."""
    named = result.values["config"].get("eps", [])
    chosen = [figure for figure in figures if any(abs(figure.eps - eps) < 1e-9 for eps in named)]
    return chosen or list(figures)


def _undefended(result: Result, figures: Sequence[Figure]) -> str:
    """In brackets, what the bare classifier leaves under the same threat model and budgets; none for itself."""
    if "none" not in result.values["baselines"] or figures[0].purifier == "none":
        return ""
    bare = {f.eps: f for f in worst_cases(result, "none", figures[0].classifier, figures[0].threat)}
    if not all(figure.eps in bare for figure in figures):
        return ""
    return f" (undefended {_join([f'{100 * bare[figure.eps].accuracy:.1f} %' for figure in figures])})"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
