"""The files at the URI of a run are enough for a new machine to resume; here the URI is a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from train_toys import Heard, Make

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError
from maep.train.build_tasks import pretraining
from maep.train.checkpoint.history import read
from maep.train.checkpoint.mirror import Mirror, working_folder
from maep.train.checkpoint.resume import starting_point
from maep.train.checkpoint.store import Best
from maep.train.loop.callback import Callback
from maep.train.loop.run import run_from


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store" / "run"


def on(machine: Path, store: Path) -> Mirror:
    """The mirror of one machine."""
    return Mirror(str(store), machine, keep=2)


def train(settings: Any, mirror: Mirror, *callbacks: Callback) -> Artifact:
    task = pretraining(settings)
    start = starting_point(task.config, mirror.folder, mirror=mirror)
    result = run_from(start, task, mirror.folder, [mirror, *callbacks])
    mirror.finish()
    return result


def stopped(settings: Any, mirror: Mirror, after: int) -> None:
    """Trains until this many checkpoints were reported."""
    with pytest.raises(KeyboardInterrupt):
        train(settings, mirror, Heard(stop_after_checkpoints=after))


def there(store: Path) -> list[str]:
    """The checkpoints that the index names, without their digests."""
    names: list[str] = json.loads((store / "checkpoints" / "index.json").read_text())
    assert all(artifact.is_valid(store / "checkpoints" / name) for name in names)
    assert sorted(path.name for path in (store / "checkpoints").iterdir() if path.is_dir()) == sorted(names)
    return [name.partition("-")[0] for name in names]


def test_new_machine_resumes_to_identical_bits(
    pretrain: Make, unkilled_pretrain: Any, store: Path, tmp_path: Path
) -> None:
    stopped(pretrain(), on(tmp_path / "a", store), 3)
    assert there(store) == ["000000000192", "000000000288"]
    heard = Heard()
    result = train(pretrain(), on(tmp_path / "b", store), heard)
    assert heard.steps[0].samples_seen == 320
    assert result.sha256 == unkilled_pretrain[0].sha256
    assert artifact.read(store / "model").sha256 == result.sha256
    assert not (store / "checkpoints").exists()
    assert [line["event"] for line in read(store)] == ["started", "failed", "resumed", "finished"]
    again = Heard()
    assert train(pretrain(), on(tmp_path / "c", store), again).folder == tmp_path / "c" / "model"
    assert not again.steps


def test_damaged_remote_checkpoint_is_skipped(pretrain: Make, store: Path, tmp_path: Path) -> None:
    stopped(pretrain(), on(tmp_path / "a", store), 2)
    (newest,) = (store / "checkpoints").glob("000000000192-*")
    os.truncate(newest / "state" / "state.pt", 10)
    mirror = on(tmp_path / "b", store)
    with pytest.warns(UserWarning, match=r"state\.pt"):
        start = starting_point(pretraining(pretrain()).config, mirror.folder, mirror=mirror)
    assert start is not None
    assert start.state()["step"] == 3


@pytest.mark.parametrize("survives", range(8))
def test_kill_between_any_two_uploads_leaves_complete_artifacts(
    survives: int, pretrain: Make, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    first, killed = on(tmp_path / "a", store), on(tmp_path / "a", store)
    stopped(pretrain(), first, 1)
    newest = max((tmp_path / "a" / "checkpoints").glob("0*"))
    shutil.copytree(newest, tmp_path / "a" / "checkpoints" / "000000000192")  # a newer one, for all that is asked here
    saved = artifact.read(tmp_path / "a" / "checkpoints" / "000000000192")
    write, done = storage.write_bytes, []

    def until_killed(uri: Any, *rest: Any) -> None:
        if len(done) == survives:
            raise Killed
        done.append(uri)
        write(uri, *rest)

    def copy(source: Any, target: Any, names: list[str]) -> None:
        for name in names:
            until_killed(storage.join(target, name), storage.read_bytes(storage.join(source, name)))

    killed.claim()
    monkeypatch.setattr(storage, "write_bytes", until_killed)
    monkeypatch.setattr(storage, "copy_files", copy)
    whole = survives > 5  # four files, the manifest, the index
    if survives > 6:
        killed.on_checkpoint(saved, 192)
    else:
        with pytest.raises(Killed):
            killed.on_checkpoint(saved, 192)
    monkeypatch.undo()
    fresh = on(tmp_path / "b", store)
    fresh.pull()
    found = sorted(path.name for path in (tmp_path / "b" / "checkpoints").glob("0*"))
    assert found == ["000000000192" if whole else "000000000096"]


def test_newer_local_checkpoint_stays_and_is_uploaded(pretrain: Make, store: Path, tmp_path: Path) -> None:
    stopped(pretrain(), on(tmp_path / "a", store), 1)
    task = pretraining(pretrain())
    start = starting_point(task.config, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):  # to 288, without the mirror
        run_from(start, task, tmp_path / "a", [Heard(stop_after_checkpoints=2, every=144)])
    assert there(store) == ["000000000096"]
    mirror = on(tmp_path / "a", store)
    start = starting_point(task.config, mirror.folder, mirror=mirror)
    assert start is not None
    assert start.state()["step"] == 9
    assert there(store) == ["000000000096", "000000000288"]


def test_removed_remote_run_starts_from_scratch(pretrain: Make, store: Path, tmp_path: Path) -> None:
    stopped(pretrain(), on(tmp_path / "a", store), 2)
    shutil.rmtree(store)
    mirror = on(tmp_path / "a", store)
    assert starting_point(pretraining(pretrain()).config, mirror.folder, mirror=mirror) is None
    assert sorted(path.name for path in mirror.folder.iterdir()) == ["run-key"]


def test_other_configuration_is_refused_without_taking_ownership(pretrain: Make, store: Path, tmp_path: Path) -> None:
    stopped(pretrain(), on(tmp_path / "a", store), 1)
    owner = (store / "checkpoints" / "owner").read_bytes()
    mirror = on(tmp_path / "b", store)
    with pytest.raises(ArtifactError, match=r"train\.loop\.seed"):
        starting_point(pretraining(pretrain(seed=5)).config, mirror.folder, mirror=mirror)
    assert (store / "checkpoints" / "owner").read_bytes() == owner


def test_disconnected_machine_stops_writing(pretrain: Make, store: Path, tmp_path: Path) -> None:
    cut_off, goes_on = on(tmp_path / "a", store), on(tmp_path / "b", store)
    stopped(pretrain(), cut_off, 1)
    goes_on.pull()
    goes_on.claim()
    saved = artifact.read(tmp_path / "a" / "checkpoints" / "000000000096")
    goes_on.on_checkpoint(saved, 96)  # it lies there already
    (store / "checkpoints" / "index.json").write_text("[]")
    with pytest.raises(UnavailableError, match=str(store)):
        cut_off.on_checkpoint(saved, 96)


def test_other_workers_fetch_the_choice_of_rank_0(pretrain: Make, store: Path, tmp_path: Path) -> None:
    stopped(pretrain(), on(tmp_path / "a", store), 2)
    chosen = artifact.read(tmp_path / "a" / "checkpoints" / "000000000192")
    other = on(tmp_path / "b", store)
    assert other.fetch("checkpoints/000000000192", chosen.sha256).state()["step"] == 6
    lent = on(tmp_path / "a", store).lend(chosen)
    assert other.fetch(lent).sha256 == chosen.sha256


def test_best_checkpoint_is_mirrored(pretrain: Make, store: Path, tmp_path: Path) -> None:
    mirror = on(tmp_path / "a", store)
    stopped(pretrain(), mirror, 1)
    saved = artifact.read(tmp_path / "a" / "checkpoints" / "000000000096")
    Best(tmp_path / "a" / "best", "robust", "mae").offer(saved, 96, {"robust": 0.5})
    mirror.on_failure(KeyboardInterrupt())
    fresh = on(tmp_path / "b", store)
    fresh.pull()
    score = Best(tmp_path / "b" / "best", "robust", "mae").score()
    assert score is not None
    assert score.value == 0.5


def test_every_address_has_its_own_working_folder(tmp_path: Path) -> None:
    assert working_folder(tmp_path) == tmp_path
    one, two = working_folder("s3://bucket/a/run"), working_folder("s3://bucket/b/run")
    assert one == working_folder("s3://bucket/a/run/") != two
    assert one.name.startswith("run-")
    assert one.is_relative_to(os.environ["MAEP_CACHE"])
