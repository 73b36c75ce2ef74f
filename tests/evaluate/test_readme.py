"""The README's figures are those of the published evaluations, recomputed from their rows."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import maep
from maep import artifact
from maep.evaluate import results, table
from maep.evaluate.results import WORST, Result

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
STANDARD = ROOT / "docs" / "evaluations" / "cifar10-standard"
UNSEEN = "cifar10_resnet56"


def bundled_folder() -> Path:
    return Path(maep.__file__).parent / "bundled" / "cifar10"


def recomputed(result: Result) -> Result:
    figures = [asdict(figure) for figure in results.summarise(result.rows())]
    return replace(result, values={**result.values, "figures": figures})


def percent(result: Result, purifier: str, threat: str) -> str:
    (found,) = (
        figure.accuracy
        for figure in result.figures
        if (figure.purifier, figure.classifier, figure.threat) == (purifier, UNSEEN, threat)
        and figure.attack in (WORST, "clean")
    )
    return f"{100 * found:.1f} %"


def test_the_readme_shows_the_table_recomputed_from_the_per_image_rows() -> None:
    result = recomputed(results.read(STANDARD))
    assert " ".join(table.markdown(table.headline(result), table.notes(result)).split()) in README


def test_the_readme_says_what_the_chain_measured_of_purifier_and_rival_of_the_same_minutes() -> None:
    result = recomputed(results.read(bundled_folder() / "evaluation"))
    ours, theirs = ([percent(result, name, threat) for threat in ("clean", "oblivious")] for name in ("maep", "conv"))
    assert f"the purifier has {ours[0]} clean and {ours[1]} worst, that U-Net {theirs[0]} and {theirs[1]}" in README


def test_the_published_evaluation_is_of_what_ships() -> None:
    figures = results.read(STANDARD).figures
    for name, purifier in (("cifar10", "maep"), ("cifar10-conv", "conv")):
        shipped = artifact.read(bundled_folder().parent / name)
        assert {figure.purifier_sha256 for figure in figures if figure.purifier == purifier} == {shipped.sha256}


def test_the_shipped_evaluation_is_of_the_shipped_purifier() -> None:
    folder = bundled_folder()
    shipped = artifact.read(folder)
    evaluated = {
        figure.purifier_sha256 for figure in results.read(folder / "evaluation").figures if figure.purifier == "maep"
    }
    assert evaluated == {shipped.sha256}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8 * 2**20
