"""Unusable input: one line with a fix, exit status 2, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk import mounted
from PIL import Image
from stack import free_ports

from maep.artifact import Artifact

Words = Callable[..., list[str]]


def write_cifar(root: Path, **changes: Any) -> Path:
    """A CIFAR-10 training file of 40 noise images in `root`; `changes` map a column to {row: value}."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    columns: dict[str, list[Any]] = {"image": [], "label": [], "index": [], "lossless": []}
    for index, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        for name, value in zip(columns, (buffer.getvalue(), index % 10, index, True), strict=True):
            columns[name].append(value)
    for name, edits in changes.items():
        for row, value in edits.items():
            columns[name][row] = value
    (root / "cifar10").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "cifar10" / "train.parquet")
    return root


def cifar(tiny: Words, root: Path) -> list[str]:
    """A tiny pretraining on the CIFAR-10 in `root`."""
    return tiny("--data.name", "cifar10", "--data.root", root, "--model.image_size", 32, "--output", "out")


def half_written(folder: Path) -> list[Path]:
    """Files below `folder` that could be mistaken for a result."""
    return [path for path in folder.rglob("*") if path.name in ("model", "index.json", "MANIFEST.json")]


def test_missing_data(maep: Any, tiny: Words, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert maep(*cifar(tiny, tmp_path / "empty")).is_mistake(r"\$MAEP_DATA", "maep data get cifar10")
    assert not half_written(tmp_path)


def test_empty_data(maep: Any, tiny: Words, tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "data")
    file = root / "cifar10" / "train.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert maep(*cifar(tiny, root)).is_mistake("train.parquet")
    assert not half_written(tmp_path)


def test_data_that_is_not_parquet(maep: Any, tiny: Words, tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "data")
    (root / "cifar10" / "train.parquet").write_bytes(b"not parquet at all")
    assert maep(*cifar(tiny, root)).is_mistake("train.parquet")


def test_corrupt_image(maep: Any, tiny: Words, tmp_path: Path) -> None:
    """Named and counted; `max_corrupt` allows a number of them."""
    root = write_cifar(tmp_path / "data", image={3: b"\x89PNG but no more"})
    assert maep(*cifar(tiny, root)).is_mistake("train.parquet", "row 3", "max_corrupt")
    assert not half_written(tmp_path)
    assert maep(*cifar(tiny, root), "--data.max_corrupt", "1").status == 0


def test_label_out_of_range(maep: Any, tiny: Words, tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "data", label={7: 10})
    assert maep(*cifar(tiny, root)).is_mistake("row 7", "label", "10")
    assert not half_written(tmp_path)


def test_images_of_another_size(maep: Any, tiny: Words) -> None:
    assert maep(*tiny("--model.image_size", 32)).is_mistake("image_size", "32x32", "16x16")


def test_fewer_images_than_a_batch(maep: Any, tiny: Words) -> None:
    words = tiny("--loop.batch_size", 2000, "--loop.samples", 4000)
    assert maep(*words).is_mistake("batch_size: 2000", "1197")


def test_no_gpu(maep: Any, tiny: Words) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert maep(*tiny("--loop.device", "cuda")).is_mistake("cuda", "auto")


def test_full_disk(maep: Any, tiny: Words, tmp_path: Path) -> None:
    """The model does not fit; existing files stay, and no part of the model is left."""
    with mounted(tmp_path / "disk", "size=32k") as disk:
        (disk / "kept").write_text("kept")
        assert maep(*tiny("--output", disk / "out")).end.is_mistake("No space left", str(disk))
        assert not half_written(disk)
        assert not [path for path in disk.rglob("*") if path.name.endswith("safetensors")]
        assert (disk / "kept").read_text() == "kept"


def test_unwritable_folder(maep: Any, tiny: Words, tmp_path: Path) -> None:
    if os.geteuid() == 0:  # whom permissions do not stop
        with mounted(tmp_path / "locked", "ro,size=32k") as locked:
            assert maep(*tiny("--output", locked / "out")).is_mistake("locked", "Read-only file system")
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        assert maep(*tiny("--output", tmp_path / "locked" / "out")).is_mistake("locked", "Permission denied")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_port_in_use(maep: Any, make_purifier: Callable[[int], Artifact], taken_port: int) -> None:
    folder = make_purifier(0).folder
    assert maep("serve", "--model", folder, "--port", taken_port).is_mistake(f"{taken_port}", "--port")


def test_a_pipeline_checks_its_port_before_training(maep: Any, taken_port: int, store: Path, tmp_path: Path) -> None:
    ran = maep("run", "digits/pipeline", "--serve.port", taken_port, "--output", "out")
    assert ran.is_mistake(f"{taken_port}", "--serve.port")
    assert not list((tmp_path / "out").iterdir())


def test_mlflow_that_does_not_answer(maep: Any, tiny: Words, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert maep(*tiny("--tracking.uri", uri, tracked=True)).is_mistake(uri, "tracking.enabled false")
    assert not half_written(tmp_path)
    assert maep("run", "digits/pipeline", "--tracking.uri", uri).is_mistake(uri)
    assert maep("promote", "models:/purifier/3", "--tracking.uri", uri).is_mistake(uri)


def test_a_pipeline_without_tracking_is_refused_at_once(maep: Any) -> None:
    ran = maep("run", "digits/pipeline", "--tracking.enabled", "false")
    assert ran.is_mistake("tracking.enabled")


def finetune(*more: str | Path) -> list[str | Path]:
    """A fine-tuning on digits from what `more` says."""
    return ["finetune", "--config", "digits/finetune", "--tracking.enabled", "false", "--output", "out", *more]


def damage(artifact: Artifact, how: str) -> None:
    """Damages an artifact so that it must be refused."""
    weights, manifest = artifact.folder / "model.safetensors", artifact.folder / "MANIFEST.json"
    data = weights.read_bytes()
    match how:
        case "truncated":
            weights.write_bytes(data[:-100])
        case "tampered":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "unfinished":
            manifest.unlink()
        case "newer":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))


