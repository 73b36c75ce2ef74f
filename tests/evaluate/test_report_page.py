"""The report in a real Chromium: light and dark, at a desk and on a phone, on paper, and without the network."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from chromium import Watch, faint
from evaluations import bundled, changed
from PIL import Image

from maep.evaluate.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled evaluation with a failed check of a long name, a flag and a picture."""
    folder = tmp_path_factory.mktemp("report")

    def fail(values: dict) -> None:
        values["sanity"][-1]["checks"][0].update(passed=False, detail="x" * 300)
        values["flags"] = [{"purifier": "conv", "classifier": "c", "flag": "f", "detail": "word " * 60}]

    picture = io.BytesIO()
    Image.new("RGB", (620, 400), "grey").save(picture, "PNG")
    path = folder / "report.html"
    report.write_report(changed(bundled(), folder / "result", fail), path, {"maep" * 40: picture.getvalue()}, "y" * 400)
    return path


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
        paper = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 3 * 128) == (scheme == "dark")
        playwright.expect(page.locator("details[open]")).to_have_count(2)  # the failed check, and one of JPEG's own
        playwright.expect(page.locator(".alarm")).to_contain_text("conv")
        for chart in page.locator(".charts img").all():
            box = chart.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        assert watch.errors == []
        assert watch.outside(file.as_uri()) == []


def test_text_has_enough_contrast(browser: playwright.Browser, file: Path) -> None:
    """WCAG 2.1 contrast of 4.5 in both schemes for words of every kind."""
    kinds = ["p", ".lead", "td", "caption", "a", ".good", ".bad", ".alarm li", ".alarm h2", "pre", "figcaption"]
    for scheme in ("light", "dark"):
        with browser.new_context(color_scheme=scheme) as context:
            page = context.new_page()
            page.goto(file.as_uri())
            assert faint(page, kinds) == {}


def test_printing_expands_collapsed_sections(browser: playwright.Browser, file: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(file.as_uri())
        page.emulate_media(media="print")
        hidden = "all => all.filter(e => e.getBoundingClientRect().height === 0).length"
        assert page.locator("details table").evaluate_all(hidden) == 0
        assert len(page.pdf()) > 20_000
