"""The page and its Content-Security-Policy: nothing runs or is loaded but what this very file holds (CSP level 3)."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re


@functools.cache
def page() -> tuple[str, str]:
    """The page's HTML, and the policy that allows its own script and style by their sha256, and pictures it makes."""
    text = importlib.resources.files("maep_serve").joinpath("page/index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(text, 'script')}; style-src {_hashes(text, 'style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hashes(text: str, element: str) -> str:
    inside = re.findall(rf"<{element}>(.*?)</{element}>", text, re.S)
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inside)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
