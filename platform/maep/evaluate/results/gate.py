"""The gate for `champion`: a candidate must be better where it counts and not worse where it is honest.

It decides on `dev` images only, from the per-image outcomes of evaluations, with the exact paired test of McNemar
(1947). Whether somebody promotes a purifier that was refused is for the caller to allow, and to record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from maep.errors import ConfigError, nearest
from maep.evaluate.config import Baseline, EvaluateConfig, eps_label
from maep.evaluate.results import summary
from maep.evaluate.results.summary import Figure, Result


@dataclass(frozen=True)
class GateConfig:
    """What a champion must hold. Accuracies, floors and margins are shares in [0, 1].

    images           a named `dev` list; `num_images` cuts it to its first so many
    clean_floor      least clean accuracy
    oblivious_eps    budget of the oblivious worst case, which must be above the champion's at p < `alpha`
    adaptive_eps     budgets at which the adaptive worst case must not be worse: neither by more than
                     `adaptive_margin` nor, by however little, at p < `alpha`
    over_baselines   baselines whose oblivious worst case a first champion must be above, at p < `alpha`
    """

    images: str = "cifar10-dev-500"
    num_images: int | None = None
    clean_floor: float = 0.85
    oblivious_eps: float = 8 / 255
    adaptive_eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255)
    adaptive_margin: float = 0.02
    alpha: float = 0.05
    over_baselines: tuple[Baseline, ...] = ("none", "jpeg-q50")

    def __post_init__(self) -> None:
        """Refuses shares and budgets outside [0, 1]."""
        for key, budgets in (("oblivious_eps", (self.oblivious_eps,)), ("adaptive_eps", self.adaptive_eps)):
            if not budgets or any(not 0 < budget <= 1 for budget in budgets):
                raise ValueError(f"{key}: budgets must be in (0, 1]; 8/255 may be written so")
        for key in ("clean_floor", "adaptive_margin", "alpha"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be a share in [0, 1]")


@dataclass(frozen=True)
class Paired:
    """Two purifiers on the same images: right for the candidate only, for the champion only, and the exact p."""

    won: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class Decision:
    """`reasons` are one line each: why it was refused, or what held; `figures` are what was compared."""

    passed: bool
    reasons: list[str]
    figures: dict[str, float] = field(default_factory=dict)


def evaluation(gate: GateConfig, base: EvaluateConfig) -> EvaluateConfig:
    """`base` with the images, budgets and baselines that the gate decides on, and no others: attacks cost minutes."""
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
    """Whether the candidate becomes champion. A name is needed where a result holds several purifiers.

    Every classifier of the candidate's result must agree. Raises ConfigError where the results cannot be compared:
    `test` images, other images, classifiers or attacks, or budgets that were not measured.
    """
    name = _purifier(candidate, candidate_name)
    _comparable(candidate, champion)
    checks = [_reliable(candidate, name)]
    figures: dict[str, float] = {}
    for classifier in candidate.values["classifiers"]:
        checks.append(_clean(candidate, name, classifier, config, figures))
        if champion is None:
            checks += _over_baselines(candidate, name, classifier, config, figures)
        else:
            rival = _purifier(champion, champion_name)
            checks += _over_champion(candidate, name, champion, rival, classifier, config, figures)
    refused = [reason for passed, reason in checks if not passed]
    return Decision(not refused, refused or [reason for _, reason in checks], figures)


def paired(candidate: Mapping[int, bool], champion: Mapping[int, bool]) -> Paired:
    """The exact two-sided test of McNemar over images (official index -> right)."""
    from scipy.stats import binomtest

    if candidate.keys() != champion.keys() or not candidate:
        raise ConfigError("the two evaluations cover different images: evaluate both on the same list")
    won = sum(right and not champion[index] for index, right in candidate.items())
    lost = sum(right and not candidate[index] for index, right in champion.items())
    p_value = float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    return Paired(won, lost, p_value)


_Check = tuple[bool, str]


def _purifier(result: Result, name: str | None) -> str:
    purifiers = [each for each in result.values["purifiers"] if each not in result.values["baselines"]]
    if name is not None:
        if name not in result.values["purifiers"]:
            raise ConfigError(f"{result.folder} holds no purifier {name!r}: {nearest(name, purifiers)}")
        return name
    if len(purifiers) != 1:
        raise ConfigError(f"{result.folder} holds {len(purifiers)} purifiers: say which one the gate decides on")
    return str(purifiers[0])


def _comparable(candidate: Result, champion: Result | None) -> None:
    if candidate.values["split"] != "dev":
        raise ConfigError(
            f"the gate decides on dev images, {candidate.folder} is of {candidate.values['split']}:"
            " figures on test are for reporting, once"
        )
    if champion is None:
        return
    for key in ("image_list_sha256", "classifiers", "seed", "preset"):
        if candidate.values[key] != champion.values[key]:
            raise ConfigError(f"{candidate.folder} and {champion.folder} differ in {key}: evaluate both alike")


def _reliable(result: Result, name: str) -> _Check:
    reasons = result.unreliable.get(name, [])
    if reasons:
        return False, f"unreliable: {reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
    return True, "every sanity check held"


def _clean(result: Result, name: str, classifier: str, config: GateConfig, figures: dict[str, float]) -> _Check:
    clean = result.figure(name, classifier, "clean").accuracy
    figures[f"{classifier}.clean_accuracy"] = clean
    passed = clean >= config.clean_floor
    word = "at least" if passed else "below"
    return passed, f"{classifier}: clean accuracy {clean:.1%} is {word} the floor of {config.clean_floor:.1%}"


def _measured(result: Result, name: str, classifier: str, threat: str, eps: float) -> Figure:
    try:
        return result.figure(name, classifier, threat, eps)
    except KeyError:
        raise ConfigError(
            f"{result.folder} has no {threat} figure of {name} on {classifier} at {eps_label(eps)}:"
            " evaluate with the gate's budgets"
        ) from None


def _over_baselines(
    result: Result, name: str, classifier: str, config: GateConfig, figures: dict[str, float]
) -> list[_Check]:
    checks = []
    eps, rows = config.oblivious_eps, result.rows()
    own = _measured(result, name, classifier, "oblivious", eps)
    figures[f"{classifier}.oblivious_accuracy"] = own.accuracy
    for baseline in config.over_baselines:
        other = _measured(result, baseline, classifier, "oblivious", eps)
        test = paired(
            summary.outcomes(rows, name, classifier, "oblivious", eps),
            summary.outcomes(rows, baseline, classifier, "oblivious", eps),
        )
        passed = test.won > test.lost and test.p_value < config.alpha
        word = "above" if passed else "not above"
        line = f"{classifier}: oblivious worst case {own.accuracy:.1%} is {word} {baseline}'s {other.accuracy:.1%}"
        checks.append((passed, f"{line} (p = {test.p_value:.3g})"))
    return checks


def _over_champion(
    candidate: Result,
    name: str,
    champion: Result,
    rival: str,
    classifier: str,
    config: GateConfig,
    figures: dict[str, float],
) -> list[_Check]:
    checks = []
    ours, theirs = candidate.rows(), champion.rows()
    budgets = [("oblivious", config.oblivious_eps), *(("adaptive", eps) for eps in config.adaptive_eps)]
    for threat, eps in budgets:
        own = _measured(candidate, name, classifier, threat, eps)
        other = _measured(champion, rival, classifier, threat, eps)
        test = paired(
            summary.outcomes(ours, name, classifier, threat, eps),
            summary.outcomes(theirs, rival, classifier, threat, eps),
        )
        if threat == "oblivious":
            passed = test.won > test.lost and test.p_value < config.alpha
            word = "above" if passed else "not above"
            key = "oblivious"
        else:
            behind = other.accuracy - own.accuracy
            passed = behind <= config.adaptive_margin and not (behind > 0 and test.p_value < config.alpha)
            word = "not worse than" if passed else "worse than"
            key = f"adaptive_{eps_label(eps)}"
        figures[f"{classifier}.{key}_accuracy"] = own.accuracy
        figures[f"{classifier}.{key}_p_value"] = test.p_value
        line = f"{classifier}: {threat} worst case at {eps_label(eps)}, {own.accuracy:.1%}, is {word} the champion's"
        checks.append((passed, f"{line} {other.accuracy:.1%} (p = {test.p_value:.3g})"))
    return checks