REASONS = {
    "truncated": "model.safetensors",
    "tampered": "model.safetensors",
    "unfinished": "MANIFEST.json",
    "newer": "99",
}


@pytest.mark.parametrize("how", REASONS)
def test_damaged_artifact(
    maep: Any, autoencoder: Artifact, make_purifier: Callable[[int], Artifact], how: str, store: Path, tmp_path: Path
) -> None:
    """Everywhere an artifact is accepted: to start from, to evaluate, to promote, to serve."""
    purifier = make_purifier(0)
    damage(autoencoder, how)
    damage(purifier, how)
    assert maep(*finetune("--init", autoencoder.folder)).is_mistake(str(autoencoder.folder), REASONS[how])
    place = str(purifier.folder)
    assert maep("evaluate", "--purifier", f"mine={place}", "--output", "out").is_mistake(place, REASONS[how])
    assert maep("promote", place, "--output", "out").is_mistake(place, REASONS[how])
    assert maep("serve", "--model", place).is_mistake(place, REASONS[how])
    assert not half_written(tmp_path / "out")


def test_artifact_of_another_kind(
    maep: Any, autoencoder: Artifact, make_purifier: Callable[[int], Artifact], store: Path
) -> None:
    ran = maep(*finetune("--init", make_purifier(0).folder))
    assert ran.is_mistake("model.name: 'purifier'", "'conv'")
    assert maep("promote", autoencoder.folder, "--output", "out").is_mistake("mae")
    assert maep("evaluate", "--purifier", f"x={autoencoder.folder}", "--output", "out").is_mistake("mae")


def test_no_such_model(maep: Any, store: Path) -> None:
    assert maep("serve", "--model", "nowhere/model").is_mistake("nowhere/model")
    assert maep("serve", "--model", "bundled:cifar100").is_mistake("cifar100")
    assert maep("promote", "models:/purifier/3", "--output", "out").is_mistake("models:/purifier/3")
    assert maep("serve").is_mistake("champion")


def test_a_configuration_that_differs_from_the_existing_run(maep: Any, tiny: Words) -> None:
    assert maep(*tiny("--output", "out")).status == 0
    ran = maep(*tiny("--output", "out", "--loop.seed", 1))
    assert ran.is_mistake("loop.seed=0", "--output")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["run", "digits/pipeline", "--parallel", "0"], "parallel: 0"),
        (["run", "digits/pipeline", "--gate.oblivious_eps", "8"], "gate: oblivious_eps: "),
        (["data", "show", "cifar10", "--max-corrupt", "-1"], "max_corrupt: -1"),
        (["pretrain", "--tracking.model", "a/b"], "tracking: model: 'a/b'"),
    ],
)
def test_values_that_only_a_late_stage_uses(maep: Any, words: list[str], pattern: str, tmp_path: Path) -> None:
    assert maep(*words).is_mistake(pattern)
    assert not half_written(tmp_path)


def test_an_endpoint_without_a_token_is_refused_before_training(
    maep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MAEP_SERVE_TOKEN", raising=False)
    ran = maep("run", "digits/pipeline", "--serve.host", "0.0.0.0", "--output", "out")
    assert ran.is_mistake("host: 0.0.0.0", "MAEP_SERVE_TOKEN")
    assert not half_written(tmp_path)


def test_dead_ray_address(maep: Any, tiny: Words, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    ran = maep(*tiny("--workers.num_workers", 1, "--address", f"127.0.0.1:{port}", "--output", "out"))
    assert ran.is_mistake(f"127.0.0.1:{port}", "ray start --head")
    ran = maep("submit", "pretrain", "--config", "digits/pretrain", "--address", f"http://127.0.0.1:{port}")
    assert ran.is_mistake(f"127.0.0.1:{port}", "ray start --head")
    assert not half_written(tmp_path)
