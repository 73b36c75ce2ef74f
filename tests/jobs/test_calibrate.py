"""`maep serve --calibrate FILE`: measure a calibration of the suspicion score for one's own models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maep.artifact import Artifact
from maep.models.classifiers.load import load_classifier
from maep_serve.engine import suspicion


def test_clean_dev_images_are_measured_into_a_file(
    maep: Any, make_purifier: Callable[[int], Artifact], classifier: Path, tmp_path: Path
) -> None:
    purifier = make_purifier(0)
    line = [
        "serve",
        "--model",
        purifier.folder,
        "--classifier",
        classifier,
        "--calibrate",
        "c.json",
        "--data.name",
        "digits",
    ]
    ran = maep(*line, "--json")
    assert (ran.status, ran.err) == (0, "")
    told = json.loads(ran.out)
    known = suspicion.read(tmp_path / "c.json")
    assert known == suspicion.find(purifier.sha256, load_classifier(str(classifier)).sha256, str(tmp_path / "c.json"))
    assert told["images"] == known.images
    assert known.images.startswith("digits-dev")
    assert told["num_images"] == known.num_images > 100
    assert told["class_changed"] == len(known.changed)
    assert known.unchanged[0] > 0
    assert "digits-dev" in maep(*line).out

    mistaken = maep("serve", "--model", make_purifier(1).folder, "--classifier", classifier, "--calibration", "c.json")
    assert mistaken.is_mistake("calibration: c.json", "--calibrate FILE")
    assert maep("serve", "--model", purifier.folder, "--calibrate", "c.json").is_mistake("classifier: ")
