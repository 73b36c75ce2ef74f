"""The page in a real Chromium: by mouse, by keyboard, at phone width, and without anything from outside."""

from __future__ import annotations

import dataclasses
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from maep_serve.api import create_api
from maep_serve.service import Service

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt install chromium"),
]


@pytest.fixture(scope="module")
def url(config, models) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_api(Service(config, models))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: playwright.Browser, url: str) -> Iterator[playwright.Page]:
    """The page, open, its first sample attacked; every request it makes and every error of its script is checked."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else outside.append(r.url))
    page.goto(url)
    settled(page)
    yield page
    context.close()
    assert errors == []
    assert outside == []


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
    assert "The classifier says" in page.inner_text("#verdict")
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


def test_everything_is_reached_by_tab(page: playwright.Page):
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


def test_a_file_of_ones_own(page: playwright.Page, png, tmp_path: Path):
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


def test_a_file_that_is_no_image_is_one_line(page: playwright.Page, tmp_path: Path):
    file = tmp_path / "note.png"
    file.write_text("hello")
    page.set_input_files("#file", str(file))
    playwright.expect(page.locator("#verdict .error")).to_contain_text("choose a PNG or JPEG")


def test_without_attack_it_purifies(page: playwright.Page):
    with page.expect_response(re.compile("/v1/classify")):
        page.get_by_text("None", exact=True).click()
    playwright.expect(page.locator("#attacked")).to_be_hidden()
    settled(page)
    assert "after purification" in page.inner_text("#verdict")
    assert "attack" not in page.inner_text("#verdict")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_needs_no_sideways_scrolling(browser: playwright.Browser, url: str, scheme: str):
    with browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(url)
        settled(page)
        assert page.locator("html").evaluate("e => e.scrollWidth") <= 360


def test_without_a_classifier_it_still_purifies(browser: playwright.Browser, config, models):
    bare = dataclasses.replace(models, classifier=None, classifier_name=None, classes=())
    app = create_api(Service(dataclasses.replace(config, classifier=None), bare))
    with socket.socket() as listener, browser.new_context() as context:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            playwright.expect(page.locator("#verdict")).to_contain_text("Start the endpoint", timeout=30_000)
            playwright.expect(page.locator("#attack-card")).to_be_hidden()
            assert len(picture(page, "purified")) == 16 * 16 * 4
        finally:
            server.should_exit = True
            thread.join(30)
