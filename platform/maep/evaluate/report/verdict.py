"""The verdict of an evaluation in words: adaptive accuracy first, then the oblivious lower bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep.evaluate.report.table import percent
from maep.evaluate.results.summary import WORST, Figure, Result

BROKEN = 0.05
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


def worst_cases(result: Result, purifier: str, classifier: str, threat: str) -> list[Figure]:
    """The Linf worst cases of a threat model (for `clean`, the clean accuracy) in ascending eps."""
    wanted = (purifier, classifier, threat, "Linf")
    found = [f for f in result.figures if (f.purifier, f.classifier, f.threat, f.norm) == wanted]
    return sorted((f for f in found if f.attack in (WORST, "clean")), key=lambda f: f.eps)


def cell(figure: Figure) -> str:
    """Accuracy and interval: 12.9 % [9.3, 17.5]."""
    return percent(figure).replace(" ", " % ", 1)


def _paragraph(result: Result, purifier: str, classifier: str) -> str:
    clean, oblivious, adaptive, bpda = (
        worst_cases(result, purifier, classifier, threat) for threat in ("clean", "oblivious", "adaptive", "bpda")
    )
    sentences = []
    if not adaptive:
        sentences.append("No adaptive attack was run" + ("." if bpda else _UNKNOWN))
    if attacked := _at_main_budgets(result, adaptive or bpda):
        count = attacked[0].num_images
        images = f"the {'' if count == result.values['num_images'] else 'first '}{count:,} images"
        said = _join([f"{cell(figure)} at {figure.budget}" for figure in attacked])
        attacker = _ADAPTIVE if adaptive else _BPDA
        sentences.append(f"{attacker}, worst-case accuracy on {images} is {said}{_undefended(result, attacked)}.")
    if oblivious:
        said = _join([f"{cell(figure)} at {figure.budget}" for figure in oblivious])
        bare = _undefended(result, oblivious)
        sentences.append(f"The lower bar, under attacks made without the purifier, is {said}{bare}.")
    if clean:
        sentences.append(f"Clean accuracy is {cell(clean[0])}{_undefended(result, clean)}.")
    known = {figure.eps: figure for figure in adaptive}
    fallen = [f.budget for f in oblivious if f.low > BROKEN and f.eps in known and known[f.eps].high < BROKEN]
    if fallen:
        sentences.append(
            f"At {fallen[0]} an attacker who knows the purifier breaks nearly every image:"
            " it protects only against attackers who do not know it."
        )
    if failed := len(result.unreliable.get(purifier, [])):
        sentences.append(f"These figures are unreliable: {failed} sanity check{'s' * (failed > 1)} failed.")
    return " ".join(sentences)


_UNKNOWN = ": this evaluation says nothing about an attacker who knows the purifier."
_ADAPTIVE = "Against an attacker who differentiates through purifier and classifier"
_BPDA = "Against BPDA, which takes the identity as the purifier's gradient"


def _at_main_budgets(result: Result, figures: Sequence[Figure]) -> list[Figure]:
    """Those at the configured `eps`; the others only draw a curve, with fewer attacks."""
    named = result.values["config"].get("eps", [])
    chosen = [figure for figure in figures if any(abs(figure.eps - eps) < 1e-9 for eps in named)]
    return chosen or list(figures)


def _undefended(result: Result, figures: Sequence[Figure]) -> str:
    """In brackets, the bare classifier's accuracy under the same threat model and budgets; empty for itself."""
    bare = {f.eps: f for f in worst_cases(result, "none", figures[0].classifier, figures[0].threat)}
    if figures[0].purifier == "none" or not all(figure.eps in bare for figure in figures):
        return ""
    return f" (undefended {_join([f'{percent(bare[figure.eps], False)} %' for figure in figures])})"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
