"""Suspicion scores: how far purification moves an image, and whether that changes its class, compared to clean images.

The score is the share of clean `dev` images that look less suspicious: 1 - p, with p the conformal p-value of Vovk,
Gammerman and Shafer (2005, eq. 2.20), which is valid for any order of suspicion. Here, an image whose class changes is
more suspicious than every image whose class does not; within each group, larger changes are more suspicious. At most
`FALSE_POSITIVE_RATE` of clean images like the calibration's are suspected, on average over calibrations. There is no
guarantee for images of another kind, and no score for another size. An attacker who differentiates through purifier
and classifier (threat model `adaptive`) can stay below the threshold.
"""

from __future__ import annotations

import bisect
import functools
import importlib.resources
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from maep.errors import ConfigError

FALSE_POSITIVE_RATE = 0.05
_FOLDER = "calibrations"


@dataclass(frozen=True)
class Calibration:
    """Distances of clean images, measured with one purifier and one classifier, which are identified by their sha256.

    unchanged, changed: ascending distances of the images that kept their class and of those that changed it.
    """

    purifier_sha256: str
    classifier_sha256: str
    images: str
    images_sha256: str
    image_size: tuple[int, int]
    unchanged: tuple[float, ...]
    changed: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises ValueError unless there are distances, in ascending order."""
        if not self.num_images or any(list(each) != sorted(each) for each in (self.unchanged, self.changed)):
            raise ValueError("the distances are not ascending")

    @property
    def num_images(self) -> int:
        """The number of clean images that were measured."""
        return len(self.unchanged) + len(self.changed)

    def p_value(self, distance: float, changed: bool) -> float:
        """The share of clean images that are at least as suspicious, counting this one too; in (0, 1]."""
        if changed:
            more = len(self.changed) - bisect.bisect_left(self.changed, distance)
        else:
            more = self.num_images - bisect.bisect_left(self.unchanged, distance)
        return (1 + more) / (1 + self.num_images)

    def judge(self, distance: float, changed: bool) -> tuple[float, bool]:
        """The score in [0, 1), and whether the image is suspected."""
        p_value = self.p_value(distance, changed)
        return 1 - p_value, p_value <= FALSE_POSITIVE_RATE


_CALIBRATION = TypeAdapter(Calibration)


def distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """Root mean square difference of two images [1, 3, H, W], both uint8 or both float in [0, 1]; in [0, 1].

    Rounded to six digits, so that reported, calibrated and compared numbers are the same.
    """
    scale = 255.0 if before.dtype == torch.uint8 else 1.0
    return round(float((before.float() - after.float()).square().mean().sqrt()) / scale, 6)


def write(calibration: Calibration, path: Path) -> None:
    """Write `calibration` as JSON."""
    path.write_text(json.dumps(asdict(calibration)) + "\n", encoding="utf-8")


def read(path: Path) -> Calibration:
    """The calibration in a file that `write` wrote. Raises ConfigError for any other file."""
    try:
        return _CALIBRATION.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"calibration: cannot read {path}: {error.strerror}: maep serve --calibrate FILE") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"calibration: {path} is not a calibration ({reason}): maep serve --calibrate FILE") from None


def find(purifier_sha256: str, classifier_sha256: str, path: str | None = None) -> Calibration | None:
    """The calibration of exactly this pair: the one in `path`, else one that ships with maep, else None.

    Raises ConfigError if `path` holds another pair's.
    """
    wanted = (purifier_sha256, classifier_sha256)
    for known in _shipped() if path is None else [read(Path(path))]:
        measured = (known.purifier_sha256, known.classifier_sha256)
        if measured == wanted:
            return known
        if path is not None:
            raise ConfigError(
                f"calibration: {path} belongs to purifier {measured[0][:12]} and classifier {measured[1][:12]}, not to"
                f" {wanted[0][:12]} and {wanted[1][:12]}: measure these with maep serve --calibrate FILE"
            )
    return None


@functools.cache
def _shipped() -> tuple[Calibration, ...]:
    folder = importlib.resources.files("maep_serve") / _FOLDER
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    return tuple(_CALIBRATION.validate_json(file.read_bytes()) for file in files if file.name.endswith(".json"))
