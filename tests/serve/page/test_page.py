"""The page in a real Chromium: by mouse, by keyboard, at phone width, and without anything from outside."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Watch, faint
from PIL import Image
from serving import serving

from maep_serve.api import create_api
from maep_serve.engine.service import Service
from maep_serve.engine.suspicion import Calibration
from maep_serve.http.tokens import Tokens, digest_of

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(config, models) -> Iterator[str]:
    with serving(create_api(Service(config, models))) as url:
        yield f"{url}/"


@pytest.fixture
def page(browser: playwright.Browser, url: str) -> Iterator[playwright.Page]:
    """The page, open, its first sample attacked; every request it makes and every error of its script is checked."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    watch = Watch(page)
    page.goto(url)
    settled(page)
    yield page
    context.close()
    assert watch.errors == []
    assert watch.outside(url) == []


def settled(page: playwright.Page) -> None:
    playwright.expect(page.locator("#purified li")).to_have_count(5, timeout=30_000)
    playwright.expect(page.locator("#pictures")).to_have_attribute("aria-busy", "false")


def picture(page: playwright.Page, name: str) -> list[int]:
    """Red, green, blue, alpha of every pixel that is shown."""
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    return page.locator(f"#{name} canvas").evaluate(read)


def test_it_shows_clean_attacked_purified_and_the_difference(page: playwright.Page, models):
    clean, attacked, purified = (picture(page, name) for name in ("clean", "attacked", "purified"))
    assert len(clean) == len(attacked) == len(purified) == 16 * 16 * 4
    change = [b - a for a, b in zip(clean, attacked, strict=True)]
    assert 0 < max(map(abs, change)) <= 8
    assert purified != attacked
    expected = [255 if i % 4 == 3 else min(max(128 + 8 * d, 0), 255) for i, d in enumerate(change)]
    assert picture(page, "difference") == expected
    for name in ("clean", "attacked", "purified"):
        assert page.locator(f"#{name} li").count() == 5
    assert page.locator("#verdict b").count() == 3  # the classifier's classes: clean, attacked, purified
    assert models.purifier_sha256[:12] in page.inner_text("#served")
    assert "oblivious" in page.inner_text("#threat")


def test_a_budget_by_keyboard_changes_the_attack(page: playwright.Page):
    page.locator("#eps").focus()
    with page.expect_response(re.compile(r"/v1/attack\?.*eps=7")):
        page.keyboard.press("ArrowLeft")
    settled(page)
    assert page.inner_text("#eps-text") == "7/255"
    change = [b - a for a, b in zip(picture(page, "clean"), picture(page, "attacked"), strict=True)]
    assert max(map(abs, change)) <= 7


def test_every_control_is_reachable_by_tab(page: playwright.Page):
    focused = "() => { const e = document.activeElement; return e.id || e.name || e.parentElement.id; }"
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.locator("html").evaluate(focused))
    assert {"samples", "file", "fit", "attack", "eps", "pair", "gain"} <= set(reached)
    page.locator("#samples button").nth(3).focus()
    before = picture(page, "clean")
    with page.expect_response(re.compile("/v1/attack")):
        page.keyboard.press("Enter")
    settled(page)
    assert page.locator("#samples button").nth(3).get_attribute("aria-pressed") == "true"
    assert picture(page, "clean") != before


def test_an_uploaded_file(page: playwright.Page, png, tmp_path: Path):
    file = tmp_path / "own.png"
    file.write_bytes(png(60, 90, seed=3))
    with page.expect_response(re.compile("/v1/attack")):
        page.set_input_files("#file", str(file))
    settled(page)
    assert len(picture(page, "clean")) == 16 * 16 * 4
    with page.expect_response(re.compile("/v1/attack")):
        page.uncheck("#fit")
    settled(page)
    assert len(picture(page, "purified")) == 60 * 90 * 4


def test_a_file_that_is_not_an_image_shows_one_error_line(page: playwright.Page, tmp_path: Path):
    file = tmp_path / "note.png"
    file.write_text("hello")
    page.set_input_files("#file", str(file))
    playwright.expect(page.locator("#verdict .error")).to_have_text(re.compile(r"^[^\n]+$"))


def test_without_attack_it_purifies(page: playwright.Page):
    with page.expect_response(re.compile("/v1/classify")):
        page.locator("label:has([value=none])").click()
    playwright.expect(page.locator("#attacked")).to_be_hidden()
    settled(page)
    assert page.locator("#verdict b").count() == 2  # as given, purified


