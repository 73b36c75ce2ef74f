"""Tables of an evaluation, for the terminal, Markdown and pages. Threat models never share a column."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
"""Threat model -> what the attacker knows and does."""
_TABULATED = [threat for threat in THREATS[1:] if threat not in CURVES]


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of formatted text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ThreatSection:
    """One threat model and norm: what the attacker knows and does, and one table per classifier."""

    threat: str
    norm: str
    words: str
    tables: list[Table]


_Column = tuple[str, str, float, str]
"""Threat model, norm, budget and attack."""


def sections(result: Result) -> list[ThreatSection]:
    """Every figure, one section per threat model and norm: neither is ever mixed within a table."""
    measured = {(f.threat, f.norm) for f in result.figures if f.threat in _TABULATED}
    return [
        ThreatSection(
            threat,
            norm,
            THREAT_TEXTS[threat],
            [_of_threat(result, classifier, threat, norm) for classifier in _classifiers(result, threat, norm)],
        )
        for threat, norm in sorted(measured, key=lambda key: (THREATS.index(key[0]), *norm_order(key[1])))
    ]


def headline(result: Result) -> list[Table]:
    """One table per classifier: clean accuracy and the worst case of each threat model and budget."""
    tables = []
    for classifier in result.values["classifiers"]:
        figures = [f for f in result.figures if f.classifier == classifier and f.attack in (WORST, "clean")]
        order = sorted(figures, key=lambda f: (THREATS.index(f.threat), *norm_order(f.norm), f.eps))
        heads = {
            _column(f): "clean" if f.threat == "clean" else f"{f.threat} {f.budget}{_first(result, f)}" for f in order
        }
        tables.append(_table(result, f"{classifier}, {_images(result)}", figures, heads))
    return tables


def draws(figures: Sequence[Figure]) -> Table | None:
    """How the worst cases of randomised purifiers vary over draws; None where none is randomised."""
    body = []
    for f in figures:
        if f.attack in (WORST, "clean") and f.mean_accuracy is not None and f.worst_accuracy is not None:
            where = "clean" if f.threat == "clean" else f"{f.threat} {f.budget}"
            cells = (percent(f), f"{100 * f.mean_accuracy:.1f}", f"{100 * f.worst_accuracy:.1f}")
            body.append((f.purifier, f.classifier, where, str(f.eot), str(f.num_draws), *cells))
    head = ("purifier", "classifier", "threat model", "EOT", "draws K", "majority vote", "single draw", "all K right")
    return Table("Fresh draws after the attack: accuracy in %", head, tuple(body)) if body else None


def notes(result: Result) -> list[str]:
    """What to read with the tables, one line each: intervals, attacks, failed sanity checks."""
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
    tables = [table for section in sections(result) for table in section.tables]
    if (drawn := draws(result.figures)) is not None:
        tables.append(drawn)
    return render(tables, notes(result), result.values["baselines"])


def percent(share: Share | Figure, interval: bool = True) -> str:
    """An accuracy in % and its interval: 12.9 [9.3, 17.5]."""
    text = f"{100 * share.accuracy:.1f}"
    return f"{text} [{100 * share.low:.1f}, {100 * share.high:.1f}]" if interval else text


def _classifiers(result: Result, threat: str, norm: str) -> list[str]:
    measured = {f.classifier for f in result.figures if (f.threat, f.norm) == (threat, norm)}
    return [name for name in result.values["classifiers"] if name in measured]


def _of_threat(result: Result, classifier: str, threat: str, norm: str) -> Table:
    """Single attacks are shown beside the worst case where each ran on every image, so not those of a cascade."""
    mine = [f for f in result.figures if f.classifier == classifier]
    single = threat in ("oblivious", "transfer")
    shown = [f for f in mine if (f.threat, f.norm) == (threat, norm) and (single or f.attack == WORST)]
    first, several = shown[0], len({f.eps for f in shown}) > 1
    few = _first(result, first)
    clean = [f for f in mine if f.threat == "clean" and f.purifier in {f.purifier for f in shown}]
    heads = {_column(f): f"clean (all {result.values['num_images']})" if few else "clean" for f in clean[:1]}
    heads |= {_column(f): f"{f.attack} at {f.budget}" if several else f.attack for f in shown}
    budget = "" if several else f" at {first.budget}"
    images = f"the first {first.num_images} of {_images(result)}" if few else _images(result)
    bar = " (lower bar)" if threat == "oblivious" else ""
    return _table(result, f"{classifier}, {threat}{bar}{budget}: {images}", clean + shown, heads)


def _table(result: Result, title: str, figures: Sequence[Figure], heads: Mapping[_Column, str]) -> Table:
    """The `figures` of one classifier, one row per defence, in the columns that `heads` names."""
    found = {(f.purifier, _column(f)): f for f in figures}
    names = [name for name in result.values["purifiers"] if any(f.purifier == name for f in figures)]
    rows = (
        (name + MARK * (name in result.unreliable), *(_cell(found.get((name, column))) for column in heads))
        for name in names
    )
    return Table(title, ("purifier", *heads.values()), tuple(rows))


def _column(figure: Figure) -> _Column:
    return figure.threat, figure.norm, figure.eps, figure.attack


def _cell(figure: Figure | None) -> str:
    """Single attacks go without their interval."""
    return "–" if figure is None else percent(figure, figure.attack in (WORST, "clean"))


def _images(result: Result) -> str:
    return f"{result.values['num_images']} images of {result.values['image_list']}"


def _first(result: Result, figure: Figure) -> str:
    """What a column head adds where it covers fewer images than the title says."""
    return "" if figure.num_images == result.values["num_images"] else f" (first {figure.num_images})"
