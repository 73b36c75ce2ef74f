"""What the reports share: the page that they are set in, and pictures inside it."""

from __future__ import annotations

import base64
from functools import cache

import jinja2

_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"<?xml": "image/svg+xml"}


@cache
def environment(package: str) -> jinja2.Environment:
    """The templates of `package`, and those of this one below them: page.html, grid.html.

    Escapes whatever a name or a detail holds; a word that the page lacks is an error.
    """
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(each, ".") for each in (package, "maep.evaluate.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(name: str, picture: bytes) -> str:
    """A PNG or SVG as an address that holds it; `name` is for the message."""
    kind = next((kind for start, kind in _KINDS.items() if picture.startswith(start)), None)
    assert kind is not None, f"{name}: neither PNG nor SVG"
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"