def test_the_purified_picture_can_be_saved(page: playwright.Page):
    with page.expect_download() as waiting:
        page.locator("#save").click()
    download = waiting.value
    assert download.suggested_filename == "purified.png"
    rgb = [value for i, value in enumerate(picture(page, "purified")) if i % 4 != 3]
    assert list(Image.open(download.path()).convert("RGB").tobytes()) == rgb


def test_controls_have_accessible_names_and_visible_focus(page: playwright.Page):
    """Accessible names as the browser computes them, and an outline of 3 px on whatever the keyboard reaches."""
    for role in ("button", "radio", "slider", "checkbox", "combobox", "link", "img"):
        found = page.get_by_role(role)
        assert found.count() > 0
        assert page.get_by_role(role, name=re.compile(r"\w")).count() == found.count()
    outline = """() => { const focused = document.activeElement;
      const shown = getComputedStyle(focused).opacity === "0" ? focused.closest("label") : focused;
      const style = getComputedStyle(shown);
      return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 3; }"""
    page.locator("body").click(position={"x": 1, "y": 1})
    for _ in range(16):
        page.keyboard.press("Tab")
        assert page.evaluate(outline), page.evaluate("() => document.activeElement.outerHTML")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser: playwright.Browser, url: str, scheme: str):
    """WCAG 2.1 contrast of 4.5 for words of every kind."""
    kinds = [
        "h1",
        "h1 span",
        "#served",
        ".drop",
        ".drop strong",
        ".small",
        "#verdict",
        "#verdict b",
        "figcaption",
        "li span",
    ]
    kinds += ["li span:last-child", "footer p", "footer a", ".choices label:has(:checked)", "#save", "button.plain"]
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(url)
        settled(page)
        page.locator("#token-card").evaluate("e => { e.hidden = false; }")
        assert faint(page, kinds) == {}


@pytest.mark.parametrize("width", [375, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_needs_no_horizontal_scrolling(browser: playwright.Browser, url: str, scheme: str, width: int):
    with browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(url)
        settled(page)
        assert page.locator("html").evaluate("e => e.scrollWidth") <= width
        for control in page.locator("#samples button, .choices label, #eps, #file, .check").all():
            box = control.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_a_required_token_is_asked_for_once(browser: playwright.Browser, config, models):
    app = create_api(Service(config, models), Tokens((digest_of("a-token"),)))
    with serving(app) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        playwright.expect(page.locator("#verdict .error")).to_be_visible(timeout=30_000)
        page.locator("#token").fill("a-token")
        page.keyboard.press("Enter")
        settled(page)
        playwright.expect(page.locator("#token-card")).to_be_hidden()
        assert "a-token" not in page.content()
        assert page.evaluate("() => [document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]


def test_without_a_classifier_it_still_purifies(browser: playwright.Browser, config, models):
    bare = dataclasses.replace(models, classifier=None, classifier_name=None, classes=())
    app = create_api(Service(dataclasses.replace(config, classifier=None), bare))
    with serving(app) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        playwright.expect(page.locator("#save")).to_be_visible(timeout=30_000)
        playwright.expect(page.locator("#attack-card")).to_be_hidden()
        assert len(picture(page, "purified")) == 16 * 16 * 4


def test_the_policy_blocks_other_scripts(browser: playwright.Browser, url: str):
    """A script that found its way into the page is refused by its hash."""
    inject = """() => new Promise(done => {
      document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective), { once: true });
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
    })"""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        assert page.evaluate(inject) == "script-src-elem"
        assert page.evaluate("() => window.ran") is None


@pytest.mark.parametrize(("least", "suspected"), [(0.0, "true"), (1.0, "false")])
def test_the_suspicion_score_is_shown(browser: playwright.Browser, config, models, least: float, suspected):
    """Calibrated so that every picture, or none, is changed more than clean ones were."""
    unchanged, changed = (least,) * 99, (least,) * 99 if least else ()
    calibration = Calibration(models.purifier_sha256, "0" * 64, "clean", "0" * 64, (16, 16), unchanged, changed)
    app = create_api(Service(config, dataclasses.replace(models, calibration=calibration)))
    with serving(app) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        settled(page)
        playwright.expect(page.locator("#suspicion")).to_have_attribute("data-suspected", suspected)
        assert "%" in page.inner_text("#suspicion")
