"""The gate for the alias `champion`: better than the champion under oblivious attacks, not worse under adaptive ones.

It decides on `dev` images only, from the per-image outcomes of evaluations, by McNemar's exact paired test (1947).
Promoting a refused purifier is up to the caller, who must record it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from maep.errors import ConfigError
from maep.evaluate.config import EvaluateConfig, GateConfig, eps_label
from maep.evaluate.results import summary
from maep.evaluate.results.paired import Paired, mcnemar
from maep.evaluate.results.summary import Result, check_alike


@dataclass(frozen=True)
class Decision:
    """`reasons`: one line per failed check, or per check where all passed; `figures`: what was compared."""

    passed: bool
    reasons: list[str]
    figures: dict[str, float] = field(default_factory=dict)


def evaluation(gate: GateConfig, base: EvaluateConfig) -> EvaluateConfig:
    """`base` with only the images, budgets and baselines that the gate decides on: every attack takes minutes."""
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
    if candidate.values["split"] != "dev":
        raise ConfigError(
            f"the gate decides on dev images, {candidate.folder} is of {candidate.values['split']}: keep test images"
            " for reported figures"
        )
    mine = _Contender(candidate, candidate.choose(candidate_name), "the candidate's")
    rivals = [_Contender(candidate, name, f"{name}'s") for name in config.over_baselines]
    threats = [("oblivious", config.oblivious_eps)]
    if champion is not None:
        check_alike(candidate, champion, ("image_list_sha256", "classifiers", "seed", "preset"))
        rivals = [_Contender(champion, champion.choose(champion_name), "the champion's")]
        threats += [("adaptive", eps) for eps in config.adaptive_eps]
    figures: dict[str, float] = {}
    checks = [_reliable(mine)]
    for classifier in candidate.values["classifiers"]:
        clean = mine.result.figure(mine.name, classifier, "clean").accuracy
        figures[f"{classifier}.clean_accuracy"] = clean
        word = "at least" if clean >= config.clean_floor else "below"
        line = f"{classifier}: clean accuracy {clean:.1%} is {word} the floor of {config.clean_floor:.1%}"
        checks.append((clean >= config.clean_floor, line))
        for threat, eps in threats:
            key = f"{classifier}.{threat}" + (f"_{eps_label(eps)}" if threat == "adaptive" else "")
            own = mine.outcomes(classifier, threat, eps)
            figures[f"{key}_accuracy"] = _accuracy(own)
            for rival in rivals:
                other = rival.outcomes(classifier, threat, eps)
                test = mcnemar(own, other)
                if champion is not None:
                    figures[f"{key}_p_value"] = test.p_value
                passed, relation = _compared(threat, _accuracy(other) - _accuracy(own), test, config)
                checks.append(
                    (
                        passed,
                        f"{classifier}: {threat} worst case at {eps_label(eps)}, {_accuracy(own):.1%}, is {relation}"
                        f" {rival.whose} {_accuracy(other):.1%} (p = {test.p_value:.3g})",
                    )
                )
    refused = [reason for passed, reason in checks if not passed]
    return Decision(not refused, refused or [reason for _, reason in checks], figures)


_Check = tuple[bool, str]


@dataclass(frozen=True)
class _Contender:
    """One purifier of one result."""

    result: Result
    name: str
    whose: str

    @cached_property
    def rows(self) -> pa.Table:
        return self.result.rows()

    def outcomes(self, classifier: str, threat: str, eps: float) -> dict[int, bool]:
        """The worst case of each image."""
        found = summary.outcomes(self.rows, self.name, classifier, threat, eps)
        if not found:
            raise ConfigError(
                f"{self.result.folder} has no {threat} figure of {self.name} on {classifier} at {eps_label(eps)}:"
                " evaluate with the gate's budgets"
            )
        return found


def _reliable(mine: _Contender) -> _Check:
    reasons = mine.result.unreliable.get(mine.name, [])
    if reasons:
        return False, f"unreliable: {reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
    return True, "all sanity checks passed"


def _compared(threat: str, behind: float, test: Paired, config: GateConfig) -> _Check:
    """Oblivious accuracy must be above the rival's; adaptive accuracy, `behind` by that share, must not be worse."""
    if threat == "oblivious":
        passed = test.won > test.lost and test.p_value < config.alpha
        return passed, "above" if passed else "not above"
    passed = behind <= config.adaptive_margin and not (behind > 0 and test.p_value < config.alpha)
    return passed, "not worse than" if passed else "worse than"


def _accuracy(outcomes: Mapping[int, bool]) -> float:
    return sum(outcomes.values()) / len(outcomes)
