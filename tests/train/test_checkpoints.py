from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import Heard, Make, weights

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError
from maep.train.checkpoints import Checkpoints
from maep.train.loop import run
from maep.train.phases import pretraining


def save(checkpoints: Checkpoints, samples_seen: int) -> Artifact:
    content = {"w": torch.full((3,), float(samples_seen))}
    return checkpoints.save(samples_seen, {"a": 1}, content, {"step": samples_seen, "optimizer": {}})


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_the_last_ones_are_kept_and_the_newest_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.newest() is None
    for samples_seen in (10, 20, 30):
        saved = save(checkpoints, samples_seen)
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.sha256 == saved.sha256
        assert newest.state()["step"] == samples_seen
    assert folders(tmp_path) == ["000000000020", "000000000030"]


def test_numbers_do_not_decide_which_is_newest(tmp_path: Path) -> None:
    """After a resume from an older one, the one written last is the newest; one written again stands once."""
    checkpoints = Checkpoints(tmp_path, 3)
    for samples_seen in (10, 20, 30, 20):
        save(checkpoints, samples_seen)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.folder.name == "000000000020"
    assert json.loads((tmp_path / "index.json").read_text()) == ["000000000010", "000000000030", "000000000020"]


def test_a_truncated_one_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    older, newer = save(checkpoints, 10), save(checkpoints, 20)
    os.truncate(newer.folder / "model.safetensors", 20)
    with pytest.warns(UserWarning, match="truncated; it is passed over"):
        newest = checkpoints.newest()
    assert newest is not None
    assert newest.sha256 == older.sha256
    os.truncate(older.folder / "state" / "state.pt", 0)
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoints.newest() is None


@pytest.mark.parametrize("survives", range(9))
def test_a_kill_between_any_two_writes_leaves_a_usable_state(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops after `survives` files of the second checkpoint: what is found is the first or the second, whole."""

    class Killed(BaseException):
        pass

    checkpoints = Checkpoints(tmp_path, 1)
    first = save(checkpoints, 10)
    write_bytes, written = storage.write_bytes, []

    def until_killed(*arguments: Any) -> None:
        if len(written) == survives:
            raise Killed
        written.append(arguments[0])
        write_bytes(*arguments)

    monkeypatch.setattr(storage, "write_bytes", until_killed)
    with_all = survives > 5  # four files, the manifest, the index
    if with_all:
        save(checkpoints, 20)
    else:
        with pytest.raises(Killed):
            save(checkpoints, 20)
    monkeypatch.undo()
    newest = Checkpoints(tmp_path, 1).newest()
    assert newest is not None
    assert newest.state()["step"] == (20 if with_all else 10)
    assert (newest.sha256 == first.sha256) is not with_all
    save(checkpoints, 30)
    assert folders(tmp_path)[-1] == "000000000030"


def test_the_index_names_only_what_lies_there(pretrain: Make, tmp_path: Path) -> None:
    """The index is written after the folder: whatever it names at any checkpoint verifies."""

    class Check(Heard):
        def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
            super().on_checkpoint(saved, samples_seen)
            names = json.loads((saved.folder.parent / "index.json").read_text())
            assert names[-1] == saved.folder.name
            assert len(names) <= 2
            assert all(artifact.is_valid(saved.folder.parent / name) for name in names)

    heard = Check()
    run(pretraining(pretrain(checkpoint_every=32)), tmp_path, [heard])
    assert len(heard.checkpoints) == 9


def test_checkpoints_go_once_the_result_is_there(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    assert folders(unkilled_pretrain[2]) == ["model"]

    class KilledAtTheEnd(Heard):
        def on_end(self, result: Artifact) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [KilledAtTheEnd()])
    assert folders(tmp_path) == ["checkpoints", "model"]
    run(pretraining(pretrain()), tmp_path)
    assert folders(tmp_path) == ["model"]


def test_a_run_goes_on_from_the_one_before_a_damaged_one(
    pretrain: Make, unkilled_pretrain: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [Heard(stop_after_checkpoints=2)])
    manifest = tmp_path / "checkpoints" / "000000000192" / "MANIFEST.json"
    manifest.write_text(manifest.read_text()[:50])
    heard = Heard()
    with pytest.warns(UserWarning, match="not a manifest"):
        result = run(pretraining(pretrain()), tmp_path, [heard])
    assert heard.steps[0].samples_seen == 128
    assert weights(result) == weights(unkilled_pretrain[0])


def test_a_damaged_index_is_one_line(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [Heard(stop_after_checkpoints=1)])
    (tmp_path / "checkpoints" / "index.json").write_text('["0000')
    with pytest.raises(ArtifactError, match=r"index\.json is damaged: remove .* to start anew"):
        run(pretraining(pretrain()), tmp_path)
