"""The README's figures are those of the evaluation that ships with the bundled purifier, recomputed from its rows."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

import maep
from maep import artifact
from maep.evaluate import results, table

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_shows_the_table_recomputed_from_the_per_image_rows() -> None:
    shipped = Path(str(resources.files("maep").joinpath("bundled/cifar10/evaluation")))
    result = results.read(shipped)
    figures = [asdict(figure) for figure in results.summarise(result.rows())]
    recomputed = replace(result, values={**result.values, "figures": figures})
    text = table.markdown(table.headline(recomputed), table.notes(recomputed)).strip()
    assert text in README.read_text(encoding="utf-8")


def test_the_shipped_evaluation_is_of_the_shipped_purifier() -> None:
    folder = Path(maep.__file__).parent / "bundled" / "cifar10"
    shipped = artifact.read(folder)
    evaluated = {
        figure.purifier_sha256 for figure in results.read(folder / "evaluation").figures if figure.purifier == "maep"
    }
    assert evaluated == {shipped.sha256}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8 * 2**20
