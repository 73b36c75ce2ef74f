"""A purifier that hides its gradient behind its verdict, and the surrogates that find it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from evaluate_toys import Linear, robust
from torch import Tensor, nn

from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.protocol.run import evaluate
from maep.evaluate.results.summary import WORST, Result

EPS = 40 / 255


class Saturated(nn.Module):
    """Writes a prototype of the class that `Linear` sees; the softmax leaves no gradient."""

    randomised = False

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.encoder, self.named = Linear(), named
        digits = load(DataConfig("digits"), "train")
        images, labels = digits.batch(range(len(digits)))
        prototypes = torch.stack([images[labels == digit].mean(dim=0) for digit in (0, 1)] + [images[0]] * 8)
        self.register_buffer("prototypes", prototypes)

    def forward(self, images: Tensor) -> Tensor:
        verdict = (1e4 * self.encoder(images)).softmax(dim=1)
        return torch.einsum("bk,kchw->bchw", verdict, self.prototypes).clamp(0, 1)

    def surrogates(self) -> list[nn.Module]:
        return [self.encoder] if self.named else []


def adaptive(result: Result, purifier: str) -> float:
    (found,) = (f.accuracy for f in result.figures if (f.purifier, f.threat, f.attack) == (purifier, "adaptive", WORST))
    return found


def test_attacks_on_surrogates_find_what_the_softmax_hides(tmp_path: Path) -> None:
    """With its surrogate named, the purifier has the closed-form accuracy of the linear model that it hides."""
    config = EvaluateConfig(
        data=DataConfig("digits"), images="digits-dev", num_images=100, baselines=("none",), eps=(EPS,),
        classifiers=("import:evaluate_toys:linear",), cache=str(tmp_path / "cache"),
    )  # fmt: skip
    result = evaluate(config, {"named": Saturated(True), "hidden": Saturated(False)}, tmp_path / "out")
    images, labels = load(DataConfig("digits"), "dev").batch(range(100))
    truth = float(robust(Linear(), images, labels, int(EPS * 255) / 255).double().mean())
    clean = float((Linear()(images).argmax(dim=1) == labels).double().mean())
    assert truth < clean - 0.02
    assert abs(adaptive(result, "named") - truth) < 1e-9
    assert adaptive(result, "hidden") > truth + 0.02


def test_images_broken_on_a_surrogate_leave_the_later_attacks(tmp_path: Path) -> None:
    config = EvaluateConfig(
        data=DataConfig("digits"), images="digits-dev", num_images=50, baselines=("none",), eps=(EPS,),
        classifiers=("import:evaluate_toys:linear",), cache=str(tmp_path / "cache"),
    )  # fmt: skip
    table = evaluate(config, {"named": Saturated(True)}, tmp_path / "out").rows().to_pandas()
    rows = table[(table["purifier"] == "named") & (table["threat"] == "adaptive")]
    on_surrogate = rows[rows["attack"].str.contains("surrogate 1")]
    assert on_surrogate["attack"].nunique() == 2
    broken = on_surrogate.groupby("index")["correct"].all()
    later = rows[rows["attack"] == "PGD-20"].set_index("index")
    assert np.array_equal(later["inherited"][broken.index], ~broken)
