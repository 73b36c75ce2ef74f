"""`maep promote`, from an artifact to the alias champion, with real evaluations of a few digits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gates import small_gate

from maep import artifact
from maep.artifact import Artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import aliases, by_version, versions
from maep.tracking.resolve import resolve

TRACKING = TrackingConfig()
Make = Callable[[int], Artifact]


@pytest.fixture
def promote(maep: Any, classifier: Path, store: Path, tmp_path: Path) -> Callable[..., Any]:
    """`maep promote ARTIFACT` on 20 dev images, with a floor that every purifier reaches."""
    values = small_gate(classifier, tmp_path / "cache")
    (tmp_path / "promote.yaml").write_text(yaml.safe_dump(values))
    line = ("--config", "promote.yaml", "--output", "gate")
    return lambda purifier, *more: maep("promote", purifier.folder, *line, *more)


def test_the_first_candidate_above_the_floor_becomes_champion(promote: Callable[..., Any], make_purifier: Make) -> None:
    first = make_purifier(0)
    ran = promote(first, "--json")
    assert ran.status == 0, ran.err
    said = json.loads(ran.out)
    assert (said["version"], said["champion"]) == (1, True)
    assert aliases(TRACKING) == {"candidate": 1, "champion": 1}
    version = by_version(TRACKING, 1)
    assert version.sha256 == first.sha256
    assert (version.tags["evaluation.gate.passed"], version.tags["evaluation.gate.forced"]) == ("True", "False")

    again = promote(first)
    assert again.status == 0
    assert "version 1" in again.out
    assert len(versions(TRACKING)) == 1


def test_champions_of_two_data_sets_are_not_compared(
    promote: Callable[..., Any], make_purifier: Make, tmp_path: Path
) -> None:
    """Each data set needs its own registered model; otherwise a digits purifier could replace the CIFAR-10 champion."""
    first = make_purifier(0)
    made = [
        artifact.write(tmp_path / name, "purifier", {**first.config, "data": {"name": name}}, first.weights(), "# A\n")
        for name in ("digits", "cifar10")
    ]
    assert promote(made[0]).status == 0
    ran = promote(made[1])
    assert ran.is_mistake("tracking.model", "digits", "--tracking.model purifier-cifar10")
    assert aliases(TRACKING) == {"candidate": 1, "champion": 1}
    own = ("--tracking.model", "purifier-cifar10")
    assert promote(made[1], *own).status == 0
    assert aliases(TrackingConfig(model="purifier-cifar10")) == {"candidate": 1, "champion": 1}
    assert resolve("models:/purifier-cifar10@champion").sha256 == made[1].sha256
    assert resolve("models:/purifier@champion").sha256 == made[0].sha256


def test_a_purifier_no_better_than_no_defence_is_registered_and_refused(
    promote: Callable[..., Any], make_purifier: Make
) -> None:
    ran = promote(make_purifier(0), "--gate.over_baselines", "[none]")
    assert ran.status == 1
    assert "purifier version 1: refused" in ran.out
    assert re.search(r"oblivious .*0\.0%.*none.*0\.0%", ran.out)
    assert aliases(TRACKING) == {"candidate": 1}

    changed = promote(make_purifier(0))  # the changed gate measures anew, into a folder of its own
    assert changed.status == 0
    assert aliases(TRACKING) == {"candidate": 1, "champion": 1}


def test_a_second_candidate_must_beat_the_champion_unless_forced(
    promote: Callable[..., Any], make_purifier: Make
) -> None:
    assert promote(make_purifier(0)).status == 0
    second = make_purifier(1)
    ran = promote(second)
    assert ran.status == 1
    assert "purifier version 2: refused" in ran.out
    assert "oblivious" in ran.out
    assert aliases(TRACKING) == {"candidate": 2, "champion": 1}
    assert by_version(TRACKING, 2).tags["evaluation.gate.passed"] == "False"

    forced = promote(second, "--force")
    assert forced.status == 0
    assert "--force" in forced.out
    assert aliases(TRACKING) == {"candidate": 2, "champion": 2}
    tags = by_version(TRACKING, 2).tags
    assert (tags["evaluation.gate.forced"], tags["champion.previous"]) == ("True", "1")
