"""The page of a search shows every figure, says what is missing, and can be made from any search."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from pathlib import Path

import pytest
from pages import Page
from PIL import Image
from searches import grid, settings, trial, write

from maep.tune import results
from maep.tune.record import TrialRecord
from maep.tune.report import report
from maep.tune.report.sections import all_sections
from maep.tune.results import SearchResult

EVIL = '<script>alert("1")</script>&\'" onerror=x'
TWO = ["adaptive_accuracy", "latency_ms"]
HALVING = {"num_rungs": 2, "factor": 4}


def page_of(folder: Path) -> Page:
    return Page((folder / report.REPORT).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with repeats, a reference, a stopped and a failed trial and two objectives; with its page."""
    conv = trial(11, {"finetune.model.name": "conv"}, 0.29, latency_ms=1.0, clean_accuracy=0.93)
    asked = settings(objectives=TWO, halving=HALVING, limits={"latency_ms": 3.0})
    folder = write(tmp_path_factory.mktemp("search"), [*grid(), conv], asked)
    report.write_report(results.read(folder), "maep tune --config x")
    return folder


def test_page_is_self_contained(whole: Path) -> None:
    page = page_of(whole)
    assert not page.all("script", "iframe", "object", "base")
    for attributes in page.all("img", "link", "a", "source", "image", "use"):
        address = attributes.get("src") or attributes.get("href") or ""
        assert address.startswith(("#", "data:")), address
    text = (whole / report.REPORT).read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text
    assert "://" not in text


def test_every_chart_is_on_the_page_and_a_png_beside_it(whole: Path) -> None:
    names = {path.stem for path in whole.glob("*.png")}
    assert names >= {"map-adaptive_accuracy", "map-latency_ms", "map-clean_accuracy"}
    assert "front-adaptive_accuracy-latency_ms" in names
    assert len(page_of(whole).all("img")) == len(names)
    for path in whole.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 250
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 5, path  # not an empty sheet


def test_every_charted_value_is_also_in_a_table(whole: Path) -> None:
    words = page_of(whole).words
    for section in all_sections(results.read(whole)):
        for picture in section.pictures:
            assert picture.said in words
            assert picture.table.rows
            assert all(cell in words for row in picture.table.rows for cell in row)
    for text in (
        "45.0 [40.7, 49.4]",
        "loss is NaN at step 12",
        "stopped early",
        "maep tune --config x",
        "30,000 of 440,000",
    ):
        assert text in words


def test_verdict_names_the_best_trial_the_limit_and_overlapping_cells(whole: Path) -> None:
    first, on_map, warning = report.verdict(results.read(whole))
    assert "trial 4 (mask_ratio 0.5, patch_size 4), 45.0 % [40.7, 49.4]" in first
    assert "3.00 ms" in first
    assert "4 of 7" in on_map
    assert "maep evaluate" in warning


def test_page_is_accessible_to_screen_readers(whole: Path) -> None:
    page = page_of(whole)
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"] for attributes in page.all("a")} <= {f"#{target}" for target in targets}


def test_reasons_and_settings_are_escaped(tmp_path: Path) -> None:
    failed = trial(1, {"mask_ratio": EVIL, "patch_size": 2}, None, "failed", reason=EVIL)
    write(tmp_path, [trial(0, {"mask_ratio": 0.5, "patch_size": 4}), failed])
    report.write_report(results.read(tmp_path), EVIL)
    page = page_of(tmp_path)
    assert not page.all("script")
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    assert page.words.count(EVIL) > 2


def odd() -> dict[str, tuple[list[TrialRecord], dict[str, object], str]]:
    """Incomplete searches, and a word that their page must contain."""
    one, failed = trial(0, {"mask_ratio": 0.5}), trial(0, {"mask_ratio": 0.5}, None, "failed", 0, "out of memory")
    ratio = {"space": {"mask_ratio": {"uniform": [0.2, 0.8]}}}
    several = [trial(i, {"mask_ratio": 0.3 + 0.1 * i}, 0.4) for i in range(4)]
    stopped = [dataclasses.replace(each, status="stopped") for each in several]
    return {
        "one trial": ([one], ratio, "0.5"),
        "all failed": ([failed], ratio, "out of memory"),
        "all stopped": (stopped, {**ratio, "halving": HALVING}, "stopped"),
        "no patch size": (several, ratio, "mask_ratio 0.3"),
        "only latency": (
            [trial(i, {"patch_size": size}, None, latency_ms=1.0 + i) for i, size in enumerate((2, 4))],
            {"space": {"patch_size": {"choice": [2, 4]}}, "objectives": ["latency_ms"]},
            "1.00 ms at patch_size 2",
        ),
        "a limit that no trial meets": (
            [trial(0, {"mask_ratio": 0.5}, latency_ms=5.0)], {**ratio, "limits": {"latency_ms": 1}}, "5"
        ),
        "words as values": (
            [trial(i, {"finetune.loss.teacher": word}, 0.4 + 0.1 * i) for i, word in enumerate(("first", "attacked"))],
            {"space": {"finetune.loss.teacher": {"choice": ["first", "attacked"]}}},
            "teacher attacked",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(odd()))
def test_page_can_be_made_from_any_search(name: str, tmp_path: Path) -> None:
    trials, asked, said = odd()[name]
    result = results.read(write(tmp_path, trials, settings(**asked)))
    results.write(result)
    report.write_report(result)
    assert said in page_of(tmp_path).words


def test_the_same_search_gives_identical_pictures(tmp_path: Path) -> None:
    first, again = (write(tmp_path / name, grid()[:3]) for name in ("one", "two"))
    for folder in (first, again):
        report.write_report(results.read(folder))
    for path in first.glob("*.png"):
        assert path.read_bytes() == (again / path.name).read_bytes()


def importances(result: SearchResult) -> list[str]:
    section = next(section for section in all_sections(result) if section.key == "importance")
    report.write_report(result)
    assert all(cell in page_of(result.folder).words for table in section.tables for row in table.rows for cell in row)
    return section.remarks


def test_importance_is_reported_for_enough_trials(tmp_path: Path) -> None:
    space = settings(space={"mask_ratio": {"uniform": [0.2, 0.8]}, "patch_size": {"choice": [2, 4, 8]}}).space
    chance = random.Random(0)
    trials = []
    for number in range(15):
        values = {key: axis.at(chance.random()) for key, axis in space.items()}
        trials.append(trial(number, values, 0.2 + 0.5 * values["mask_ratio"]))
    asked = settings(space={"mask_ratio": {"uniform": [0.2, 0.8]}, "patch_size": {"choice": [2, 4, 8]}})
    said, _ = importances(results.read(write(tmp_path / "many", trials, asked)))
    assert said.startswith("mask_ratio ")
    (said,) = importances(results.read(write(tmp_path / "few", trials[:5], asked)))
    assert "5" in said
    assert "12" in said
