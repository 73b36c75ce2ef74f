"""The page of a search in a real Chromium: light and dark, desktop and phone, printed, without the network."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Watch
from searches import grid, settings, trial, write

from maep.tune import results
from maep.tune.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with two objectives, a reference of a long name, and a failure of a long reason."""
    conv = trial(11, {"finetune.model": {"name": "conv", "channels": [16] * 40}}, 0.29, latency_ms=1.0)
    failed = trial(12, {"mask_ratio": 0.5, "patch_size": 8}, None, "failed", 0, "x" * 300)
    folder = tmp_path_factory.mktemp("search")
    asked = settings(objectives=["adaptive_accuracy", "latency_ms"], halving={"num_rungs": 2, "factor": 4})
    return report.write_report(results.read(write(folder, [*grid(), conv, failed], asked)), "y" * 400)[0]


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_or_horizontal_scrolling(
    browser: playwright.Browser, file: Path, scheme: str, width: int
) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        watch = Watch(page)
        page.goto(file.as_uri())
        assert page.locator("html").evaluate("e => e.scrollWidth") <= width
        assert page.locator("img").evaluate_all("all => all.every(e => e.complete && e.naturalWidth > 0)")
        for picture in page.locator(".charts img").all():
            box = picture.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["width"] > 0.75 * min(width, 320)
        assert watch.errors == []
        assert watch.outside(file.as_uri()) == []


def test_tables_of_charts_are_printed(browser: playwright.Browser, file: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(file.as_uri())
        page.emulate_media(media="print")
        hidden = "all => all.filter(e => e.getBoundingClientRect().height === 0).length"
        assert page.locator("details table").evaluate_all(hidden) == 0
        assert len(page.pdf()) > 20_000
