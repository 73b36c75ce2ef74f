from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maep import artifact
from maep.errors import ArtifactError, ConfigError, UnavailableError
from maep.tracking import client as mlflow_client
from maep.tracking import resolve as resolving
from maep.tracking.checkpoints import checkpoints
from maep.tracking.purifier_ref import PurifierRef
from maep.tracking.resolve import resolve
from maep.tracking.runs import TrackingConfig, open_run

Make = Callable[..., artifact.Artifact]


def test_a_local_folder_is_read_in_place(make_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_artifact(1)
    monkeypatch.chdir(made.folder.parent)
    for uri in (str(made.folder), made.folder.name, f"./{made.folder.name}", made.folder.as_uri()):
        found = resolve(uri)
        assert found.sha256 == made.sha256
        assert found.folder.resolve() == made.folder.resolve()


def test_a_run_resolves_to_its_last_checkpoint_or_a_named_folder(tracking: TrackingConfig, make_artifact: Make) -> None:
    early, late = make_artifact(1, "early"), make_artifact(2, "late")
    with open_run(tracking, "a", "k", {}) as run:
        run.log_checkpoint(early, 9000)
        run.log_checkpoint(late, 10000)
    assert resolve(f"runs:/{run.run_id}", tracking).sha256 == late.sha256
    assert resolve(f"runs:/{run.run_id}/checkpoints/9000", tracking).sha256 == early.sha256
    with pytest.raises(ArtifactError, match=r"MANIFEST\.json"):
        resolve(f"runs:/{run.run_id}/checkpoints/9", tracking)


@pytest.mark.parametrize("form", ["runs:/{}", "runs:/{}/checkpoints/10"])
def test_a_replaced_checkpoint_is_refused(tracking: TrackingConfig, make_artifact: Make, form: str) -> None:
    with open_run(tracking, "a", "k", {}) as run:
        run.log_checkpoint(make_artifact(1), 10)
    (recorded,) = checkpoints(mlflow_client.connect(tracking).get_run(run.run_id).data.tags)
    artifact.upload(make_artifact(2), recorded.uri)  # a valid artifact, but not what the run recorded
    with pytest.raises(ArtifactError, match="sha256"):
        resolve(form.format(run.run_id), tracking)


def test_a_truncated_checkpoint_is_refused(tracking: TrackingConfig, make_artifact: Make) -> None:
    with open_run(tracking, "a", "k", {}) as run:
        run.log_checkpoint(make_artifact(1), 10)
    (recorded,) = checkpoints(mlflow_client.connect(tracking).get_run(run.run_id).data.tags)
    weights = Path(recorded.uri) / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="truncated"):
        resolve(f"runs:/{run.run_id}", tracking)


def test_runs_without_checkpoints_and_missing_runs(tracking: TrackingConfig) -> None:
    with open_run(tracking, "a", "k", {}) as run:
        pass
    with pytest.raises(ArtifactError, match=run.run_id):
        resolve(f"runs:/{run.run_id}", tracking)
    with pytest.raises(ArtifactError, match="0123456789abcdef"):
        resolve("runs:/0123456789abcdef0123456789abcdef", tracking)


def test_looking_up_creates_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError, match=r"--tracking\.uri"):
        resolve("models:/purifier@champion")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["gs://bucket/key", "https://me:secret@host/x", "model:/purifier/1", "models:/purifier"]
)
def test_a_malformed_uri_is_refused_in_one_line_without_its_secrets(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PurifierRef.parse(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["no/such/folder", "bundled:nothing-of-this-name"])
def test_a_purifier_that_does_not_exist_is_named(uri: str) -> None:
    with pytest.raises(ArtifactError, match=uri):
        resolve(uri)


def test_each_form_of_uri_is_parsed_into_its_parts() -> None:
    parse = PurifierRef.parse
    assert parse("bundled:cifar10").name == "cifar10"
    assert (parse("models:/a b/3").name, parse("models:/a b/3").version) == ("a b", 3)
    assert parse("models:/purifier@champion").alias == "champion"
    assert parse("models:/purifier@champion").at_version(2) == parse("models:/purifier/2")
    assert (parse("runs:/0123/checkpoints/9").name, parse("runs:/0123/checkpoints/9").path) == ("0123", "checkpoints/9")
    assert parse("s3://bucket/key").scheme == "s3"
    assert parse("file:///data/a%20b").name == "/data/a b"
    assert parse("outputs/model").scheme == "folder"


def test_a_pinned_reference_accepts_no_other_artifact(make_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_artifact(1)
    monkeypatch.chdir(made.folder.parent)
    pinned = PurifierRef.parse(made.folder.name).pinned(made)
    monkeypatch.chdir("/")  # a replica works elsewhere
    assert resolve(pinned) == made
    other = make_artifact(2, "other")
    artifact.upload(other, str(made.folder))
    with pytest.raises(ArtifactError, match=other.sha256[:12]):
        resolve(pinned)


def test_bundled_purifiers_by_name(make_artifact: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_artifact(1, "package/bundled/cifar10")
    monkeypatch.setattr(resolving.resources, "files", lambda package: tmp_path / "package")
    assert resolve("bundled:cifar10").sha256 == made.sha256
    with pytest.raises(ArtifactError, match="'cifar10'"):
        resolve("bundled:cifar100")


def test_a_damaged_cache_entry_is_fetched_again(make_artifact: Make) -> None:
    made = make_artifact(1)
    fetched: list[Path] = []

    def fetch(folder: Path) -> None:
        fetched.append(folder)
        artifact.download(str(made.folder), folder)

    kept = resolving._cached(made.sha256, "x", fetch)
    assert resolving._cached(made.sha256, "x", fetch) == kept
    assert len(fetched) == 1
    (kept.folder / artifact.CARD).write_text("spoilt")
    assert resolving._cached(made.sha256, "x", fetch).sha256 == made.sha256
    assert len(fetched) == 2
    assert sorted(entry.name for entry in resolving.cache_folder().iterdir()) == [made.sha256]


def test_a_download_must_have_the_recorded_sha256(make_artifact: Make) -> None:
    made, recorded = make_artifact(1, "one"), make_artifact(2, "two")
    with pytest.raises(ArtifactError, match="sha256"):
        resolving._cached(recorded.sha256, "x", lambda folder: artifact.download(str(made.folder), folder))
    assert list(resolving.cache_folder().iterdir()) == []
