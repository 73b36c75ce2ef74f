"""`maep ...` in this process, in an empty working directory, and small inputs for its verbs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from purifier_toys import small_unet
from train_toys import MAE

from maep import artifact, config
from maep.artifact import Artifact
from maep.models.config import MaeConfig
from maep.models.mae import MaskedAutoencoder
from maep_jobs import cli


@dataclass(frozen=True)
class Ran:
    """The result of a command line."""

    status: int
    out: str
    err: str

    @property
    def end(self) -> Ran:
        """The same with the last line on standard error alone: progress came before."""
        return Ran(self.status, self.out, self.err.splitlines(keepends=True)[-1])

    def is_mistake(self, *patterns: str) -> bool:
        """Exit status 2 and one line on standard error, of a verb, that matches every pattern."""
        assert (self.status, self.out) == (2, ""), self
        assert re.fullmatch(r"maep \w+: [^\n]+\n", self.err), self.err
        for pattern in patterns:
            assert re.search(pattern, self.err), (pattern, self.err)
        return True


Maep = Callable[..., Ran]


@pytest.fixture
def maep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Maep:
    """`maep("pretrain", "--dry-run")`, run in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path | int) -> Ran:
        capfd.readouterr()
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        said = capfd.readouterr()
        return Ran(status, said.out, said.err)

    return run


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """The default tracking store of the working directory, created beforehand, which takes ten seconds."""
    database = tmp_path / "outputs" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    shutil.copyfile(empty_store, database)
    return database


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a pretraining of ten steps without tracking; further arguments override."""
    values = {
        "data": {"name": "digits"},
        "model": MAE,
        "mask_ratio": 0.5,
        "loop": {"samples": 320, "batch_size": 32, "augment": False, "device": "cpu"},
    }

    def words(*more: str | Path | int, tracked: bool = False) -> list[str]:
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(values))
        off = [] if tracked else ["--tracking.enabled", "false"]
        return ["pretrain", "--config", str(file), *off, *map(str, more)]

    return words


@pytest.fixture
def autoencoder(tmp_path: Path) -> Artifact:
    """An untrained autoencoder for 16 x 16 pixels."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(config.build(MaeConfig, MAE))
    described = {"model": config.to_dict(model.config)}
    return artifact.write(tmp_path / "autoencoder", "mae", described, model.state_dict(), "# Untrained\n")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the digits, trained by its verb in seconds."""
    output = tmp_path_factory.mktemp("classifier")
    line = ["classifier", "train", "digits", "--output", str(output), "--tracking.enabled", "false"]
    assert (
        cli.main(
            [*line, "--name", "tiny", "--depth", "8", "--width", "4", "--loop.samples", "6400", "--loop.lr", "1e-2"]
        )
        == 0
    )
    return output / "model"


@pytest.fixture
def make_purifier(tmp_path: Path) -> Callable[[int], Artifact]:
    """`make_purifier(seed)`: a small U-Net that changes images a little; each seed another artifact."""

    return lambda seed: small_unet(tmp_path / f"purifier-{seed}", seed, 0.002)


@pytest.fixture
def everything(tmp_path: Path) -> Callable[[], set[str]]:
    """All files in the working directory."""
    return lambda: {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restores the signal handlers after each test."""
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
