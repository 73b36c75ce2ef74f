from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from stack import MlflowServer

from maep import artifact
from maep.tracking.runs import TrackingConfig


@pytest.fixture
def tracking(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    """The default store of a separate working directory."""
    monkeypatch.chdir(tmp_path)
    database = tmp_path / "outputs" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    shutil.copyfile(empty_store, database)
    return TrackingConfig()


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., artifact.Artifact]:
    """Writes a tiny purifier artifact; `value` determines its weights and so its sha256."""

    def make(value: float, name: str = "made", state: bool = False) -> artifact.Artifact:
        return artifact.write(
            tmp_path / name,
            "checkpoint" if state else "purifier",
            {"name": "mae"},
            {"weight": torch.full((4, 4), value)},
            "A purifier.\n",
            state={"samples_seen": int(value)} if state else None,
        )

    return make


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow server. A test that kills it restarts it."""
    running = MlflowServer(tmp_path_factory.mktemp("server"), empty_store)
    try:
        running.start()
        yield running
    finally:
        running.kill()
