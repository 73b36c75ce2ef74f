"""The presets: which attacks make which columns of the table, for one defence and classifier.

`quick` is for every candidate, `standard` for reported figures; `full` adds other norms and geometric attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep.attacks.config import AttackConfig
from maep.evaluate.config import EvaluateConfig, Threat
from maep.evaluate.measure import CASCADES

CURVE_STEPS = (1, 5, 20, 50, 100)
CURVE_EOT = (1, 5, 20, 50)
L2_EPS, L1_EPS, SHIFT, PATCH_SIDE = 0.5, 12.0, 0.1, 0.2
"""Usual budgets of the other norms at 32 x 32: L2 of RobustBench; L1 of Croce and Hein 2021; Engstrom et al.'s shift of
a tenth of the side, with 30 degrees of rotation; a patch of a fifth of the side."""


@dataclass(frozen=True)
class Source:
    """The attacked model of a kept set of images; purifier None: the bare classifier.

    With `surrogate`, it is that one of the purifier's (`Context.surrogates`) instead of the purifier.
    """

    purifier: str | None
    classifier: str
    surrogate: int | None = None


@dataclass(frozen=True)
class ScheduledAttack:
    """One attack of a column, on the defended model itself or, with `source`, on another model.

    `seed` is added to that of the evaluation.
    """

    config: AttackConfig
    source: Source | None = None
    seed: int = 0

    @property
    def num_passes(self) -> int:
        """Forward passes per image."""
        return self.config.effort * self.config.num_targets

    def label(self, names: dict[str, str]) -> str:
        """The attack's name in tables: PGD-20, PGD-20 from conv; `names` are the classifiers' names by spec."""
        text = self.config.label
        if self.source is not None and self.source.purifier is not None:
            if self.source.surrogate is None:
                text += f" from {self.source.purifier} before {names[self.source.classifier]}"
            else:
                text += f" on surrogate {self.source.surrogate + 1}"
        return text + (f" seed {self.seed}" if self.seed else "")


@dataclass(frozen=True)
class Column:
    """One column of a table: a threat model at one budget, and the attacks that make it."""

    threat: Threat
    attacks: tuple[ScheduledAttack, ...] = ()
    eps: float = 0.0
    norm: str = "Linf"
    num_images: int = 0
    eot: int = 1

    @property
    def cascade(self) -> bool:
        """Whether each attack takes only the images that are right after those before it (deterministic models)."""
        return self.threat in CASCADES


@dataclass(frozen=True)
class Traits:
    """Properties of a defence that decide its attacks."""

    name: str
    baseline: bool
    differentiable: bool
    randomised: bool
    surrogates: int = 0
    """How many models an attacker differentiates instead of the whole."""


def oblivious_attacks(config: EvaluateConfig) -> tuple[AttackConfig, ...]:
    """Attacks on the bare classifier; the oblivious figure is the worst case over them."""
    eps = config.oblivious_eps
    few = AttackConfig("fgsm", eps, 1), AttackConfig("pgd", eps, 20), AttackConfig("apgd-ce", eps, 20)
    if config.preset == "quick":
        return few
    targets = 9 if config.preset == "full" else 3
    more = (
        AttackConfig("pgd", eps, 100),
        AttackConfig("pgd-cw", eps, 40),
        AttackConfig("apgd-t", eps, 20, targets=targets),
    )
    return few + more


def autoattack(eps: float, norm: str, randomised: bool) -> tuple[AttackConfig, ...]:
    """AutoAttack's attacks (Croce and Hein 2020): `standard`, or `rand` for a randomised model."""
    if randomised:
        return AttackConfig("apgd-ce", eps, 100, norm=norm), AttackConfig("apgd-dlr", eps, 100, norm=norm)
    square = () if norm == "L1" else (AttackConfig("square", eps, queries=5000, norm=norm),)
    return (
        AttackConfig("apgd-ce", eps, 100, norm=norm),
        AttackConfig("apgd-t", eps, 100, norm=norm),
        AttackConfig("fab-t", eps, 100, norm=norm),
        *square,
    )


def columns(
    config: EvaluateConfig, defence: Traits, spec: str, others: Sequence[Traits], total: int
) -> tuple[Column, ...]:
    """The columns of `defence` before classifier `spec` on `total` images; `others` are the table's other defences."""
    few = min(total, config.num_adaptive or total)
    bare = tuple(ScheduledAttack(attack, Source(None, spec)) for attack in oblivious_attacks(config))
    found = [Column("clean", num_images=total), Column("oblivious", bare, config.oblivious_eps, num_images=total)]
    if config.preset != "quick":
        found += _transfer(config, defence, spec, others, few)
        found += _black_box(config, defence, few)
    through: Threat = "adaptive" if defence.differentiable else "bpda"
    eot = config.eot if defence.randomised else 1
    for eps in sorted(config.eps):
        if through == "adaptive" and not defence.baseline and config.preset != "quick":
            found.append(Column("bpda", _scheduled(_short(eps)), eps, num_images=few, eot=eot))
        attacks = _on_surrogates(config, defence, spec, eps) + _through(config, defence, eps)
        found.append(Column(through, attacks, eps, num_images=few, eot=eot))
    if config.preset != "quick" and through == "adaptive":
        curve = sorted(set(config.curve_eps) - set(config.eps))
        found += [Column("adaptive", _scheduled(_short(eps)), eps, num_images=few, eot=eot) for eps in curve]
        if not defence.baseline:
            found += _curves(config, defence, min([*config.eps, *curve]), few, eot)
    if config.preset == "full" and through == "adaptive":
        found += _other_norms(defence, few, eot)
    return tuple(found)


