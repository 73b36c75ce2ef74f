"""`report.html`: an evaluation as one page that needs nothing else: no script, no font, no address.

In the order in which a hostile reviewer asks: what was evaluated, what came out, under whose attack, over budget and
effort, what it looks like, what was checked, what it cost, and how to compute every figure again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from markupsafe import Markup

from maep import storage
from maep.evaluate.report import charts, page, verdict
from maep.evaluate.report.charts import Chart, Point, Series
from maep.evaluate.report.table import MARK, Table, detailed, headline, notes
from maep.evaluate.results import summary
from maep.evaluate.results.summary import CURVES, THREATS, WORST, Figure, Result

REPORT = "report.html"


@dataclasses.dataclass(frozen=True)
class Section:
    """One threat model and norm: who knows what, and a table for each classifier."""

    threat: str
    norm: str
    words: str
    tables: list[Table]


def write_report(result: Result, path: str | Path, strips: Mapping[str, bytes], command: str | None = None) -> None:
    """Writes the page of `result` to `path`.

    `strips` maps what a picture shows, in words, to its PNG. `command` is the line that made the result; without it
    the page shows the configuration alone. Raises DataError where images.parquet is not the one of the result.
    """
    rows = result.rows()
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
            charts=[(chart, Markup(charts.svg(chart))) for chart in curves(result, rows)],
            swatch=lambda place: Markup(charts.swatch(place)),
            strips={name: page.data_uri(name, png) for name, png in strips.items()},
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


def sections(result: Result) -> list[Section]:
    """The tables, one section for each threat model and norm: none shares a column, or a table, with another."""
    measured = {(figure.threat, figure.norm) for figure in _without_curves(result).figures if figure.threat != "clean"}
    places: dict[str, int] = {threat: place for place, threat in enumerate(THREATS)}
    found = []
    for threat, norm in sorted(measured, key=lambda key: (places.get(key[0], len(places)), key[1] != "Linf", key)):
        only = _only(result, lambda f, t=threat, n=norm: f.threat == "clean" or (f.threat, f.norm) == (t, n))
        found.append(Section(threat, norm, verdict.THREATS.get(threat, ""), detailed(only)))
    return found


def draws(figures: Sequence[Figure]) -> Table | None:
    """What the draws of randomised purifiers do to their worst cases; None where none was randomised."""
    body = []
    for figure in figures:
        mean, worst = figure.mean_accuracy, figure.worst_accuracy
        if figure.attack in (WORST, "clean") and mean is not None and worst is not None:
            where = f"{figure.threat} {verdict.budget(figure)}" if figure.threat != "clean" else "clean"
            cells = (verdict.cell(figure), f"{100 * mean:.1f}", f"{100 * worst:.1f}")
            body.append((figure.purifier, figure.classifier, where, str(figure.eot), str(figure.num_draws), *cells))
    head = ("purifier", "classifier", "threat model", "EOT", "draws K", "majority vote", "mean of draws", "worst of K")
    return Table("Fresh draws after the attack: accuracy in %", head, tuple(body)) if body else None


def curves(result: Result, rows: pa.Table) -> list[Chart]:
    """Worst cases over eps, then what was measured over steps and EOT; one chart each for classifier, threat, norm."""
    place = {name: number for number, name in enumerate(result.values["purifiers"])}
    found = []
    for classifier in result.values["classifiers"]:
        mine = [figure for figure in result.figures if figure.classifier == classifier]
        worst = [f for f in mine if f.attack == WORST and f.threat not in CURVES]
        for threat, norm in dict.fromkeys((f.threat, f.norm) for f in worst):
            chosen = [f for f in worst if (f.threat, f.norm) == (threat, norm)]
            if len({f.eps for f in chosen}) > 1:
                note = _attacks([f for f in mine if (f.threat, f.norm) == (threat, norm)])
                found.append(dataclasses.replace(_over_eps(classifier, chosen, rows, place), note=note))
        for threat, x_label in zip(CURVES, ("attack steps", "passes a gradient is averaged over"), strict=True):
            chosen = [f for f in mine if f.threat == threat and f.attack != WORST]
            for eps, norm in dict.fromkeys((f.eps, f.norm) for f in chosen):
                found.append(_over_effort(x_label, [f for f in chosen if (f.eps, f.norm) == (eps, norm)], place))
    return found


def _over_eps(classifier: str, figures: Sequence[Figure], rows: pa.Table, place: Mapping[str, int]) -> Chart:
    """At 0 stands the clean accuracy of the very images that were attacked."""
    threat, norm = figures[0].threat, figures[0].norm
    unit = "eps, of 255 levels" if norm == "Linf" else f"eps ({norm})"
    series = []
    for name in dict.fromkeys(figure.purifier for figure in figures):
        own = sorted((figure for figure in figures if figure.purifier == name), key=lambda figure: figure.eps)
        right, total = _clean_on(rows, own[0])
        zero = Point(0.0, "0", right / total, *summary.interval(right, total))
        scale = 255 if norm == "Linf" else 1
        points = [Point(f.eps * scale, f"{f.eps * scale:.4g}", f.accuracy, f.low, f.high) for f in own]
        series.append(Series(name, place[name], (zero, *points)))
    return Chart(f"{classifier}, {threat}, {norm}: worst case over eps", unit, tuple(series))


def _attacks(figures: Sequence[Figure]) -> str:
    """Which attacks made which points: they may be fewer where only a curve is drawn."""
    by_eps: dict[float, list[str]] = {}
    for figure in sorted(figures, key=lambda figure: figure.eps):
        made = by_eps.setdefault(figure.eps, [])
        if figure.attack not in (WORST, *made):
            made.append(figure.attack)
    same: dict[str, list[str]] = {}
    for eps, made in by_eps.items():
        same.setdefault(", ".join(made), []).append(f"{eps * 255:.4g}" if figures[0].norm == "Linf" else f"{eps:g}")
    return "Attacks " + "; ".join(f"at {', '.join(budgets)}: {made}" for made, budgets in same.items()) + "."


def _over_effort(x_label: str, figures: Sequence[Figure], place: Mapping[str, int]) -> Chart:
    over_eot = figures[0].threat == "adaptive-eot"
    series = []
    for name in dict.fromkeys(figure.purifier for figure in figures):
        own = {figure.eot if over_eot else figure.steps: figure for figure in figures if figure.purifier == name}
        points = tuple(Point(x, str(x), own[x].accuracy, own[x].low, own[x].high) for x in sorted(own))
        series.append(Series(name, place[name], points))
    first = figures[0]
    attack = first.attack if over_eot else first.attack.partition("-")[0]
    title = f"{first.classifier}, adaptive {attack} at {verdict.budget(first)} over {'EOT' if over_eot else 'steps'}"
    return Chart(title, x_label, tuple(series), "log")


def _clean_on(rows: pa.Table, figure: Figure) -> tuple[int, int]:
    """Right, and all, of the images of `figure` without attack."""

    def of(threat: str) -> pa.Table:
        wanted = {"purifier": figure.purifier, "classifier": figure.classifier, "threat": threat}
        chosen = [pc.equal(rows[name], value) for name, value in wanted.items()]
        return rows.filter(pc.and_(pc.and_(chosen[0], chosen[1]), chosen[2]))

    clean = of("clean")
    clean = clean.filter(pc.is_in(clean["index"], pc.unique(of(figure.threat)["index"])))
    return int(pc.sum(clean["correct"]).as_py()), clean.num_rows


def _only(result: Result, keep: Any) -> Result:
    """The result as if only the figures that `keep` takes had been measured."""
    figures = [dataclasses.asdict(figure) for figure in result.figures if keep(figure)]
    return Result(result.folder, {**result.values, "figures": figures})


def _without_curves(result: Result) -> Result:
    return _only(result, lambda figure: figure.threat not in CURVES)


def _title(result: Result) -> str:
    names = [name for name in result.values["purifiers"] if name not in result.values["baselines"]]
    return f"{', '.join(names or result.values['baselines'])} on {result.values['dataset']}"


def _facts(result: Result) -> dict[str, str]:
    """What was evaluated, without the digests."""
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
    return Table("What it was made of, by digest", ("what", "name", "sha256"), tuple(body))


def _cost(result: Result) -> Table:
    """Each set of oblivious images, and the whole."""
    values = result.values
    sets = values.get("attacked_images_cost", {})
    body = [
        (f"oblivious images: {name}", f"{took['forward_passes']:,}", f"{took['thread_seconds']:,.1f}")
        if took
        else (f"oblivious images: {name}", "not known", "not known")
        for name, took in sets.items()
    ]
    body.append(("the whole evaluation", f"{values['forward_passes']:,}", f"{values['thread_seconds']:,.1f}"))
    return Table("What it took", ("part", "images through a model", "seconds of one thread"), tuple(body))
