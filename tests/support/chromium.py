"""Checks of a page in a real browser: errors, requests and text contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

_CONTRASTS = r"""(_, kinds) => kinds.map(kind => {
  const parse = text => text.match(/[\d.]+/g).slice(0, 3).map(v => {
    const c = v / 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; });
  const light = text => { const [r, g, b] = parse(text); return .2126 * r + .7152 * g + .0722 * b; };
  let ground = document.querySelector(kind), found = getComputedStyle(ground).color;
  while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  const [a, b] = [light(found), light(getComputedStyle(ground).backgroundColor)].sort((a, b) => a - b);
  return (b + .05) / (a + .05); })"""


class Watch:
    """What a page that is opened next does: `errors` of its script and console, `asked`: each URL that it fetches."""

    def __init__(self, page: Page) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.asked.append(request.url))

    def outside(self, *own: str) -> list[str]:
        """What it fetched that does not begin with one of `own`, nor is part of the page."""
        return [url for url in self.asked if not url.startswith((*own, "data:", "blob:"))]


def faint(page: Page, kinds: Sequence[str]) -> dict[str, float]:
    """The first element of each of `kinds` (selectors) whose contrast is below the 4.5 of WCAG 2.1, with its own."""
    ratios = page.locator("html").evaluate(_CONTRASTS, list(kinds))
    return {kind: ratio for kind, ratio in zip(kinds, ratios, strict=True) if ratio < 4.5}
