"""Writes `report.html`, an evaluation as one self-contained page: no script, no font, no external address.

Sections follow a hostile reviewer's questions: what was evaluated, the verdict, each threat model, curves over budget
and effort, example images, sanity checks, cost, and how to recompute every figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maep import storage
from maep.evaluate.report import curves, page, verdict
from maep.evaluate.report.table import MARK, THREAT_TEXTS, Table, detailed, headline, notes
from maep.evaluate.results import summary
from maep.evaluate.results.summary import CURVES, THREATS, WORST, Figure, Result

REPORT = "report.html"


@dataclasses.dataclass(frozen=True)
class ThreatSection:
    """One threat model and norm: what the attacker knows, and a table per classifier."""

    threat: str
    norm: str
    words: str
    tables: list[Table]


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
            title=_title(result),
            facts=_facts(result),
            digests=_digests(result),
            unreliable=result.unreliable,
            verdicts=verdict.verdicts(result),
            headline=headline(_without_curves(result)),
            notes=notes(_without_curves(result)),
            sections=sections(result),
            draws=draws(result.figures),
            charts=drawn,
            uris=page.svg_uris(drawn),
            strips={name: page.data_uri(png) for name, png in strips.items()},
            sanity=result.values["sanity"],
            flags=result.values.get("flags", []),
            cost=_cost(result),
            command=command,
            configuration=yaml.safe_dump(result.values["config"], sort_keys=False),
            num_rows=rows.num_rows,
            mark=MARK,
        )
    )
    storage.write_bytes(Path(path), text.encode())


def sections(result: Result) -> list[ThreatSection]:
    """The tables, one section per threat model and norm: none shares a table with another."""
    measured = {(figure.threat, figure.norm) for figure in _without_curves(result).figures if figure.threat != "clean"}
    places: dict[str, int] = {threat: place for place, threat in enumerate(THREATS)}
    found = []
    for threat, norm in sorted(measured, key=lambda key: (places.get(key[0], len(places)), key[1] != "Linf", key)):
        only = _only(result, lambda f, t=threat, n=norm: f.threat == "clean" or (f.threat, f.norm) == (t, n))
        found.append(ThreatSection(threat, norm, THREAT_TEXTS.get(threat, ""), detailed(only)))
    return found


def draws(figures: Sequence[Figure]) -> Table | None:
    """How the worst cases of randomised purifiers vary over draws; None where none is randomised."""
    body = []
    for figure in figures:
        mean, worst = figure.mean_accuracy, figure.worst_accuracy
        if figure.attack in (WORST, "clean") and mean is not None and worst is not None:
            where = f"{figure.threat} {verdict.budget(figure)}" if figure.threat != "clean" else "clean"
            cells = (verdict.cell(figure), f"{100 * mean:.1f}", f"{100 * worst:.1f}")
            body.append((figure.purifier, figure.classifier, where, str(figure.eot), str(figure.num_draws), *cells))
    head = ("purifier", "classifier", "threat model", "EOT", "draws K", "majority vote", "single draw", "all K right")
    return Table("Fresh draws after the attack: accuracy in %", head, tuple(body)) if body else None


def _only(result: Result, keep: Any) -> Result:
    """The result with only the figures that `keep` accepts."""
    figures = [dataclasses.asdict(figure) for figure in result.figures if keep(figure)]
    return Result(result.folder, {**result.values, "figures": figures})


def _without_curves(result: Result) -> Result:
    return _only(result, lambda figure: figure.threat not in CURVES)


def _title(result: Result) -> str:
    return f"{', '.join(result.evaluated or result.values['baselines'])} on {result.values['dataset']}"


def _facts(result: Result) -> dict[str, str]:
    """Images, preset, seed, versions and machine."""
    values = result.values
    facts = {
        "images": f"{values['num_images']:,} of the list {values['image_list']}, split {values['split']}",
        "preset": str(values["preset"]),
        "seed": str(values["seed"]),
        "versions": ", ".join(f"{name} {version}" for name, version in values["versions"].items()),
        "machine": _words(values.get("machine", "not recorded")),
    }
    return {key: text for key, text in facts.items() if text}


def _words(value: Any) -> str:
    return ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else str(value)


def _digests(result: Result) -> Table:
    values, kinds = result.values, set(result.values["baselines"])
    body = [("baseline" if name in kinds else "purifier", name, sha) for name, sha in values["purifiers"].items()]
    body += [("classifier", name, sha) for name, sha in values["classifiers"].items()]
    body += [("image list", values["image_list"], values["image_list_sha256"])]
    body += [("rows", summary.IMAGES, values["images_sha256"])]
    return Table("Inputs by digest", ("what", "name", "sha256"), tuple(body))


def _cost(result: Result) -> Table:
    """Forward passes and processor time of each set of oblivious images and of the whole evaluation."""
    values = result.values
    sets = values.get("attacked_images_cost", {})
    body = [
        (f"oblivious images: {name}", f"{took['forward_passes']:,}", f"{took['thread_seconds']:,.1f}")
        if took
        else (f"oblivious images: {name}", "unknown", "unknown")
        for name, took in sets.items()
    ]
    body.append(("the whole evaluation", f"{values['forward_passes']:,}", f"{values['thread_seconds']:,.1f}"))
    return Table("Cost", ("part", "forward passes (images)", "core-seconds"), tuple(body))
