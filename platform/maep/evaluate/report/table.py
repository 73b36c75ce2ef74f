"""Tables of an evaluation, for the terminal, Markdown and pages. Threat models never share a column."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maep.evaluate.config import eps_label
from maep.evaluate.results.summary import CURVES, THREATS, WORST, Figure, Result, Share, norm_order

if TYPE_CHECKING:
    from rich.console import Group

MARK = " (unreliable)"
THREAT_TEXTS = {
    "clean": "no attack",
    "oblivious": "a lower bar: the attacker knows the classifier and attacks it alone, without the purifier",
    "transfer": "the attacker attacks another purifier or classifier and sends the image here",
    "bpda": "the attacker knows purifier and classifier and takes the identity as the purifier's gradient",
    "black-box": "the attacker queries purifier and classifier and sees no gradient",
    "fixed-mask": "the attacker knows the masks that the purifier will draw, more than any real attacker could",
    "adaptive": "the attacker knows purifier and classifier and differentiates through both; judge a purifier by this",
}
"""Threat model -> what the attacker knows and does. One that a later version adds is shown without a text."""
_TABULATED = [threat for threat in THREATS[1:] if threat not in CURVES]


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of formatted text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def detailed(result: Result) -> list[Table]:
    """One table per classifier and threat model, single attacks beside the worst case."""
    tables = []
    for classifier in result.values["classifiers"]:
        figures = [figure for figure in result.figures if figure.classifier == classifier]
        clean = {figure.purifier: figure for figure in figures if figure.threat == "clean"}
        for threat in _TABULATED:
            under = [figure for figure in figures if figure.threat == threat]
            if under:
                tables.append(_of_threat(result, classifier, threat, under, clean))
    return tables


def headline(result: Result) -> list[Table]:
    """One table per classifier: clean accuracy and the worst case of each threat model and budget."""
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
    """The threat model, norm and budget of a column."""
    return figure.threat, figure.norm, figure.eps


def _place(column: _Column) -> tuple[int, bool, str, float]:
    return THREATS.index(column[0]), *norm_order(column[1]), column[2]


def notes(result: Result) -> list[str]:
    """What to read with the tables, one line each: intervals, attacks, random draws, failed sanity checks."""
    attacks: dict[str, list[str]] = {}
    for figure in result.figures:
        if figure.threat != "clean" and figure.attack not in (WORST, *attacks.get(figure.threat, [])):
            attacks.setdefault(figure.threat, []).append(figure.attack)
    lines = ["Accuracy in % [95 % interval, Wilson] of the worst case: images that are right after every attack; Linf."]
    counts = {figure.threat: figure.num_images for figure in result.figures}
    for threat in (threat for threat in _TABULATED if threat in attacks):
        few = counts[threat] != result.values["num_images"]
        only = f"; first {counts[threat]} images only" if few else ""
        lines.append(f"{threat}: {', '.join(attacks[threat])}; {THREAT_TEXTS[threat]}{only}.")
    for figure in result.figures:
        if figure.mean_accuracy is not None and figure.worst_accuracy is not None and figure.attack == WORST:
            where = f"{figure.purifier} on {figure.classifier}, {figure.threat} {eps_label(figure.eps, figure.norm)}"
            of_one, of_all = 100 * figure.mean_accuracy, 100 * figure.worst_accuracy
            vote = f"majority vote of {figure.num_draws} fresh draws {100 * figure.accuracy:.1f}"
            lines.append(f"{where}: {vote}, single draw {of_one:.1f}, every draw right {of_all:.1f}.")
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


def render(tables: Sequence[Table], lines: Sequence[str], plain: Collection[str] | None = None) -> Group:
    """Tables and notes for `rich.print`; rows are bold, unless `plain` is None or names them."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown: list[RichTable | Text] = []
    for table in tables:
        rich = RichTable(
            title=Text(table.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for place, head in enumerate(table.header):
            rich.add_column(Text(head), justify="right" if place else "left", overflow="fold")
        for row in table.rows:
            bold = plain is not None and row[0].removesuffix(MARK) not in plain
            rich.add_row(*map(Text, row), style="bold" if bold else "")
        shown.append(rich)
    return Group(*shown, *(Text(line, style="red" if "unreliable" in line else "dim") for line in lines))


def terminal(result: Result) -> Group:
    """Everything that the terminal shows of a result."""
    return render(detailed(result), notes(result), result.values["baselines"])


def percent(share: Share | Figure, interval: bool = True) -> str:
    """An accuracy in % and its interval: 12.9 [9.3, 17.5]."""
    text = f"{100 * share.accuracy:.1f}"
    return f"{text} [{100 * share.low:.1f}, {100 * share.high:.1f}]" if interval else text


def _of_threat(
    result: Result, classifier: str, threat: str, figures: Sequence[Figure], clean: dict[str, Figure]
) -> Table:
    """Shows single attacks beside the worst case where each was measured alone, so not those of a cascade."""
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
    return "–" if figure is None else percent(figure, interval)


def _images(result: Result) -> str:
    return f"{result.values['num_images']} images of {result.values['image_list']}"


def _first(result: Result, count: int) -> str:
    """What a column head adds where it covers fewer images than the title says."""
    return "" if count == result.values["num_images"] else f" (first {count})"


def _mark(result: Result, name: str) -> str:
    return MARK if name in result.unreliable else ""