def _scheduled(attacks: Sequence[AttackConfig], seeds: int = 1) -> tuple[ScheduledAttack, ...]:
    return tuple(ScheduledAttack(attack, seed=seed) for seed in range(seeds) for attack in attacks)


def _short(eps: float, norm: str = "Linf") -> tuple[AttackConfig, ...]:
    return AttackConfig("pgd", eps, 20, norm=norm), AttackConfig("apgd-ce", eps, 50, norm=norm)


def _through(config: EvaluateConfig, defence: Traits, eps: float) -> tuple[ScheduledAttack, ...]:
    """The attacks of the adaptive (or BPDA) column, in the order of the cascade."""
    if config.preset == "quick" or not defence.differentiable:
        return _scheduled(_short(eps))
    pgd = AttackConfig("pgd", eps, 200 if defence.randomised else 100)
    again = tuple(ScheduledAttack(pgd, seed=seed) for seed in (1, 2)) if config.preset == "full" else ()
    return (ScheduledAttack(pgd), *_scheduled(autoattack(eps, "Linf", defence.randomised)), *again)


def _on_surrogates(config: EvaluateConfig, defence: Traits, spec: str, eps: float) -> tuple[ScheduledAttack, ...]:
    """Attacks made on each of the defence's surrogates, which are carried over to the whole."""
    steps, targets = (50, 4) if config.preset == "quick" else (100, 9)
    attacks = AttackConfig("apgd-ce", eps, steps), AttackConfig("apgd-t", eps, steps, targets=targets)
    return tuple(
        ScheduledAttack(attack, Source(defence.name, spec, surrogate))
        for surrogate in range(defence.surrogates)
        for attack in attacks
    )


def _black_box(config: EvaluateConfig, defence: Traits, count: int) -> list[Column]:
    """Query attacks on purifier and classifier; for a randomised purifier also an attacker who knows the masks.

    Baselines get these in `full` only: thousands of queries per image cost more than any other attack.
    """
    eps, many = config.oblivious_eps, config.preset == "full"
    if defence.baseline and not many:
        return []
    queries = [AttackConfig("square", eps, queries=5000 if many else 1000)]
    if many:
        queries += [AttackConfig("hard-label", eps, queries=2000), AttackConfig("noise", eps, draws=50)]
    found = [Column("black-box", _scheduled(queries), eps, num_images=count)]
    if defence.randomised:
        found.append(Column("fixed-mask", _scheduled(_short(eps)), eps, num_images=count))
    return found


def _transfer(config: EvaluateConfig, defence: Traits, spec: str, others: Sequence[Traits], count: int) -> list[Column]:
    """Images attacked through other purifiers before the same classifier, and through this one before the others."""
    if defence.baseline:
        return []
    sources = [Source(other.name, spec) for other in others if other.differentiable and not other.baseline]
    sources += [Source(defence.name, classifier) for classifier in config.classifiers if classifier != spec]
    attack = AttackConfig("pgd", config.oblivious_eps, 20)
    attacks = tuple(ScheduledAttack(attack, source) for source in sources)
    return [Column("transfer", attacks, config.oblivious_eps, num_images=count)] if attacks else []


def _curves(config: EvaluateConfig, defence: Traits, eps: float, count: int, eot: int) -> list[Column]:
    """Accuracy over steps and, if randomised, over EOT passes, at the smallest budget."""
    probes = min(count, config.num_probes)
    attacks = [AttackConfig("pgd", eps, steps) for steps in CURVE_STEPS]
    found = [Column("adaptive-steps", _scheduled(attacks), eps, num_images=probes, eot=eot)]
    if defence.randomised:
        once = _scheduled([AttackConfig("pgd", eps, 20)])
        found += [Column("adaptive-eot", once, eps, num_images=probes, eot=passes) for passes in CURVE_EOT]
    return found


def _other_norms(defence: Traits, count: int, eot: int) -> list[Column]:
    def column(norm: str, eps: float, attacks: Sequence[AttackConfig], seeds: int = 1) -> Column:
        return Column("adaptive", _scheduled(attacks, seeds), eps, norm, count, eot)

    cw = (AttackConfig("cw", L2_EPS, 100, norm="L2"),)
    return [
        column("L2", L2_EPS, (*_short(L2_EPS, "L2"), *autoattack(L2_EPS, "L2", defence.randomised), *cw)),
        column("L1", L1_EPS, (*_short(L1_EPS, "L1"), *autoattack(L1_EPS, "L1", defence.randomised))),
        column("spatial", SHIFT, [AttackConfig("spatial", SHIFT, norm="spatial")]),
        column("patch", PATCH_SIDE, [AttackConfig("patch", PATCH_SIDE, 100, norm="patch")], seeds=3),
    ]
