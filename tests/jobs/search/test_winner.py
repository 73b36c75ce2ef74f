"""From a finished search to the alias champion: a real evaluation of a few digits by the real gate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gates import small_gate
from searches import grid, settings, trial, write

from maep import artifact, config
from maep.artifact import Artifact
from maep.errors import ConfigError
from maep.evaluate.report.report import REPORT
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import aliases, by_version
from maep.tune import results
from maep.tune.record import TrialRecord
from maep.tune.results import SearchResult
from maep_jobs.pipeline.config import PromoteConfig
from maep_jobs.search.winner import gate_classifiers, gate_settings, promote_winner

TRACKING = TrackingConfig()
Make = Callable[[int], Artifact]


@pytest.fixture
def gate(classifier: Path, tmp_path: Path) -> PromoteConfig:
    """20 dev images, and a floor that anything reaches."""
    values = small_gate(classifier, tmp_path / "cache")
    return config.build(PromoteConfig, values)


def searched(output: Path, make_purifier: Make) -> SearchResult:
    """A search of two trials that both kept their purifiers; the second is the better one."""
    made: list[TrialRecord] = []
    for number, share in enumerate((0.3, 0.4)):
        purifier = make_purifier(number)
        place = f"trials/{number:03d}-test/model"
        artifact.write(output / place, "purifier", purifier.config, purifier.weights(), "# A trial's\n")
        each = trial(number, {"mask_ratio": 0.25, "patch_size": 2 + 2 * number}, share)
        made.append(dataclasses.replace(each, artifact=place))
    return results.read(write(output, made))


@pytest.mark.usefixtures("store")
def test_best_trial_becomes_champion_with_its_search_recorded(
    maep: Any, gate: PromoteConfig, make_purifier: Make, tmp_path: Path
) -> None:
    del maep  # the working directory is its own
    result = searched(tmp_path / "search", make_purifier)
    done = promote_winner(result, gate, TRACKING, command="maep tune --promote")
    assert done.trial_id == "001-test"
    assert done.verdict.champion
    assert aliases(TRACKING) == {"candidate": 1, "champion": 1}
    version = by_version(TRACKING, 1)
    assert version.sha256 == artifact.read(result.folder / "trials/001-test/model").sha256
    assert version.tags["evaluation.search.trial_id"] == "001-test"
    assert version.tags["evaluation.gate.passed"] == "True"
    assert done.report is not None
    assert done.report.name == REPORT
    assert result.folder in done.report.parents
    assert json.loads(json.dumps(done.values))["champion"] is True
    assert done.lines[0] == "trial 001-test, purifier version 1: champion"

    again = promote_winner(result, gate, TRACKING)
    assert again.verdict.champion
    assert again.verdict.version == done.verdict.version

    strict = dataclasses.replace(gate, gate=dataclasses.replace(gate.gate, over_baselines=("none",)))
    worse = dataclasses.replace(result, trials=result.trials[:1])
    refused = promote_winner(worse, strict, TRACKING)  # the champion's own 20 images: not above it
    assert not refused.verdict.champion
    assert aliases(TRACKING) == {"candidate": 2, "champion": 1}
    assert refused.lines[0].endswith("refused")
    forced = promote_winner(worse, strict, TRACKING, force=True)
    assert forced.verdict.champion
    assert aliases(TRACKING) == {"candidate": 2, "champion": 2}


def test_without_a_best_trial_nothing_is_registered(gate: PromoteConfig, tmp_path: Path) -> None:
    result = results.read(write(tmp_path, grid()[-1:]))
    with pytest.raises(ConfigError, match="adaptive_accuracy"):
        promote_winner(result, gate, TRACKING)
    assert not (tmp_path / "promote").exists()


def test_gate_prefers_classifiers_that_no_trial_trained_with(tmp_path: Path) -> None:
    trained = {"seen": tmp_path / "seen", "unseen": tmp_path / "unseen"}
    asked = settings(finetune={**yaml.safe_load(config.to_yaml(settings()))["finetune"], "classifiers": ["seen"]})
    result = results.read(write(tmp_path, grid(), asked))
    named = config.build(PromoteConfig, {"evaluate": {"classifiers": ["elsewhere"]}})
    assert gate_classifiers(result, named, {}) == ("elsewhere",)
    assert gate_classifiers(result, named, trained) == (str(trained["unseen"]),)
    own = config.build(PromoteConfig, {"evaluate": {"classifiers": ["seen"]}})
    assert gate_classifiers(result, own, trained) == (str(trained["seen"]),)
    only = {"seen": trained["seen"]}
    assert gate_classifiers(result, named, only) == (str(trained["seen"]),)


def test_every_data_set_has_a_gate_and_unknown_names_are_refused() -> None:
    assert gate_settings("", "cifar10", TRACKING).gate.images == "cifar10-dev-500"
    assert gate_settings("", "digits", TRACKING).gate.images == "digits-dev"
    assert gate_settings("cifar10/promote", "digits", TRACKING).gate.images == "cifar10-dev-500"
    with pytest.raises(ConfigError, match="--promote 'digits/promot'"):
        gate_settings("digits/promot", "digits", TRACKING)
    with pytest.raises(ConfigError, match=r"tracking\.enabled"):
        gate_settings("", "digits", TrackingConfig(enabled=False))
