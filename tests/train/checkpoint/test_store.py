from __future__ import annotations

import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import mounted
from train_toys import Heard, Make, weights

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError, WriteError
from maep.train.build_tasks import pretraining
from maep.train.checkpoint.async_checkpoint import CheckpointWriter, Notifier
from maep.train.checkpoint.store import Best, Checkpoints, Score, hold, snapshot
from maep.train.loop.run import run


def save(checkpoints: Checkpoints, samples_seen: int) -> Artifact:
    content = {"w": torch.full((3,), float(samples_seen))}
    return checkpoints.save(snapshot(samples_seen, {"a": 1}, content, {"step": samples_seen, "optimizer": {}}))


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_newest_checkpoints_are_kept_and_found(tmp_path: Path) -> None:
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
    """After a resume from an older one, the last one written is the newest; one written again is listed once."""
    checkpoints = Checkpoints(tmp_path, 3)
    for samples_seen in (10, 20, 30, 20):
        save(checkpoints, samples_seen)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.folder.name == "000000000020"
    assert json.loads((tmp_path / "index.json").read_text()) == ["000000000010", "000000000030", "000000000020"]


def test_truncated_checkpoint_is_skipped_with_a_warning(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    older, newer = save(checkpoints, 10), save(checkpoints, 20)
    os.truncate(newer.folder / "model.safetensors", 20)
    with pytest.warns(UserWarning, match=r"model\.safetensors"):
        newest = checkpoints.newest()
    assert newest is not None
    assert newest.sha256 == older.sha256
    os.truncate(older.folder / "state" / "state.pt", 0)
    with pytest.warns(UserWarning, match=r"0000000000[12]0"):
        assert checkpoints.newest() is None


@pytest.mark.parametrize("survives", range(9))
def test_a_kill_between_any_two_writes_leaves_a_usable_state(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops after `survives` files of the second checkpoint: the first or the second is found, complete."""

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


def test_index_names_only_complete_checkpoints(pretrain: Make, tmp_path: Path) -> None:
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


def test_checkpoints_are_deleted_after_the_result(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    assert folders(unkilled_pretrain[2]) == ["model"]

    class KilledAtTheEnd(Heard):
        def on_end(self, result: Artifact) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [KilledAtTheEnd()])
    assert folders(tmp_path) == ["checkpoints", "model"]
    run(pretraining(pretrain()), tmp_path)
    assert folders(tmp_path) == ["model"]


def test_run_resumes_from_the_checkpoint_before_a_damaged_one(
    pretrain: Make, unkilled_pretrain: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [Heard(stop_after_checkpoints=2)])
    manifest = tmp_path / "checkpoints" / "000000000192" / "MANIFEST.json"
    manifest.write_text(manifest.read_text()[:50])
    heard = Heard()
    with pytest.warns(UserWarning, match="MANIFEST"):
        result = run(pretraining(pretrain()), tmp_path, [heard])
    assert heard.steps[0].samples_seen == 128
    assert weights(result) == weights(unkilled_pretrain[0])


def test_damaged_index_is_an_error(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [Heard(stop_after_checkpoints=1)])
    (tmp_path / "checkpoints" / "index.json").write_text('["0000')
    with pytest.raises(ArtifactError, match=r"index\.json"):
        run(pretraining(pretrain()), tmp_path)


def test_snapshot_is_unaffected_by_further_training() -> None:
    weight = torch.zeros(3)
    taken = snapshot(1, {}, {"w": weight}, {"optimizer": {"state": {0: {"m": weight}}, "groups": [(weight, 2)]}})
    weight.add_(1)
    nested = taken.state["optimizer"]
    assert [t.sum().item() for t in (taken.weights["w"], nested["state"][0]["m"], nested["groups"][0][0])] == [0, 0, 0]
    assert nested["groups"][0][1] == 2


class Slow(Heard):
    """Blocks on the first checkpoint until the last step is reported, and counts concurrent calls."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.output, self.went_on, self.written = output, threading.Event(), ""
        self.in_flight = self.most = 0

    def on_step(self, progress: Any) -> None:
        super().on_step(progress)
        if progress.samples_seen == progress.samples:
            self.written = (self.output / "checkpoints" / "index.json").read_text()
            self.went_on.set()

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        assert threading.current_thread() is not threading.main_thread()
        assert self.went_on.wait(60)
        assert artifact.is_valid(saved.folder)  # newer ones have come, and it is still there
        super().on_checkpoint(saved, samples_seen)
        self.in_flight -= 1


def test_steps_and_writing_do_not_wait_for_callbacks(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    result = run(pretraining(pretrain(keep_checkpoints=1)), tmp_path, [slow])
    assert slow.written == '["000000000192"]' or slow.written == '["000000000288"]'
    assert slow.most == 1
    assert slow.checkpoints == [96, 192, 288]
    assert result.sha256 == unkilled_pretrain[0].sha256


def test_hanging_upload_is_abandoned_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints, hung = Checkpoints(tmp_path, 1), threading.Event()
    with CheckpointWriter(checkpoints, lambda saved, samples_seen: hung.wait(60) and None, deadline_s=0.05) as writer:
        for samples in (1, 2, 3):
            writer.put(snapshot(samples, {"a": 1}, {"w": torch.zeros(1)}, {"step": samples}))
        writer.wait()
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.state()["step"] == 3
    hung.set()
    (said,) = caplog.records
    assert said.args == (1, 0.05)


def test_oldest_waiting_upload_is_skipped_and_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints, turn, told = Checkpoints(tmp_path, 1), threading.Event(), []

    def tell(saved: Artifact, samples_seen: int) -> None:
        told.append(samples_seen)
        began.set()
        assert turn.wait(60)

    teller, began = Notifier(checkpoints, tell), threading.Event()
    for samples in range(1, 13):
        teller.put(save(checkpoints, samples), samples)
        assert began.wait(60)
    assert folders(tmp_path) == [f"{samples:012d}" for samples in (1, *range(5, 13))]
    turn.set()
    teller.wait(60)
    assert told == [1, *range(5, 13)]
    assert folders(tmp_path) == ["000000000012"]
    assert [record.args for record in caplog.records] == [(2, 1), (3, 1), (4, 1)]


class FailsAt(Heard):
    def __init__(self, samples: int) -> None:
        super().__init__()
        self.at = samples

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        super().on_checkpoint(saved, samples_seen)
        if samples_seen == self.at:
            raise UnavailableError("the upload was refused")


@pytest.mark.parametrize("at", [96, 288])
def test_background_errors_are_raised(at: int, pretrain: Make, tmp_path: Path) -> None:
    heard = FailsAt(at)
    with pytest.raises(UnavailableError, match="the upload was refused"):
        run(pretraining(pretrain()), tmp_path, [heard])
    assert heard.checkpoints[-1] == at
    assert [str(error) for error in heard.failures] == ["the upload was refused"]
    assert not heard.ends


def test_first_error_is_raised_and_the_second_is_a_warning(tmp_path: Path) -> None:
    def refuse(saved: Artifact, samples_seen: int) -> None:
        raise UnavailableError("refused")

    def fail_while_writing() -> None:
        with CheckpointWriter(Checkpoints(tmp_path, 2), refuse) as writer:
            writer.put(snapshot(1, {"a": 1}, {"w": torch.zeros(1)}, {}))
            raise FloatingPointError("the loss")

    with (
        pytest.warns(UserWarning, match="refused"),
        pytest.raises(FloatingPointError, match="the loss"),
    ):
        fail_while_writing()


def test_disconnected_process_does_not_overwrite_its_successor(tmp_path: Path) -> None:
    cut_off, goes_on = Checkpoints(tmp_path, 2), Checkpoints(tmp_path, 2)
    cut_off.claim()
    first = save(cut_off, 10)
    goes_on.claim()
    with pytest.raises(UnavailableError, match=str(tmp_path)):
        save(cut_off, 20)
    newest = goes_on.newest()
    assert newest is not None
    assert newest.sha256 == first.sha256
    assert save(goes_on, 20).folder.name == "000000000020"


def test_full_disk_leaves_the_previous_checkpoint(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    class Fill(Heard):
        def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
            super().on_checkpoint(saved, samples_seen)
            free = shutil.disk_usage(saved.folder).free
            with suppress(OSError):  # another thread may have filled it
                (disk / "filler").write_bytes(bytes(free - 16_384))

    with mounted(tmp_path / "disk", "size=8m") as disk:
        heard = Fill()
        with pytest.raises(WriteError, match="checkpoints") as caught:
            run(pretraining(pretrain()), disk / "out", [heard])
        assert "\n" not in str(caught.value)
        assert heard.checkpoints == [96]
        newest = Checkpoints(disk / "out" / "checkpoints", 2).newest()
        assert newest is not None
        assert newest.state()["step"] == 3
        assert folders(disk / "out" / "checkpoints") == ["000000000096"]  # and no part of another
        (disk / "filler").unlink()
        again = Heard()
        assert run(pretraining(pretrain()), disk / "out", [again]).sha256 == unkilled_pretrain[0].sha256
        assert again.steps[0].samples_seen == 128


def test_best_checkpoint_is_chosen_by_validation(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    best = Best(tmp_path / "best", "robust", "mae")
    held = [hold(save(checkpoints, samples), tmp_path / f"held-{samples}") for samples in (10, 20, 30)]
    assert folders(Path(checkpoints.uri)) == ["000000000030"]
    measured = [{"robust": 0.4, "clean": 0.9}, {"robust": 0.6, "clean": 0.8}, {"robust": 0.5, "clean": 1.0}]
    kept = [best.offer(each, n * 10, values) for n, (each, values) in enumerate(zip(held, measured, strict=True), 1)]
    assert kept == [True, True, False]
    score = Best(tmp_path / "best", "robust", "mae").score()
    assert score == Score("robust", 0.6, 20, held[1].sha256)
    found = artifact.read(tmp_path / "best")
    assert found.kind == "mae"
    assert found.weights()["w"].tolist() == [20, 20, 20]
    assert not Best(tmp_path / "best", "robust", "mae").offer(held[0], 10, {"robust": float("nan")})
    assert Best(tmp_path / "best", "-clean", "mae").offer(held[0], 10, {"clean": 0.1})  # another metric: anew
    assert not Best(tmp_path / "best", "-clean", "mae").offer(held[1], 20, {"clean": 0.2})
    with pytest.raises(ArtifactError, match=r"keep_best.*clean, loss"):
        best.offer(held[0], 10, {"loss": 1.0, "clean": 0.1})
