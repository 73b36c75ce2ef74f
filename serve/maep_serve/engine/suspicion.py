"""How much an image looks attacked: how far purification moves it and whether that changes its class.

A score is the share of clean `dev` images that look less suspicious: 1 - p, with p the conformal p-value of Vovk,
Gammerman and Shafer (2005, eq. 2.20), whatever the order of suspicion. Here an image whose class changes is more
suspicious than every one whose class does not, and among equals the one that is moved further. So of clean images like
the calibration's at most `FALSE_POSITIVE_RATE` are suspected, in the mean over calibrations. Nothing is promised for
images of another kind or size, for which the score is None; and an attacker who differentiates through purifier and
classifier (threat model `adaptive`) can stay below it.
"""

from __future__ import annotations

import bisect
import functools
import importlib.resources
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maep.errors import ConfigError

FALSE_POSITIVE_RATE = 0.05
_FOLDER = "calibrations"
_BATCH = 100


@dataclass(frozen=True)
class Calibration:
    """Distances of clean images, measured with one purifier and one classifier, which are named by their sha256.

    unchanged, changed: the distances, ascending, of the images whose class stayed and of those whose class changed.
    """

    purifier_sha256: str
    classifier_sha256: str
    images: str
    images_sha256: str
    image_size: tuple[int, int]
    unchanged: tuple[float, ...]
    changed: tuple[float, ...]

    @property
    def num_images(self) -> int:
        """Clean images that were measured."""
        return len(self.unchanged) + len(self.changed)

    def p_value(self, distance: float, changed: bool) -> float:
        """The share of clean images at least as suspicious, this one counted with them; in (0, 1]."""
        if changed:
            more = len(self.changed) - bisect.bisect_left(self.changed, distance)
        else:
            more = len(self.changed) + len(self.unchanged) - bisect.bisect_left(self.unchanged, distance)
        return (1 + more) / (1 + self.num_images)

    def judge(self, distance: float, changed: bool) -> tuple[float, bool]:
        """The score in [0, 1), and whether the image is suspected."""
        p_value = self.p_value(distance, changed)
        return 1 - p_value, p_value <= FALSE_POSITIVE_RATE


def distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """Root of the mean squared difference of two images [1, 3, H, W], both uint8 or both float in [0, 1]; in [0, 1].

    Six digits: what is told, calibrated and compared is the same number.
    """
    scale = 255.0 if before.dtype == torch.uint8 else 1.0
    return round(float((before.float() - after.float()).square().mean().sqrt()) / scale, 6)


@torch.inference_mode()
def calibrate(purifier: nn.Module, classifier: nn.Module, images: torch.Tensor, names: dict[str, Any]) -> Calibration:
    """Measures clean `images`, uint8 [N, 3, H, W]. `names` are the other fields of Calibration."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for batch in torch.split(images, _BATCH):
        given = batch.float() / 255
        purified = purifier(given).clamp(0, 1).mul(255).round().to(torch.uint8)
        changes = classifier(given).argmax(1) != classifier(purified.float() / 255).argmax(1)
        for before, after, changed in zip(
            torch.split(batch, 1), torch.split(purified, 1), changes.tolist(), strict=True
        ):
            found[changed].append(distance(before, after))
    return Calibration(**names, unchanged=tuple(sorted(found[False])), changed=tuple(sorted(found[True])))


def write(calibration: Calibration, path: Path) -> None:
    """Writes `calibration` as JSON."""
    path.write_text(json.dumps(asdict(calibration)) + "\n", encoding="utf-8")


def read(path: Path) -> Calibration:
    """The calibration in a file that `write` wrote. Raises ConfigError for any other."""
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"calibration: {path}: {error.strerror}: write it with maep serve --calibrate FILE") from None
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"calibration: {path} does not hold one ({reason}): maep serve --calibrate FILE") from None


def find(purifier_sha256: str, classifier_sha256: str, path: str | None = None) -> Calibration | None:
    """The calibration of exactly this pair: the one in `path`, else one that ships with maep, else None.

    Raises ConfigError where `path` was given and holds another pair's.
    """
    wanted = (purifier_sha256, classifier_sha256)
    if path is not None:
        given = read(Path(path))
        if (given.purifier_sha256, given.classifier_sha256) != wanted:
            raise ConfigError(
                f"calibration: {path} is of purifier {given.purifier_sha256[:12]} and classifier"
                f" {given.classifier_sha256[:12]}, not of {wanted[0][:12]} and {wanted[1][:12]}:"
                " measure these with maep serve --calibrate FILE"
            )
        return given
    return next((known for known in _shipped() if (known.purifier_sha256, known.classifier_sha256) == wanted), None)


@functools.cache
def _shipped() -> tuple[Calibration, ...]:
    folder = importlib.resources.files("maep_serve") / _FOLDER
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    return tuple(_parse(file.read_text(encoding="utf-8")) for file in files if file.name.endswith(".json"))


def _parse(text: str) -> Calibration:
    values = json.loads(text)
    height, width = values.pop("image_size")
    unchanged, changed = (tuple(map(float, values.pop(key))) for key in ("unchanged", "changed"))
    if list(unchanged) != sorted(unchanged) or list(changed) != sorted(changed) or not unchanged + changed:
        raise ValueError("the distances are not ascending")
    return Calibration(image_size=(int(height), int(width)), unchanged=unchanged, changed=changed, **values)
