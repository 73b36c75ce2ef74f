"""`maep convert`, and training that starts from what it made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maep import artifact
from maep.artifact import Artifact


def test_export_import_and_training_from_the_import(
    maep: Any, tiny: Callable[..., list[str]], autoencoder: Artifact, tmp_path: Path
) -> None:
    ran = maep("convert", autoencoder.folder, "-o", "theirs", "--json")
    assert json.loads(ran.out) == {"model": "theirs", "kind": "vit_mae"}
    refused = maep(*tiny("--output", "out", "--init", "theirs"))
    assert refused.is_mistake("init: theirs", "maep convert theirs")
    ran = maep("convert", "theirs", "-o", "ours", "--json")
    back = artifact.read(tmp_path / "ours")
    assert json.loads(ran.out) == {"model": "ours", "kind": "mae", "sha256": back.sha256}
    assert maep(*tiny("--output", "out", "--init", "ours")).status == 0
    assert artifact.read(tmp_path / "out" / "model").config["train"]["init_sha256"] == back.sha256


def test_what_cannot_be_converted_is_one_line(
    maep: Any, autoencoder: Artifact, make_purifier: Callable[[int], Artifact], tmp_path: Path
) -> None:
    assert maep("convert", make_purifier(0).folder, "-o", "out").is_mistake("purifier")
    assert maep("convert", "nowhere", "-o", "out").is_mistake("nowhere")
    assert maep("convert", autoencoder.folder, "-o", autoencoder.folder).is_mistake(f"-o {autoencoder.folder}")
    assert maep("convert", autoencoder.folder).is_mistake("--output", "maep convert --help")
    assert not (tmp_path / "out").exists()
