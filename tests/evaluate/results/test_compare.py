"""Paired comparison: statistics as published, figures from the rows alone, incomparable results refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from evaluations import bundled, changed
from rich.console import Console
from scipy.stats import binomtest

from maep.errors import ConfigError, DataError
from maep.evaluate.report.table import markdown, render
from maep.evaluate.results import compare
from maep.evaluate.results.compare import Comparison
from maep.evaluate.results.paired import difference_interval, holm
from maep.evaluate.results.summary import Result


@pytest.fixture(scope="module")
def whole() -> Result:
    return bundled()


@pytest.fixture(scope="module")
def comparison(whole: Result) -> Comparison:
    return compare.compare(whole, whole, "maep", "conv")


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, table III, method 10
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Bentur et al. 2009, in Fagerland et al. 2017, chapter 8
        ((14, 5, 0, 22), (0.011, 0.226)),  # Altman et al. 2000, table 6.2
    ],
)
def test_paired_interval_matches_newcombe(counts: tuple[int, int, int, int], published: tuple[float, float]) -> None:
    digits = 4 if published[0] == 0.0569 else 3
    assert tuple(round(bound, digits) for bound in difference_interval(*counts)) == published


def test_paired_interval_has_its_nominal_coverage() -> None:
    """For pairs as correlated as two purifiers are, 95 of 100 intervals cover the true difference."""
    generator = np.random.default_rng(0)
    shares = [0.50, 0.12, 0.06, 0.32]
    held = 0
    for counts in generator.multinomial(150, shares, size=400):
        low, high = difference_interval(*map(int, counts))
        held += low <= shares[1] - shares[2] <= high
    assert 0.925 <= held / 400 <= 0.985


@pytest.mark.parametrize("counts", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (0, 0, 10, 0), (5, 0, 0, 5)])
def test_paired_interval_with_an_empty_margin(counts: tuple[int, int, int, int]) -> None:
    low, high = difference_interval(*counts)
    difference = (counts[1] - counts[2]) / sum(counts)
    assert -1 <= low <= difference <= high <= 1
    assert low < high


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_every_row_follows_from_the_image_rows(whole: Result, comparison: Comparison) -> None:
    frame = whole.rows().to_pandas()
    common = frame[frame["purifier"] == "maep"].groupby(["classifier", "threat", "norm", "eps"]).ngroups
    assert len(comparison.rows) >= 8
    assert len(comparison.rows) <= common
    for row in comparison.rows:
        chosen = (frame["classifier"] == row.classifier) & (frame["threat"] == row.threat) & (frame["norm"] == row.norm)
        mine = frame[chosen & np.isclose(frame["eps"], row.eps)]
        a, b = (by_image(mine, name) for name in ("maep", "conv"))
        assert (row.a.accuracy, row.b.accuracy) == (a.mean(), b.mean())
        assert row.difference == pytest.approx(a.mean() - b.mean())
        assert (row.won, row.lost) == (int((a & ~b).sum()), int((b & ~a).sum()))
        assert row.num_images == len(a)
        exact = binomtest(row.won, row.won + row.lost).pvalue if row.won + row.lost else 1.0
        assert row.p_value == pytest.approx(exact)
        assert row.low <= row.difference <= row.high
    assert [row.p_holm for row in comparison.rows] == holm([row.p_value for row in comparison.rows])


def by_image(frame: pd.DataFrame, purifier: str) -> pd.Series:
    return frame[frame["purifier"] == purifier].groupby("index")["correct"].all()


def test_swapped_sides_mirror_the_comparison(whole: Result, comparison: Comparison) -> None:
    turned = compare.compare(whole, whole, "conv", "maep")
    for one, other in zip(comparison.rows, turned.rows, strict=True):
        assert (one.won, one.lost, one.p_value) == (other.lost, other.won, other.p_value)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_figures_of_one_side_only_are_left_out(whole: Result, tmp_path: Path) -> None:
    def without_adaptive(table: pa.Table) -> pa.Table:
        return table.filter(pc.invert(pc.starts_with(table["threat"], "adaptive")))

    other = changed(whole, tmp_path / "b", table=without_adaptive)
    found = compare.compare(whole, other, "maep", "maep")
    assert {row.threat for row in found.rows} >= {"clean", "oblivious"}
    assert "adaptive" not in {row.threat for row in found.rows}
    assert all((row.difference, row.won, row.lost, row.p_value) == (0, 0, 0, 1) for row in found.rows)
    assert [line for line in found.remarks if "adaptive in front of" in line and "A only" in line]


def test_different_attacks_are_remarked_on(whole: Result, tmp_path: Path) -> None:
    other = changed(whole, tmp_path / "b", table=lambda table: renamed(table, "attack", "PGD-20", "PGD-200"))
    found = compare.compare(whole, other, "maep", "conv")
    assert [line for line in found.remarks if "oblivious" in line and "PGD-20," in line and "PGD-200," in line]
    assert "oblivious" in {row.threat for row in found.rows}


def test_transfer_from_other_sources_is_left_out(whole: Result, tmp_path: Path) -> None:
    def as_transfer(values: str) -> Result:
        def change(table: pa.Table) -> pa.Table:
            return renamed(renamed(table, "threat", "oblivious", "transfer"), "attack", "FGSM", values)

        return changed(whole, tmp_path / values, table=change)

    found = compare.compare(as_transfer("PGD-20 from x"), as_transfer("PGD-20 from y"), "maep", "conv")
    assert "transfer" not in {row.threat for row in found.rows}
    assert [line for line in found.remarks if "transfer" in line]


def renamed(table: pa.Table, column: str, before: str, after: str) -> pa.Table:
    words = pc.if_else(pc.equal(table[column], before), after, table[column])
    return table.set_column(table.column_names.index(column), column, words)


@pytest.mark.parametrize("key", ["image_list_sha256", "seed", "split", "preset", "dataset"])
def test_results_of_different_settings_are_refused(whole: Result, tmp_path: Path, key: str) -> None:
    other = changed(whole, tmp_path / "b", lambda values: values.update({key: "another"}))
    with pytest.raises(ConfigError, match=f" {key}"):
        compare.compare(whole, other, "maep", "conv")


def test_classifiers_of_one_name_and_different_weights_are_refused(whole: Result, tmp_path: Path) -> None:
    name = next(iter(whole.values["classifiers"]))
    other = changed(whole, tmp_path / "b", lambda values: values["classifiers"].update({name: "0" * 64}))
    with pytest.raises(ConfigError, match=name):
        compare.compare(whole, other, "maep", "conv")
    nobody = changed(whole, tmp_path / "c", lambda values: values.update(classifiers={"vgg": "0" * 64}))
    with pytest.raises(ConfigError, match="classifier"):
        compare.compare(whole, nobody, "maep", "conv")


def test_fewer_images_are_refused(whole: Result, tmp_path: Path) -> None:
    def first_half(table: pa.Table) -> pa.Table:
        few = pa.array(sorted(set(table["index"].to_pylist()))[:100])
        return table.filter(pc.or_(pc.is_in(table["index"], few), pc.not_equal(table["threat"], "clean")))

    other = changed(whole, tmp_path / "b", table=first_half)
    with pytest.raises(ConfigError, match=r"clean .* 100"):
        compare.compare(whole, other, "maep", "conv")


def test_missing_unknown_and_repeated_names_are_refused(whole: Result) -> None:
    with pytest.raises(ConfigError, match=r"2 purifiers.*FOLDER:"):
        compare.compare(whole, whole)
    with pytest.raises(ConfigError, match=r"'mae'.*'maep'"):
        compare.compare(whole, whole, "mae", "conv")
    with pytest.raises(ConfigError, match="FOLDER:PURIFIER"):
        compare.compare(whole, whole, "maep", "maep")


def test_changed_rows_are_refused(whole: Result, tmp_path: Path) -> None:
    other = changed(whole, tmp_path / "b")
    (tmp_path / "b" / "images.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"images\.parquet"):
        compare.compare(whole, other, "maep", "conv")


def test_terminal_markdown_and_json_agree(comparison: Comparison) -> None:
    screen = io.StringIO()
    parts = compare.tables(comparison), compare.notes(comparison)
    Console(file=screen, width=120).print(render(*parts))
    text = markdown(*parts)
    row = comparison.rows[1]
    cell = f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    assert cell in screen.getvalue()
    assert f"| {cell} |" in text
    assert all(name in text for name in ("Wilson", "Newcombe", "McNemar", "Holm"))
    values = json.loads(json.dumps(comparison.values))
    assert values["rows"][1]["won"] == row.won
    assert f" {len(values['rows'])} rows" in values["method"]


def test_notes_name_an_unreliable_side_first(whole: Result, tmp_path: Path) -> None:
    def fail(values: dict) -> None:
        entry = next(entry for entry in values["sanity"] if entry["purifier"] == "conv")
        entry["checks"][0]["passed"] = False

    found = compare.compare(whole, changed(whole, tmp_path / "b", fail), "maep", "conv")
    assert compare.notes(found)[0].startswith("B (conv)")
