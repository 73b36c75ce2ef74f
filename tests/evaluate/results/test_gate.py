"""The gate: decisions on hand-written outcomes per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from maep import config
from maep.errors import ConfigError
from maep.evaluate.config import EvaluateConfig, GateConfig
from maep.evaluate.results import gate, rows, summary
from maep.evaluate.results.paired import mcnemar
from maep.evaluate.results.summary import Result

NUM = 200
CONFIG = GateConfig(adaptive_eps=(2 / 255,), over_baselines=("none",))
GOOD = {"clean": 180, "oblivious": 120, "adaptive": 20}


def outcome(folder: Path, counts: Mapping[str, Mapping[str, int]], failed: str | None = None, **changes: Any) -> Result:
    """A result in which the first COUNT of 200 images are right, by purifier and threat model."""
    tables = []
    budgets = {"clean": 0.0, "oblivious": 8 / 255, "adaptive": 2 / 255}
    for name, by_threat in counts.items():
        for threat, right in by_threat.items():
            constants = {
                "dataset": "digits",
                "split": "dev",
                "image_list": "digits-dev",
                "purifier": name,
                "purifier_sha256": name,
                "classifier": "c",
                "classifier_sha256": "c",
                "threat": threat,
                "norm": "Linf",
                "attack": "clean" if threat == "clean" else "PGD-20",
                "eps": budgets[threat],
                "steps": 20,
                "eot": 1,
                "seed": 0,
                "loss": 0.0,
                "change": 0.0,
                "num_draws": 1,
                "inherited": False,
                "label": 0,
            }
            correct = np.arange(NUM) < right
            columns = {
                "index": np.arange(NUM),
                "prediction": (~correct).astype(int),
                "correct": correct,
                "num_right": correct.astype(int),
            }
            tables.append(rows.make(constants, columns))
    values = {
        "split": "dev",
        "image_list_sha256": "list",
        "classifiers": {"c": "c"},
        "seed": 0,
        "preset": "quick",
        "norm": "Linf",
        "purifiers": {name: name for name in counts},
        "baselines": ["none"],
        **changes,
    }
    check = {"name": "gradients", "passed": failed is None, "detail": "9 zero"}
    sanity = [{"purifier": failed or next(iter(counts)), "classifier": "c", "checks": [check]}]
    return summary.write(folder, rows.pa.concat_tables(tables), values, sanity)


def test_first_champion(tmp_path: Path) -> None:
    none = {"clean": 190, "oblivious": 0, "adaptive": 0}
    good = outcome(tmp_path / "good", {"none": none, "mine": GOOD})
    decision = gate.decide(good, None, CONFIG)
    assert decision.passed
    assert decision.figures["c.clean_accuracy"] == 0.9
    low = gate.decide(outcome(tmp_path / "low", {"none": none, "mine": {**GOOD, "clean": 160}}), None, CONFIG)
    assert not low.passed
    assert len(low.reasons) == 1
    assert "80.0%" in low.reasons[0]
    assert "85.0%" in low.reasons[0]
    weak = gate.decide(outcome(tmp_path / "weak", {"none": none, "mine": {**GOOD, "oblivious": 0}}), None, CONFIG)
    assert not weak.passed
    assert "p = 1)" in weak.reasons[0]
    few = gate.decide(outcome(tmp_path / "few", {"none": none, "mine": {**GOOD, "oblivious": 5}}), None, CONFIG)
    assert not few.passed  # chance may explain it
    assert "p = 0.0625)" in few.reasons[0]


def test_unreliable_candidate_is_refused(tmp_path: Path) -> None:
    none = {"clean": 190, "oblivious": 0, "adaptive": 0}
    decision = gate.decide(outcome(tmp_path / "r", {"none": none, "mine": GOOD}, failed="mine"), None, CONFIG)
    assert not decision.passed
    assert len(decision.reasons) == 1
    assert "gradients (c): 9 zero" in decision.reasons[0]
    other = gate.decide(outcome(tmp_path / "other", {"none": none, "mine": GOOD}, failed="none"), None, CONFIG)
    assert other.passed


@pytest.mark.parametrize(
    ("candidate", "passed", "reason"),
    [
        ({**GOOD, "oblivious": 130}, True, "(p = 0.00195)"),
        ({**GOOD, "oblivious": 125}, False, "(p = 0.0625)"),
        ({**GOOD, "oblivious": 100}, False, "50.0%"),
        ({**GOOD, "oblivious": 140, "adaptive": 18}, True, "(p = 0.5)"),
        ({**GOOD, "oblivious": 140, "adaptive": 15}, False, "(p = 0.0625)"),
        ({**GOOD, "oblivious": 140, "adaptive": 10}, False, "(p = 0.00195)"),
        ({**GOOD, "oblivious": 140, "clean": 169}, False, "84.5%"),
    ],
)
def test_candidate_against_a_champion(tmp_path: Path, candidate: dict[str, int], passed: bool, reason: str) -> None:
    champion = outcome(tmp_path / "champion", {"theirs": GOOD})
    decision = gate.decide(outcome(tmp_path / "candidate", {"mine": candidate}), champion, CONFIG)
    assert decision.passed == passed
    assert any(reason in line for line in decision.reasons)
    assert passed or len(decision.reasons) == 1


def test_paired_test_matches_mcnemar() -> None:
    candidate = {index: index % 2 == 0 for index in range(20)}
    champion = {index: index % 3 == 0 for index in range(20)}
    test = mcnemar(candidate, champion)
    assert (test.won, test.lost) == (6, 3)
    assert test.p_value == pytest.approx(binomtest(6, 9, 0.5).pvalue)
    assert mcnemar(champion, champion).p_value == 1.0


def test_incomparable_results_are_refused(tmp_path: Path) -> None:
    mine = outcome(tmp_path / "mine", {"mine": GOOD})
    with pytest.raises(ConfigError, match="test"):
        gate.decide(outcome(tmp_path / "test", {"mine": GOOD}, split="test"), None, CONFIG)
    with pytest.raises(ConfigError, match="image_list_sha256"):
        gate.decide(mine, outcome(tmp_path / "list", {"theirs": GOOD}, image_list_sha256="other"), CONFIG)
    with pytest.raises(ConfigError, match=r"adaptive.* mine .*4/255"):
        gate.decide(mine, mine, replace(CONFIG, adaptive_eps=(4 / 255,)))
    with pytest.raises(ConfigError, match="2 purifiers"):
        gate.decide(outcome(tmp_path / "two", {"a": GOOD, "b": GOOD}), None, CONFIG)


def test_gate_sets_images_budgets_and_baselines() -> None:
    chosen = gate.evaluation(GateConfig(), EvaluateConfig(baselines=("blur",), num_adaptive=10, num_images=7))
    assert chosen.images == "cifar10-dev-500"
    assert chosen.eps == (1 / 255, 2 / 255, 4 / 255)
    assert chosen.baselines == ("none", "jpeg-q50")
    assert (chosen.num_adaptive, chosen.num_images) == (None, None)
    with pytest.raises(ConfigError, match="clean_floor"):
        config.build(GateConfig, {"clean_floor": 85})
    with pytest.raises(ConfigError, match="oblivious_eps"):
        config.build(GateConfig, {"oblivious_eps": 8})
    with pytest.raises(ConfigError, match="over_baselines"):
        config.build(GateConfig, {"over_baselines": ["jpeg"]})
