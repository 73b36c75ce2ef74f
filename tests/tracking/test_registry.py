from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maep import artifact
from maep.errors import ArtifactError, ConfigError
from maep.tracking import registry
from maep.tracking.resolve import resolve
from maep.tracking.runs import TrackingConfig, open_run

Make = Callable[..., artifact.Artifact]


def test_versions_record_figures_sha256_and_run(tracking: TrackingConfig, make_artifact: Make) -> None:
    with open_run(tracking, "a", "k", {}) as run:
        pass
    first, second = make_artifact(1, "one"), make_artifact(2, "two")
    assert registry.register(tracking, first, run.run_id, {"clean_accuracy": 0.9, "oblivious": {"worst": 0.6}}) == 1
    assert registry.register(tracking, second) == 2
    version = registry.by_version(tracking, 1)
    assert (version.version, version.sha256, version.run_id) == (1, first.sha256, run.run_id)
    assert version.tags["evaluation.clean_accuracy"] == "0.9"
    assert version.tags["evaluation.oblivious.worst"] == "0.6"
    assert [found.version for found in registry.versions(tracking)] == [1, 2]


def test_an_artifact_is_registered_once(tracking: TrackingConfig, make_artifact: Make) -> None:
    assert registry.register(tracking, make_artifact(1)) == 1
    assert registry.register(tracking, make_artifact(1), evaluation={"clean_accuracy": 0.8}) == 1
    assert registry.by_version(tracking, 1).tags["evaluation.clean_accuracy"] == "0.8"


def test_aliases_move_and_record_the_previous_version(tracking: TrackingConfig, make_artifact: Make) -> None:
    assert registry.by_alias(tracking, "champion") is None
    for value in (1, 2):
        registry.register(tracking, make_artifact(value))
    registry.set_alias(tracking, "candidate", 2)
    registry.set_alias(tracking, "champion", 1)
    registry.set_alias(tracking, "champion", 2)
    champion = registry.by_alias(tracking, "champion")
    assert champion is not None
    assert champion.version == 2
    assert champion.tags["champion.previous"] == "1"
    assert registry.aliases(tracking) == {"candidate": 2, "champion": 2}


def test_a_version_does_not_depend_on_its_original_folder(tracking: TrackingConfig, make_artifact: Make) -> None:
    made = make_artifact(1)
    registry.set_alias(tracking, "champion", registry.register(tracking, made))
    shutil.rmtree(made.folder)
    for uri in ("models:/purifier@champion", "models:/purifier/1"):
        assert resolve(uri, tracking).sha256 == made.sha256


@pytest.mark.parametrize("wholly", [False, True], ids=["one file", "a valid other artifact"])
def test_a_version_whose_bytes_changed_is_refused(tracking: TrackingConfig, make_artifact: Make, wholly: bool) -> None:
    registry.register(tracking, make_artifact(1))
    stored = Path(registry.by_version(tracking, 1).uri)
    if wholly:
        artifact.upload(make_artifact(2), str(stored))
    else:
        (stored / artifact.CARD).write_text("Another card.\n")
    with pytest.raises(ArtifactError, match=stored.name):
        resolve("models:/purifier/1", tracking)


def test_unknown_versions_and_aliases_name_the_existing_ones(tracking: TrackingConfig, make_artifact: Make) -> None:
    with pytest.raises(ArtifactError, match="models:/purifier/1"):
        resolve("models:/purifier/1", tracking)
    registry.set_alias(tracking, "champion", registry.register(tracking, make_artifact(1)))
    with pytest.raises(ArtifactError, match="/7"):
        registry.set_alias(tracking, "champion", 7)
    with pytest.raises(ArtifactError, match="'champion'"):
        resolve("models:/purifier@champoin", tracking)
    with pytest.raises(ArtifactError, match="'purifier'"):
        resolve("models:/purifer/1", tracking)
    with pytest.raises(ConfigError, match="models:/purifier"):
        resolve("models:/purifier", tracking)


def test_the_registry_needs_tracking(make_artifact: Make) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.enabled"):
        registry.register(TrackingConfig(enabled=False), make_artifact(1))
