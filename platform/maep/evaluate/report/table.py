"""Tables of an evaluation, for the terminal and for Markdown. Threat models never share a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maep.evaluate.config import eps_label
from maep.evaluate.results.summary import CURVES, THREATS, WORST, Figure, Result, norm_order

if TYPE_CHECKING:
    from rich.console import Group

MARK = " (unreliable)"
_STANDING = {
    "oblivious": "a lower bar: the attacker knows the classifier, not the purifier",
    "transfer": "the attacker has another purifier or classifier, and differentiates through both",
    "bpda": "the attacker knows both; the identity stands for the defence's gradient",
    "black-box": "the attacker asks purifier and classifier, and has no gradient",
    "fixed-mask": "the attacker knows the masks that will be drawn",
    "adaptive": "the attacker differentiates through purifier and classifier",
}


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of finished text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def detailed(result: Result) -> list[Table]:
    """One table for each classifier and threat model, single attacks beside the worst case."""
    tables = []
    for classifier in result.values["classifiers"]:
        figures = [figure for figure in result.figures if figure.classifier == classifier]
        clean = {figure.purifier: figure for figure in figures if figure.threat == "clean"}
        for threat in _reported():
            under = [figure for figure in figures if figure.threat == threat]
            if under:
                tables.append(_of_threat(result, classifier, threat, under, clean))
    return tables


def headline(result: Result) -> list[Table]:
    """One table for each classifier with the clean accuracy and the worst case of each threat model and budget."""
    tables = []
    for classifier in result.values["classifiers"]:
        figures = [f for f in result.figures if f.classifier == classifier and f.attack in (WORST, "clean")]
        columns = sorted({_column(f) for f in figures}, key=_place)
        found = {(f.purifier, *_column(f)): f for f in figures}
        counts = {_column(f): f.num_images for f in figures}
        rows = tuple(
            (name + _mark(result, name), *(_cell(found.get((name, *column))) for column in columns))
            for name in result.values["purifiers"]
        )
        heads = [
            "clean"
            if column[0] == "clean"
            else f"{column[0]} {eps_label(column[2], column[1])}{_first(result, counts[column])}"
            for column in columns
        ]
        tables.append(Table(f"{classifier}, {_images(result)}", ("purifier", *heads), rows))
    return tables


_Column = tuple[str, str, float]


def _column(figure: Figure) -> _Column:
    """Threat model, norm and budget: what a column is of."""
    return figure.threat, figure.norm, figure.eps


def _place(column: _Column) -> tuple[int, bool, str, float]:
    return THREATS.index(column[0]), *norm_order(column[1]), column[2]


def _reported() -> list[str]:
    """The threat models of which there are figures; curves are drawn."""
    return [threat for threat in THREATS[1:] if threat not in CURVES]


def notes(result: Result) -> list[str]:
    """What must be read with the figures, one line each: the intervals, the attacks, the reasons of `unreliable`."""
    attacks: dict[str, list[str]] = {}
    for figure in result.figures:
        if figure.threat != "clean" and figure.attack not in (WORST, *attacks.get(figure.threat, [])):
            attacks.setdefault(figure.threat, []).append(figure.attack)
    lines = ["Accuracy in % [95 % interval, Wilson]; worst case: right after every attack of the threat model; Linf."]
    counts = {figure.threat: figure.num_images for figure in result.figures}
    for threat in (threat for threat in _reported() if threat in attacks):
        few = counts[threat] != result.values["num_images"]
        only = f"; on the first {counts[threat]} of the images only" if few else ""
        lines.append(f"{threat}: {', '.join(attacks[threat])}; {_STANDING[threat]}{only}.")
    for figure in result.figures:
        if figure.mean_accuracy is not None and figure.worst_accuracy is not None and figure.attack == WORST:
            where = f"{figure.purifier} on {figure.classifier}, {figure.threat} {eps_label(figure.eps, figure.norm)}"
            of_one, of_all = 100 * figure.mean_accuracy, 100 * figure.worst_accuracy
            draws = f"of {figure.num_draws} fresh draws most are right {100 * figure.accuracy:.1f}"
            lines.append(f"{where}: {draws}, one is {of_one:.1f}, all are {of_all:.1f}.")
    for name, reasons in result.unreliable.items():
        lines += [f"{name} is unreliable: {reason}" for reason in reasons]
    return lines


def markdown(tables: Sequence[Table], lines: Sequence[str] = ()) -> str:
    """Tables and notes as GitHub Markdown."""
    parts = []
    for table in tables:
        body = [table.header, ("---", *["---:"] * (len(table.header) - 1)), *table.rows]
        parts.append(f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in body))
    if lines:
        parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def terminal(result: Result) -> Group:
    """Everything a terminal shows of a result: print it with rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown: list[RichTable | Text] = []
    for table in detailed(result):
        rich = RichTable(
            title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False
        )
        for place, head in enumerate(table.header):
            rich.add_column(Text(head), justify="right" if place else "left", no_wrap=True)
        for row in table.rows:
            style = "bold" if row[0].removesuffix(MARK) not in result.values["baselines"] else ""
            rich.add_row(*map(Text, row), style=style)
        shown.append(rich)
    shown += [Text(line, style="red" if "unreliable" in line else "dim") for line in notes(result)]
    return Group(*shown)


def _of_threat(
    result: Result, classifier: str, threat: str, figures: Sequence[Figure], clean: dict[str, Figure]
) -> Table:
    """Single attacks stand beside the worst case where they are measured alone, which in a cascade they are not."""
    shown = figures if threat in ("oblivious", "transfer") else [figure for figure in figures if figure.attack == WORST]
    columns = list(dict.fromkeys((figure.norm, figure.eps, figure.attack) for figure in shown))
    found = {(figure.purifier, figure.norm, figure.eps, figure.attack): figure for figure in shown}
    names = [name for name in result.values["purifiers"] if any(figure.purifier == name for figure in shown)]
    several = len({(norm, eps) for norm, eps, _ in columns}) > 1
    heads = [f"{attack} at {eps_label(eps, norm)}" if several else attack for norm, eps, attack in columns]
    body = []
    for name in names:
        cells = [_cell(found.get((name, *column)), interval=column[2] == WORST) for column in columns]
        body.append((name + _mark(result, name), _cell(clean.get(name)), *cells))
    budget = "" if several else f" at {eps_label(columns[0][1], columns[0][0])}"
    count, whole = shown[0].num_images, result.values["num_images"]
    images = _images(result) if count == whole else f"the first {count} of {_images(result)}"
    bar = " (lower bar)" if threat == "oblivious" else ""
    title = f"{classifier}, {threat}{bar}{budget}: {images}"
    return Table(title, ("purifier", "clean" if count == whole else f"clean (all {whole})", *heads), tuple(body))


def _cell(figure: Figure | None, interval: bool = True) -> str:
    if figure is None:
        return "–"
    text = f"{100 * figure.accuracy:.1f}"
    return f"{text} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]" if interval else text


def _images(result: Result) -> str:
    return f"{result.values['num_images']} images of {result.values['image_list']}"


def _first(result: Result, count: int) -> str:
    """What a column's head adds where its figures are of fewer images than the title says."""
    return "" if count == result.values["num_images"] else f" (first {count})"


def _mark(result: Result, name: str) -> str:
    return MARK if name in result.unreliable else ""
