"""Writes `report.html`, an evaluation as one self-contained page: no script, no font, no external address.

Its sections answer a hostile reviewer: what was evaluated, the verdict, each threat model, curves over budget and
effort, example images, sanity checks, cost, and how to recompute every figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maep import storage
from maep.evaluate.report import curves, page, table, verdict
from maep.evaluate.report.table import MARK, Table
from maep.evaluate.results import summary
from maep.evaluate.results.summary import Result

REPORT = "report.html"


def write_report(result: Result, path: str | Path, strips: Mapping[str, bytes], command: str | None = None) -> None:
    """Writes the page of `result` to `path`.

    `strips` maps a description to the PNG of example images. `command` is the command line that made the result, where
    it is known. Raises DataError where images.parquet is not the one of the result.
    """
    rows = result.rows()
    drawn = [curves.picture(chart, f"curve-{place}") for place, chart in enumerate(curves.charts(result, rows))]
    text = (
        page.environment("maep.evaluate.report")
        .get_template("report.html")
        .render(
            values=result.values,
            title=f"{', '.join(result.evaluated or result.values['baselines'])} on {result.values['dataset']}",
            facts=_facts(result.values),
            digests=_digests(result.values),
            unreliable=result.unreliable,
            verdicts=verdict.verdicts(result),
            headline=table.headline(result),
            notes=table.notes(result),
            sections=table.sections(result),
            draws=table.draws(result.figures),
            charts=drawn,
            uris=page.svg_uris(drawn),
            strips={name: page.data_uri(png) for name, png in strips.items()},
            sanity=result.values["sanity"],
            flags=result.values.get("flags", []),
            cost=_cost(result.values),
            command=command,
            configuration=yaml.safe_dump(result.values["config"], sort_keys=False),
            num_rows=rows.num_rows,
            mark=MARK,
        )
    )
    storage.write_bytes(Path(path), text.encode())


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Images, preset, seed, versions and machine."""
    return {
        "images": f"{values['num_images']:,} of the list {values['image_list']}, split {values['split']}",
        "preset": str(values["preset"]),
        "seed": str(values["seed"]),
        "versions": ", ".join(f"{name} {version}" for name, version in values["versions"].items()),
        "machine": ", ".join(f"{key} {each}" for key, each in values["machine"].items()),
    }


def _digests(values: Mapping[str, Any]) -> Table:
    kinds = {name: "baseline" if name in values["baselines"] else "purifier" for name in values["purifiers"]}
    body = [(kinds[name], name, sha) for name, sha in values["purifiers"].items()]
    body += [("classifier", name, sha) for name, sha in values["classifiers"].items()]
    body += [("image list", values["image_list"], values["image_list_sha256"])]
    body += [("rows", summary.IMAGES, values["images_sha256"])]
    return Table("Inputs by digest", ("what", "name", "sha256"), tuple(body))


def _cost(values: Mapping[str, Any]) -> Table:
    """Forward passes and processor time of each set of attacked images and of the whole evaluation."""
    sets = {f"attacked images: {name}": took for name, took in values.get("attacked_images_cost", {}).items()}
    body = [
        (name, *(f"{took[key]:,}" if took else "unknown" for key in ("forward_passes", "thread_seconds")))
        for name, took in {**sets, "the whole evaluation": values}.items()
    ]
    return Table("Cost", ("part", "forward passes (images)", "core-seconds"), tuple(body))
