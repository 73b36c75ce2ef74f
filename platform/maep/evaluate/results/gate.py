"""The gate for the alias `champion`: better than the champion under oblivious attacks, not worse under adaptive ones.

It decides on `dev` images only, from the per-image outcomes of evaluations, with the exact paired test of McNemar
(1947). Promoting a refused purifier is up to the caller, who must record it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from maep.errors import ConfigError
from maep.evaluate.config import EvaluateConfig, GateConfig, eps_label
from maep.evaluate.results import summary
from maep.evaluate.results.paired import Paired, mcnemar
from maep.evaluate.results.summary import Figure, Result, check_alike


@dataclass(frozen=True)
class Decision:
    """`reasons` has one line per failed check, or per passed one where all passed; `figures` are what was compared."""

    passed: bool
    reasons: list[str]
    figures: dict[str, float] = field(default_factory=dict)


def evaluation(gate: GateConfig, base: EvaluateConfig) -> EvaluateConfig:
    """`base` with the images, budgets and baselines that the gate decides on, and no others: attacks take minutes."""
    kept = tuple(name for name in EvaluateConfig().baselines if name in gate.over_baselines)
    return dataclasses.replace(
        base,
        images=gate.images,
        num_images=gate.num_images,
        num_adaptive=None,
        eps=gate.adaptive_eps,
        oblivious_eps=gate.oblivious_eps,
        baselines=kept,
    )


def decide(
    candidate: Result,
    champion: Result | None,
    config: GateConfig,
    candidate_name: str | None = None,
    champion_name: str | None = None,
) -> Decision:
    """Whether the candidate becomes champion. A result of several purifiers needs the name of one.

    Every classifier of the candidate's result must agree. Raises ConfigError where the results cannot be compared:
    `test` images, different images, classifiers or attacks, or budgets that were not measured.
    """
    mine = _Contender(candidate, candidate.choose(candidate_name))
    if candidate.values["split"] != "dev":
        raise ConfigError(
            f"the gate decides on dev images, {candidate.folder} is of {candidate.values['split']}: keep test images"
            " for reported figures"
        )
    rival = None
    if champion is not None:
        check_alike(candidate, champion, ("image_list_sha256", "classifiers", "seed", "preset"))
        rival = _Contender(champion, champion.choose(champion_name))
    figures: dict[str, float] = {}
    checks = [_reliable(mine)]
    for classifier in candidate.values["classifiers"]:
        checks.append(_clean(mine, classifier, config, figures))
        if rival is None:
            checks += _over_baselines(mine, classifier, config, figures)
        else:
            checks += _over_champion(mine, rival, classifier, config, figures)
    refused = [reason for passed, reason in checks if not passed]
    return Decision(not refused, refused or [reason for _, reason in checks], figures)


_Check = tuple[bool, str]


@dataclass(frozen=True)
class _Contender:
    """One purifier of one result."""

    result: Result
    name: str

    @cached_property
    def rows(self) -> pa.Table:
        return self.result.rows()

    def worst_case(self, classifier: str, threat: str, eps: float) -> Figure:
        try:
            return self.result.figure(self.name, classifier, threat, eps)
        except KeyError:
            raise ConfigError(
                f"{self.result.folder} has no {threat} figure of {self.name} on {classifier} at {eps_label(eps)}:"
                " evaluate with the gate's budgets"
            ) from None

    def against(self, other: _Contender, classifier: str, threat: str, eps: float) -> Paired:
        """The paired test of the worst cases per image."""
        ours, theirs = (summary.outcomes(x.rows, x.name, classifier, threat, eps) for x in (self, other))
        return mcnemar(ours, theirs)


def _reliable(mine: _Contender) -> _Check:
    reasons = mine.result.unreliable.get(mine.name, [])
    if reasons:
        return False, f"unreliable: {reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
    return True, "all sanity checks passed"


def _clean(mine: _Contender, classifier: str, config: GateConfig, figures: dict[str, float]) -> _Check:
    clean = mine.result.figure(mine.name, classifier, "clean").accuracy
    figures[f"{classifier}.clean_accuracy"] = clean
    passed = clean >= config.clean_floor
    word = "at least" if passed else "below"
    return passed, f"{classifier}: clean accuracy {clean:.1%} is {word} the floor of {config.clean_floor:.1%}"


def _over_baselines(mine: _Contender, classifier: str, config: GateConfig, figures: dict[str, float]) -> list[_Check]:
    checks, eps = [], config.oblivious_eps
    own = mine.worst_case(classifier, "oblivious", eps)
    figures[f"{classifier}.oblivious_accuracy"] = own.accuracy
    for name in config.over_baselines:
        baseline = _Contender(mine.result, name)
        other = baseline.worst_case(classifier, "oblivious", eps)
        checks.append(_is_above(own, other, mine.against(baseline, classifier, "oblivious", eps), config, f"{name}'s"))
    return checks


def _over_champion(
    mine: _Contender, rival: _Contender, classifier: str, config: GateConfig, figures: dict[str, float]
) -> list[_Check]:
    checks = []
    budgets = [("oblivious", config.oblivious_eps), *(("adaptive", eps) for eps in config.adaptive_eps)]
    for threat, eps in budgets:
        own, other = (each.worst_case(classifier, threat, eps) for each in (mine, rival))
        test = mine.against(rival, classifier, threat, eps)
        compared = _is_above if threat == "oblivious" else _is_not_worse
        checks.append(compared(own, other, test, config, "the champion's"))
        key = threat if threat == "oblivious" else f"{threat}_{eps_label(eps)}"
        figures[f"{classifier}.{key}_accuracy"] = own.accuracy
        figures[f"{classifier}.{key}_p_value"] = test.p_value
    return checks


def _is_above(own: Figure, other: Figure, test: Paired, config: GateConfig, whose: str) -> _Check:
    passed = test.won > test.lost and test.p_value < config.alpha
    return passed, _line(own, other, test, f"{'above' if passed else 'not above'} {whose}")


def _is_not_worse(own: Figure, other: Figure, test: Paired, config: GateConfig, whose: str) -> _Check:
    behind = other.accuracy - own.accuracy
    passed = behind <= config.adaptive_margin and not (behind > 0 and test.p_value < config.alpha)
    return passed, _line(own, other, test, f"{'not worse than' if passed else 'worse than'} {whose}")


def _line(own: Figure, other: Figure, test: Paired, relation: str) -> str:
    case = f"{own.classifier}: {own.threat} worst case at {eps_label(own.eps)}, {own.accuracy:.1%},"
    return f"{case} is {relation} {other.accuracy:.1%} (p = {test.p_value:.3g})"
