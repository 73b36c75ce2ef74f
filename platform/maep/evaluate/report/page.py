"""The frame that every report shares: its templates, and charts and images held inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import jinja2

from maep.evaluate.report import drawing
from maep.evaluate.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A chart on a page: file stem, title, one sentence from its values, all its values, and how to read it."""

    name: str
    title: str
    said: str
    table: Table
    figure: Figure
    note: str = ""


@cache
def environment(package: str) -> jinja2.Environment:
    """The templates of `package`, then the shared ones beside this module. Escapes text; an undefined name fails."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(each, ".") for each in (package, "maep.evaluate.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def svg_uris(pictures: Iterable[Picture]) -> dict[str, str]:
    """The charts as data URIs, by name."""
    return {each.name: data_uri(drawing.svg(each.figure), "image/svg+xml") for each in pictures}


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """An address that holds `content`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
