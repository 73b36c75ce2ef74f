"""The README's figures are those of the published evaluations, recomputed from their rows."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

import maep
from maep import artifact
from maep.evaluate.report import table
from maep.evaluate.results import summary
from maep.evaluate.results.summary import WORST, Result

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
STANDARD = ROOT / "docs" / "evaluations" / "cifar10-standard"
UNSEEN = "cifar10_resnet56"


def bundled_folder() -> Path:
    return Path(maep.__file__).parent / "bundled" / "cifar10"


def recomputed(result: Result) -> Result:
    figures = [asdict(figure) for figure in summary.summarise(result.rows())]
    return replace(result, values={**result.values, "figures": figures})


def percent(result: Result, purifier: str, threat: str, eps: float | None = None) -> str:
    (found,) = (
        figure.accuracy
        for figure in result.figures
        if (figure.purifier, figure.classifier, figure.threat) == (purifier, UNSEEN, threat)
        and figure.attack in (WORST, "clean")
        and (eps is None or figure.eps == eps)
    )
    return f"{100 * found:.1f} %"


def test_the_readme_shows_the_table_recomputed_from_the_per_image_rows() -> None:
    result = recomputed(summary.read(bundled_folder() / "evaluation"))
    assert " ".join(table.markdown(table.headline(result), table.notes(result)).split()) in README


def test_readme_prose_matches_the_rows() -> None:
    result = recomputed(summary.read(bundled_folder() / "evaluation"))
    ahead = {}
    for rival in ("jpeg-q50", "conv"):
        table_of = {name: right(result, UNSEEN, name) for name in ("maep", rival)}
        ahead[rival] = 100 * float(table_of["maep"].mean() - table_of[rival].mean())
    ours, theirs = (right(result, UNSEEN, name) for name in ("maep", "conv"))
    p_value = binomtest(int((ours & ~theirs).sum()), int((ours ^ theirs).sum())).pvalue
    clean = percent(result, "maep", "clean")
    assert f"{ahead['jpeg-q50']:.1f} points above JPEG q50 on the classifier it never saw, at {clean} clean" in README
    assert f"({ahead['conv']:.1f} points, 95 % interval" in README
    assert f"exact paired test p = {p_value:.2f}; ResNet-20" in README


def right(result: Result, classifier: str, purifier: str) -> np.ndarray:
    """bool [images]: right after every oblivious attack, in the list's order."""
    rows = result.rows().to_pandas()
    chosen = rows[(rows.classifier == classifier) & (rows.purifier == purifier) & (rows.threat == "oblivious")]
    found: np.ndarray = chosen.groupby("index").correct.all().to_numpy(dtype=bool)
    return found


def test_readme_matches_the_published_page() -> None:
    result = recomputed(summary.read(STANDARD))
    ours, theirs = (percent(result, name, "oblivious") for name in ("maep", "conv"))
    assert f"({ours} on ResNet-56, U-Net {theirs})" in README
    curve = [percent(result, "maep", "adaptive", eps / 255) for eps in (0.5, 1)]
    assert f"leaves {curve[0]} at 0.5/255 and {curve[1]} at 1/255" in README
    assert f"takes no gradient, {percent(result, 'maep', 'black-box')} at 8/255" in README


def test_bundled_evaluation_is_of_the_bundled_purifiers() -> None:
    figures = summary.read(bundled_folder() / "evaluation").figures
    for name, purifier in (("cifar10", "maep"), ("cifar10-conv", "conv")):
        shipped = artifact.read(bundled_folder().parent / name)
        assert {figure.purifier_sha256 for figure in figures if figure.purifier == purifier} == {shipped.sha256}
        files = [path for path in shipped.folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 8 * 2**20
