"""The presets as data: the attacks of each column for each kind of defence; and each attack runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maep import artifact
from maep.evaluate.config import EvaluateConfig, Threat
from maep.evaluate.protocol.presets import Column, Traits, columns
from maep.evaluate.protocol.run import evaluate
from maep.evaluate.results.summary import CURVES, THREATS

PURIFIER = Traits("mine", baseline=False, differentiable=True, randomised=False)
RANDOM = Traits("drawn", baseline=False, differentiable=True, randomised=True)
JPEG = Traits("jpeg-q50", baseline=True, differentiable=False, randomised=False)
OTHER = Traits("conv", baseline=False, differentiable=True, randomised=False)
STANDARD = EvaluateConfig(preset="standard", classifiers=("a", "b"), num_adaptive=256)


def of(threat: Threat, defence: Traits, config: EvaluateConfig = STANDARD) -> list[Column]:
    others = [each for each in (PURIFIER, OTHER, JPEG) if each is not defence]
    return [column for column in columns(config, defence, "a", others, 1000) if column.threat == threat]


def names(column: Column) -> list[str]:
    return [attack.config.label for attack in column.attacks]


def test_quick_is_oblivious_and_adaptive_only() -> None:
    quick = EvaluateConfig()
    found = columns(quick, PURIFIER, "a", [OTHER], 1000)
    assert [column.threat for column in found] == ["clean", "oblivious", "adaptive", "adaptive"]
    assert names(found[1]) == ["FGSM", "PGD-20", "APGD-CE-20"]
    assert names(found[2]) == ["PGD-20", "APGD-CE-50"]


def test_standard_has_autoattack_through_the_purifier() -> None:
    (clean,) = of("clean", PURIFIER)
    (oblivious,) = of("oblivious", PURIFIER)
    assert clean.num_images == oblivious.num_images == 1000
    assert names(oblivious) == ["FGSM", "PGD-20", "APGD-CE-20", "PGD-100", "CW-PGD-40", "APGD-T-20x3"]
    assert all(attack.source is not None and attack.source.purifier is None for attack in oblivious.attacks)
    headline = [column for column in of("adaptive", PURIFIER) if column.eps in STANDARD.eps]
    assert [names(column) for column in headline] == [
        ["PGD-100", "APGD-CE-100", "APGD-T-100x9", "FAB-T-100x9", "Square-5000"]
    ] * 2
    assert {column.eps for column in of("adaptive", PURIFIER)} == {*STANDARD.eps, *STANDARD.curve_eps}
    assert all(column.num_images == 256 for column in of("adaptive", PURIFIER) + of("black-box", PURIFIER))


def test_randomised_purifier_gets_eot_and_fixed_masks() -> None:
    headline = next(column for column in of("adaptive", RANDOM) if column.eps == 8 / 255)
    assert names(headline) == ["PGD-200", "APGD-CE-100", "APGD-DLR-100"]
    assert headline.eot == 20
    assert [column.eot for column in of("adaptive-eot", RANDOM)] == [1, 5, 20, 50]
    assert of("fixed-mask", RANDOM)
    assert not of("fixed-mask", PURIFIER)
    assert not of("adaptive-eot", PURIFIER)


def test_defence_without_gradient_is_never_adaptive() -> None:
    assert not of("adaptive", JPEG)
    assert [names(column) for column in of("bpda", JPEG)] == [["PGD-20", "APGD-CE-50"]] * 2
    assert of("black-box", JPEG, replace(STANDARD, preset="full"))
    assert of("bpda", PURIFIER), "an extra beside its own gradient"


def test_transfer_comes_from_other_purifiers_and_other_classifiers() -> None:
    (column,) = of("transfer", PURIFIER)
    sources = {(attack.source.purifier, attack.source.classifier) for attack in column.attacks if attack.source}
    assert sources == {("conv", "a"), ("mine", "b")}
    assert {attack.label({"a": "A", "b": "B"}) for attack in column.attacks} == {
        "PGD-20 from conv before A",
        "PGD-20 from mine before B",
    }
    assert not of("transfer", JPEG)


def test_full_adds_norms_seeds_and_hard_label() -> None:
    full = replace(STANDARD, preset="full")
    norms = {column.norm for column in of("adaptive", PURIFIER, full)}
    assert norms == {"Linf", "L2", "L1", "spatial", "patch"}
    asked = of("black-box", PURIFIER, full)[0]
    assert names(asked) == ["Square-5000", "hard label-2000", "Noise-50"]
    strongest = next(c for c in of("adaptive", PURIFIER, full) if c.eps == 8 / 255 and c.norm == "Linf")
    assert {attack.seed for attack in strongest.attacks} == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("preset", ["standard", "full"])
def test_every_attack_of_a_preset_runs(
    small: EvaluateConfig, purifier: artifact.Artifact, tmp_path: Path, preset: str
) -> None:
    few = replace(small, preset=preset, num_images=8, shard_size=8, num_probes=4, baselines=("none", "jpeg-q50"))
    found = evaluate(few, {"conv": purifier, "twin": purifier}, tmp_path / "out")
    table = found.rows().to_pandas()
    assert set(table["threat"]) == set(THREATS) - {"fixed-mask", "adaptive-eot"}
    linf = table[table["norm"] == "Linf"]
    assert (linf["change"] <= linf["eps"] + 1e-6).all()
    assert {f.norm for f in found.figures} == {"Linf", "L2", "L1", "spatial", "patch"} or preset == "standard"
    assert not [f for f in found.figures if f.threat in CURVES and f.attack == "worst case"]
    by_eps = {
        f.eps: f.accuracy for f in found.figures if (f.purifier, f.threat, f.norm) == ("conv", "adaptive", "Linf")
    }
    assert len(by_eps) == len(set(few.eps) | set(few.curve_eps))
