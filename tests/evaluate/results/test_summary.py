"""Figures are computed from the rows alone; tables and example images show them."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.errors import DataError
from maep.evaluate import baselines
from maep.evaluate.report import pictures, table
from maep.evaluate.results import rows, summary
from maep.evaluate.results.summary import WORST, Result
from maep.models.classifiers.load import Classifier


def test_rows_reproduce_every_figure(result: Result) -> None:
    again = summary.summarise(rows.read(result.folder / summary.IMAGES))
    written = json.loads((result.folder / summary.RESULT).read_text())["figures"]
    assert [asdict(figure) for figure in again] == written
    frame = result.rows().to_pandas()
    oblivious = frame[(frame["purifier"] == "conv") & (frame["threat"] == "oblivious")]
    by_hand = oblivious.groupby("index")["correct"].all().mean()
    assert result.figure("conv", "digits_resnet8", "oblivious", 8 / 255).accuracy == by_hand
    single = result.figure("conv", "digits_resnet8", "oblivious", 8 / 255, "FGSM")
    assert single.accuracy == oblivious[oblivious["attack"] == "FGSM"]["correct"].mean() >= by_hand


def test_intervals_match_wilson() -> None:
    assert summary.interval(410, 1000) == pytest.approx((0.37995, 0.44077), abs=1e-4)
    assert summary.interval(0, 100)[0] == 0


def test_changed_rows_are_refused(result: Result, tmp_path: Path) -> None:
    copy = shutil.copytree(result.folder, tmp_path / "copy")
    table_of = result.rows()
    (copy / summary.IMAGES).write_bytes(rows.encode(table_of.slice(1)))
    with pytest.raises(DataError, match=r"images\.parquet"):
        summary.read(copy).rows()
    (copy / summary.RESULT).unlink()
    with pytest.raises(DataError, match=r"result\.json"):
        summary.read(copy)


def test_result_records_what_was_measured(result: Result, purifier: Artifact) -> None:
    values = result.values
    assert values["purifiers"]["conv"] == purifier.sha256
    assert (values["dataset"], values["split"], values["preset"]) == ("digits", "dev", "quick")
    assert values["forward_passes"] > 24 * 100
    assert not (result.folder / "parts").exists()


def test_threat_models_never_share_a_column(result: Result) -> None:
    (headline,) = table.headline(result)
    assert headline.header == (
        "purifier",
        "clean",
        "adaptive 2/255",
        "adaptive 8/255",
        "bpda 2/255",
        "bpda 8/255",
        "oblivious 8/255",
    )
    by_name = {row[0]: row for row in headline.rows}
    assert by_name["jpeg-q50"][2:4] == ("–", "–")
    assert by_name["none"][4:6] == ("–", "–")
    adaptive, bpda, oblivious = (each for section in table.sections(result) for each in section.tables)
    assert "lower bar" in oblivious.title
    assert oblivious.header == ("purifier", "clean", "FGSM", "PGD-20", "APGD-CE-20", WORST)
    assert [row[0] for row in bpda.rows] == ["jpeg-q50"]
    assert [row[0] for row in adaptive.rows] == ["none", "conv"]


def test_columns_name_their_number_of_images_where_it_is_smaller(result: Result) -> None:
    values = json.loads(json.dumps(result.values))
    for figure in values["figures"]:
        if figure["threat"] in ("bpda", "adaptive"):
            figure["num_images"] = 8
    fewer = Result(result.folder, values)
    (headline,) = table.headline(fewer)
    assert headline.title == "digits_resnet8, 24 images of digits-dev[:24]"
    assert headline.header[1:4] == ("clean", "adaptive 2/255 (first 8)", "adaptive 8/255 (first 8)")
    assert headline.header[-1] == "oblivious 8/255"
    lines = {line.partition(":")[0]: line for line in table.notes(fewer)}
    assert "first 8 images" in lines["adaptive"]
    assert "first" not in lines["oblivious"]
    assert not any("first" in line for line in table.notes(result))
    screen = io.StringIO()
    Console(file=screen, width=120).print(table.terminal(fewer))
    assert "adaptive: the first 8 of 24 images of digits-dev[:24]" in screen.getvalue()
    assert "clean (all 24)" in screen.getvalue()  # beside them in the same table
    assert table.sections(fewer)[-1].tables[0].header[1] == "clean"


def test_terminal_and_markdown_show_the_same_cells(result: Result) -> None:
    screen = io.StringIO()
    Console(file=screen, width=100).print(table.terminal(result))
    text = table.markdown(table.headline(result), table.notes(result))
    clean = result.figure("conv", "digits_resnet8", "clean")
    cell = f"{100 * clean.accuracy:.1f} [{100 * clean.low:.1f}, {100 * clean.high:.1f}]"
    assert cell in screen.getvalue()
    assert f"| conv | {cell} |" in text
    assert "…" not in screen.getvalue()


def test_unreliable_defences_are_marked(result: Result) -> None:
    values = json.loads(json.dumps(result.values))
    values["sanity"][-1]["checks"][0]["passed"] = False
    flagged = Result(result.folder, values)
    assert list(flagged.unreliable) == ["conv"]
    assert "conv (unreliable)" in table.markdown(table.headline(flagged))
    assert any(line.startswith("conv ") and "eval mode" in line for line in table.notes(flagged))


def test_strip_draws_images_and_amplified_differences(classifier: Classifier) -> None:
    digits = load(DataConfig("digits"), "dev")
    clean = digits.pixels(range(3))
    attacked = np.clip(clean.astype(int) + 8, 0, 255).astype(np.uint8)
    png = pictures.strip(
        classifier, baselines.build("blur"), clean, attacked, digits.labels[:3].tolist(), digits.classes
    )
    drawn = Image.open(io.BytesIO(png))
    assert drawn.size[0] > 500
    assert drawn.size[1] > 300
    assert len(drawn.getcolors(1 << 22)) > 50
    change = pictures.difference(attacked, clean)
    assert (change == np.clip(128 + 8 * (attacked.astype(int) - clean), 0, 255)).all()
