"""The report page shows all that a reviewer asks for, escapes every name, and loads nothing from outside."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from evaluations import bundled, changed
from pages import Page
from PIL import Image

from maep.errors import DataError
from maep.evaluate.report import curves, drawing, report, table, verdict
from maep.evaluate.report.curves import Chart, Curve, CurvePoint
from maep.evaluate.results.summary import WORST, Figure, Result

EVIL = '<script>alert("1")</script>&\'" onerror=x'


def png(colour: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def whole() -> Result:
    return bundled()


@pytest.fixture(scope="module")
def text(whole: Result, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(whole, path, {"maep, oblivious": png(), "maep, adaptive": png("blue")}, "maep evaluate --x y")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_page_loads_nothing_from_outside(text: str, page: Page) -> None:
    assert not page.all("script", "iframe", "object", "base")
    for attributes in page.all("img", "link", "a", "source", "image", "use"):
        address = attributes.get("src") or attributes.get("href") or ""
        assert address.startswith(("#", "data:")), address
    assert "@import" not in text
    assert "url(" not in text
    assert "://" not in text


def test_page_shows_every_digest_and_the_command(whole: Result, page: Page) -> None:
    values = whole.values
    for digest in (*values["purifiers"].values(), *values["classifiers"].values(), values["image_list_sha256"]):
        assert digest in page.words
    assert values["image_list"] in page.words
    assert f"torch {values['versions']['torch']}" in page.words
    assert "maep evaluate --x y" in page.words


def test_page_shows_every_cell_of_every_table_and_every_check(whole: Result, page: Page) -> None:
    for shown in (*table.headline(whole), *(each for section in table.sections(whole) for each in section.tables)):
        for row in shown.rows:
            assert all(cell in page.words for cell in row)
    for entry in whole.values["sanity"]:
        for check in entry["checks"]:
            assert check["name"] in page.words
            assert check["detail"] in page.words


def test_page_is_accessible_to_screen_readers(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 8
    assert [attributes["alt"] for attributes in page.all("img") if attributes.get("alt")] != []
    assert all(attributes.get("alt") for attributes in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"] for attributes in page.all("a")} <= {f"#{target}" for target in targets}


def test_threat_models_never_share_a_table(whole: Result) -> None:
    found = table.sections(whole)
    assert {section.threat for section in found} >= {"oblivious", "adaptive"}
    for section in found:
        assert section.words
        assert len(section.tables) >= 1
        assert all(f", {section.threat}" in shown.title for shown in section.tables)


def test_verdict_gives_the_adaptive_accuracy_before_the_lower_bar(whole: Result) -> None:
    said = {(each.purifier, each.classifier): each.text for each in verdict.verdicts(whole)}
    assert {purifier for purifier, _ in said} == set(whole.values["purifiers"]) - set(whole.values["baselines"])
    text = said["maep", "cifar10_resnet20"]
    adaptive = whole.figure("maep", "cifar10_resnet20", "adaptive", 8 / 255)
    oblivious = whole.figure("maep", "cifar10_resnet20", "oblivious", 8 / 255)
    bare = whole.figure("none", "cifar10_resnet20", "oblivious", 8 / 255)
    for cell in (verdict.cell(adaptive), verdict.cell(oblivious), f"{100 * bare.accuracy:.1f} %"):
        assert cell in text
    assert text.index(verdict.cell(adaptive)) < text.index(verdict.cell(oblivious))


def test_verdict_falls_back_to_bpda_only_without_adaptive_attacks(whole: Result) -> None:
    jpeg = only(whole, lambda figure: figure.purifier == "jpeg-q50")
    jpeg.values["purifiers"] = {"jpeg-q50": jpeg.values["purifiers"]["jpeg-q50"]}
    for each in verdict.verdicts(jpeg):
        assert verdict.cell(whole.figure("jpeg-q50", each.classifier, "bpda", 8 / 255)) in each.text
    oblivious = only(whole, lambda figure: figure.threat in ("clean", "oblivious"))
    for each in verdict.verdicts(oblivious):
        assert len(re.findall(r"\[", each.text)) == 2  # two intervals: oblivious and clean


def only(result: Result, keep: Any) -> Result:
    figures = [dataclasses.asdict(figure) for figure in result.figures if keep(figure)]
    return Result(result.folder, {**result.values, "figures": figures})


def test_unreliable_defences_come_before_everything_else(whole: Result, tmp_path: Path) -> None:
    def fail(values: dict[str, Any]) -> None:
        entry = next(entry for entry in values["sanity"] if entry["purifier"] == "maep")
        entry["checks"][0].update(passed=False, detail="seen in training mode")

    report.write_report(changed(whole, tmp_path / "a", fail), tmp_path / "report.html", {})
    page = Page((tmp_path / "report.html").read_text())
    assert next(a["aria-labelledby"] for a in page.all("section")) == "unreliable"
    assert "seen in training mode" in page.words
    assert "maep in front of cifar10_resnet20 (unreliable)" in page.words

    def pass_all(values: dict[str, Any]) -> None:
        values["flags"] = []
        for check in (check for entry in values["sanity"] for check in entry["checks"]):
            check["passed"] = True

    honest = Page(page_of(changed(whole, tmp_path / "b", pass_all), tmp_path))
    assert "unreliable" not in {a["aria-labelledby"] for a in honest.all("section")}


def page_of(result: Result, folder: Path) -> str:
    report.write_report(result, folder / "page.html", {})
    return (folder / "page.html").read_text(encoding="utf-8")


def test_names_are_escaped(whole: Result, tmp_path: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        values["purifiers"] = {EVIL if name == "maep" else name: sha for name, sha in values["purifiers"].items()}
        for entry in (*values["figures"], *values["sanity"]):
            if entry["purifier"] == "maep":
                entry["purifier"] = EVIL
        values["sanity"][0]["checks"][0].update(passed=False, detail=EVIL)
        values["flags"] = [{"purifier": EVIL, "classifier": EVIL, "flag": EVIL, "detail": EVIL}]
        values["machine"] = {"processor": EVIL}

    def rename_rows(rows: pa.Table) -> pa.Table:
        names = pc.if_else(pc.equal(rows["purifier"], "maep"), EVIL, rows["purifier"])
        return rows.set_column(rows.column_names.index("purifier"), "purifier", names)

    evil = changed(whole, tmp_path / "a", rename, rename_rows)
    report.write_report(evil, tmp_path / "report.html", {EVIL: png()}, EVIL)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    assert page.words.count(EVIL) > 10
    assert [attributes["alt"] for attributes in page.all("img") if (attributes["alt"] or "").startswith(EVIL)]


def test_changed_rows_make_no_report(whole: Result, tmp_path: Path) -> None:
    other = changed(whole, tmp_path / "a")
    (tmp_path / "a" / "images.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"images\.parquet"):
        report.write_report(other, tmp_path / "report.html", {})
    assert not (tmp_path / "report.html").exists()


def test_a_curve_starts_at_the_clean_accuracy_of_the_same_images(whole: Result) -> None:
    rows = whole.rows()
    drawn = next(chart for chart in curves.charts(whole, rows) if chart.title.startswith("cifar10_resnet20, adaptive"))
    line = next(curve for curve in drawn.curves if curve.name == "maep")
    frame = rows.to_pandas()
    mine = frame[(frame["purifier"] == "maep") & (frame["classifier"] == "cifar10_resnet20")]
    attacked = mine[mine["threat"] == "adaptive"]["index"].unique()
    clean = mine[(mine["threat"] == "clean") & mine["index"].isin(attacked)]
    assert line.points[0].accuracy == clean["correct"].mean()
    assert line.points[-1].accuracy == whole.figure("maep", "cifar10_resnet20", "adaptive", 8 / 255).accuracy
    assert [point.label for point in line.points][0 :: len(line.points) - 1] == ["0", "8"]
    assert "PGD" in drawn.note


def test_curves_over_steps_and_eot_are_drawn_but_not_tabulated(whole: Result, tmp_path: Path) -> None:
    like = whole.figure("maep", "cifar10_resnet20", "adaptive", 2 / 255)
    figures = [
        dataclasses.replace(like, threat="adaptive-steps", attack=f"PGD-{steps}", steps=steps, accuracy=0.111)
        for steps in (20, 1, 5)
    ]
    figures += [dataclasses.replace(like, threat="adaptive-eot", attack="PGD-20", eot=eot) for eot in (1, 20)]
    with_curves = changed(
        whole, tmp_path / "a", lambda values: values["figures"].extend(map(dataclasses.asdict, figures))
    )
    drawn = {chart.title: chart for chart in curves.charts(with_curves, whole.rows())}
    steps = drawn["cifar10_resnet20, adaptive PGD at 2/255 over steps"]
    assert [point.x for point in steps.curves[0].points] == [1, 5, 20]
    assert steps.scale == "log"
    eot = drawn["cifar10_resnet20, adaptive PGD-20 at 2/255 over EOT"]
    assert [point.label for point in eot.curves[0].points] == ["1", "20"]
    assert not {"adaptive-steps", "adaptive-eot"} & {section.threat for section in table.sections(with_curves)}
    assert "over steps" in page_of(with_curves, tmp_path)


def test_each_norm_has_its_own_section(whole: Result, tmp_path: Path) -> None:
    added = [
        dataclasses.replace(figure, norm="L2", eps=0.5)
        for figure in whole.figures
        if figure.threat == "adaptive" and figure.eps > 0.03
    ]
    both = changed(whole, tmp_path / "a", lambda values: values["figures"].extend(map(dataclasses.asdict, added)))
    found = [(section.threat, section.norm) for section in table.sections(both)]
    assert found.index(("adaptive", "Linf")) + 1 == found.index(("adaptive", "L2"))
    assert "L2 0.5" in page_of(both, tmp_path)
    heads = [head for section in table.sections(both) for shown in section.tables for head in shown.header]
    assert not [head for head in heads if "127.5/255" in head]


def test_randomised_purifiers_get_a_table_of_draws(whole: Result) -> None:
    assert table.draws(whole.figures) is None
    like = whole.figure("maep", "cifar10_resnet20", "adaptive", 8 / 255)
    drawn = dataclasses.replace(like, num_draws=10, mean_accuracy=0.321, worst_accuracy=0.123)
    shown = table.draws([*whole.figures, drawn])
    assert shown is not None
    assert shown.rows == (
        ("maep", "cifar10_resnet20", "adaptive 8/255", "1", "10", table.percent(like), "32.1", "12.3"),
    )


def test_page_shows_flags_and_cost(whole: Result, tmp_path: Path) -> None:
    flag = {"purifier": "conv", "classifier": "cifar10_resnet20", "flag": "square beats adaptive", "detail": "by 3.1"}
    page = Page(page_of(changed(whole, tmp_path / "a", lambda values: values.update(flags=[flag])), tmp_path))
    assert "square beats adaptive" in page.words
    assert f"{whole.values['forward_passes']:,}" in page.words


def chart(*points: CurvePoint, scale: Any = "linear", name: str = "a", place: int = 0) -> Chart:
    return Chart("t", "x", (Curve(name, place, tuple(points)),), scale)


def at(x: float, accuracy: float = 0.5, low: float = 0.4, high: float = 0.6) -> CurvePoint:
    return CurvePoint(accuracy, low, high, x, f"label{x:g}")


def test_chart_draws_accuracies_and_their_intervals() -> None:
    (axes,) = curves.draw(chart(at(0, 0.5, 0.4, 0.7), at(2, 0.5, 0.2, 0.6))).axes
    line = axes.lines[0].get_xydata()
    assert line.tolist() == [[0, 50], [2, 50]]
    bars, band = axes.collections
    assert [[round(y) for _, y in bar] for bar in bars.get_segments()] == [[40, 70], [20, 60]]
    heights = band.get_paths()[0].vertices[:, 1]
    assert {round(height) for height in heights} == {40, 70, 20, 60}
    (alone,) = curves.draw(chart(at(3))).axes
    assert len(alone.collections) == 1  # its bar: one point has no band
    assert curves.draw(chart(at(1), at(10), scale="log")).axes[0].get_xscale() == "log"


def test_crowded_tick_labels_are_left_out() -> None:
    (axes,) = curves.draw(chart(at(0), at(1), at(100))).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["label0", "", "label100"]


def test_any_name_can_be_drawn() -> None:
    for name in (EVIL, "$x$ and $", "_private", "x" * 300):
        figure = curves.draw(chart(at(0), name=name))
        (text,) = figure.axes[0].get_legend().get_texts()
        assert text.get_text().strip()[:3] == name[:3]
        assert b"<script" not in drawing.svg(figure)


def test_series_differ_by_marker() -> None:
    markers = {curves.draw(chart(at(0), place=place)).axes[0].lines[0].get_marker() for place in range(4)}
    assert len(markers) == 4


def test_the_same_chart_gives_the_same_bytes() -> None:
    for encode in (drawing.png, drawing.svg):
        assert encode(curves.draw(chart(at(0), at(1)))) == encode(curves.draw(chart(at(0), at(1))))


def test_svg_follows_the_colour_scheme() -> None:
    text = drawing.svg(curves.draw(chart(at(0), at(1)))).decode()
    rules, _, shapes = text.partition("</style>")
    assert "prefers-color-scheme:dark" in rules
    assert "var(--" in shapes
    assert not {drawing.INK, drawing.COLOURS[0]} & set(re.findall("#[0-9a-f]{6}", shapes))


def test_worst_cases_are_sorted_by_eps_and_share_one_norm(whole: Result) -> None:
    found: list[Figure] = verdict.worst_cases(whole, "maep", "cifar10_resnet20", "adaptive")
    assert [figure.eps for figure in found] == sorted(figure.eps for figure in found)
    assert {(figure.attack, figure.norm) for figure in found} == {(WORST, "Linf")}
