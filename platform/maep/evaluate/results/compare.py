"""Compares two purifiers image by image: `maep evaluate --compare A B`.

Both must have been attacked with the same settings on the same images, so the test is a paired one. Differences are
A - B with the interval of Newcombe (1998, Statistics in Medicine 17:2635-2650, method 10), p is of the exact two-sided
test of McNemar (1947), and Holm (1979) corrects it over all rows of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from maep.errors import ConfigError
from maep.evaluate.config import eps_label
from maep.evaluate.report.table import THREAT_TEXTS, Table, markdown, percent, render
from maep.evaluate.results import summary
from maep.evaluate.results.paired import Paired, difference_interval, holm, mcnemar
from maep.evaluate.results.summary import CURVES, Result, Share, check_alike

if TYPE_CHECKING:
    from rich.console import Group

METHOD = (
    "Accuracy in % [95 % interval, Wilson] of the worst case per image. A - B in points [95 % interval for paired"
    " differences, Newcombe 1998, method 10]. Won: images that only A gets right; lost: only B. p: exact two-sided test"
    " of McNemar; p (Holm): corrected over the {count} rows of this comparison."
)


@dataclass(frozen=True)
class Side:
    """One purifier of one result; `unreliable` lists the sanity checks that it failed."""

    folder: str
    purifier: str
    sha256: str
    unreliable: list[str]


@dataclass(frozen=True)
class Row:
    """One threat model and budget before one classifier, on the same images: shares in [0, 1], A - B."""

    classifier: str
    threat: str
    norm: str
    eps: float
    num_images: int
    a: Share
    b: Share
    difference: float
    low: float
    high: float
    won: int
    lost: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """`rows` in the order of the threat models; `remarks` has one line per difference in attacks or omitted figure."""

    a: Side
    b: Side
    image_list: str
    rows: list[Row]
    remarks: list[str]

    @property
    def values(self) -> dict[str, Any]:
        """As JSON, the method included."""
        return {"name": "maep comparison", "method": METHOD.format(count=len(self.rows)), **asdict(self)}


_Key = tuple[str, str, str, float]
"""Classifier, threat model, norm, eps."""


def compare(a: Result, b: Result, a_name: str | None = None, b_name: str | None = None) -> Comparison:
    """Compares every accuracy that both results have. A result of several purifiers needs the name of one.

    Raises ConfigError where the results differ in images, seed, preset or a classifier's weights, or have nothing in
    common. Within a preset, attacks still depend on whether the purifier is randomised: remarks say where they differ.
    Accuracies under `transfer` from different sources are left out.
    """
    names = a.choose(a_name), b.choose(b_name)
    if names[0] == names[1] and a.folder.resolve() == b.folder.resolve():
        raise ConfigError(f"{names[0]} of {a.folder} is on both sides: name two purifiers, FOLDER:PURIFIER")
    _check_comparable(a, b)
    tables = _of(a.rows(), names[0]), _of(b.rows(), names[1])
    keys = _keys(tables[0]), _keys(tables[1])
    shared = sorted(keys[0].keys() & keys[1].keys(), key=_order(a))
    common = [key for key in shared if key[1] != "transfer" or keys[0][key] == keys[1][key]]
    if not common:
        raise ConfigError(f"{names[0]} of {a.folder} and {names[1]} of {b.folder} share no threat model and budget")
    outcomes = [(_outcomes(tables[0], names[0], key), _outcomes(tables[1], names[1], key)) for key in common]
    tests = [_paired(key, *pair) for key, pair in zip(common, outcomes, strict=True)]
    adjusted = holm([test.p_value for test in tests])
    rows = [_row(*line) for line in zip(common, outcomes, tests, adjusted, strict=True)]
    remarks = [
        f"different attacks: {_words(key)}: A by {', '.join(keys[0][key])}; B by {', '.join(keys[1][key])}"
        for key in common
        if keys[0][key] != keys[1][key]
    ]
    remarks += [f"left out, different sources: {_words(key)}" for key in shared if key not in common]
    for letter, mine, result in (("A", keys[0], a), ("B", keys[1], b)):
        alone = sorted(mine.keys() - set(shared), key=_order(result))
        remarks += [f"left out, measured for {letter} only: {_words(key)}" for key in alone]
    return Comparison(_side(a, names[0]), _side(b, names[1]), a.values["image_list"], rows, remarks)


def parse_side(text: str) -> tuple[Path, str | None]:
    """A result's folder, and the purifier after the last colon; a folder whose own name has a colon stays whole."""
    folder, colon, name = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Path(text), None
    if not folder or not name:
        raise ConfigError(f"{text!r}: write FOLDER or FOLDER:PURIFIER, such as outputs/evaluate:conv")
    return Path(folder), name


def tables(comparison: Comparison) -> list[Table]:
    """One table for each classifier."""
    head = ("threat", "eps", "images", "A", "B", "A - B", "won/lost", "p", "p (Holm)")
    return [
        Table(
            f"{classifier}, {comparison.image_list}: A = {comparison.a.purifier}, B = {comparison.b.purifier}",
            head,
            tuple(_cells(row) for row in comparison.rows if row.classifier == classifier),
        )
        for classifier in dict.fromkeys(row.classifier for row in comparison.rows)
    ]


def notes(comparison: Comparison) -> list[str]:
    """What to read with the tables: unreliable sides first, then the purifiers, the method and what is left out."""
    sides = {"A": comparison.a, "B": comparison.b}
    lines = [
        f"{letter} ({side.purifier}) is unreliable: {reason}"
        for letter, side in sides.items()
        for reason in side.unreliable
    ]
    lines += [f"{letter}: {s.purifier} of {s.folder}, sha256 {s.sha256[:12]}." for letter, s in sides.items()]
    return [*lines, METHOD.format(count=len(comparison.rows)), *(f"{line}." for line in comparison.remarks)]


def to_markdown(comparison: Comparison) -> str:
    """Tables and notes as GitHub Markdown."""
    return markdown(tables(comparison), notes(comparison))


def to_terminal(comparison: Comparison) -> Group:
    """Tables and notes for `rich.print`."""
    return render(tables(comparison), notes(comparison))


def _side(result: Result, name: str) -> Side:
    return Side(str(result.folder), name, result.values["purifiers"][name], result.unreliable.get(name, []))


def _check_comparable(a: Result, b: Result) -> None:
    check_alike(a, b, ("dataset", "split", "image_list_sha256", "seed", "preset"))
    mine, theirs = a.values["classifiers"], b.values["classifiers"]
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            raise ConfigError(f"{a.folder} and {b.folder} have different weights for classifier {name}")
    if not mine.keys() & theirs.keys():
        raise ConfigError(f"{a.folder} and {b.folder} have no classifier in common")


def _of(rows: pa.Table, name: str) -> pa.Table:
    curve = pc.is_in(rows["threat"], pa.array(CURVES))
    return rows.filter(pc.and_(pc.equal(rows["purifier"], name), pc.invert(curve)))


def _keys(rows: pa.Table) -> dict[_Key, list[str]]:
    """Key -> the attacks that were run, in order, with the number of EOT samples where there are several."""
    found: dict[_Key, list[str]] = {}
    columns = ["classifier", "threat", "norm", "eps", "attack", "eot"]
    for row in rows.select(columns).group_by(columns, use_threads=False).aggregate([]).to_pylist():
        key = (row["classifier"], row["threat"], row["norm"], round(row["eps"], 9))
        found.setdefault(key, []).append(row["attack"] + (f" x EOT {row['eot']}" if row["eot"] > 1 else ""))
    return found


def _outcomes(rows: pa.Table, name: str, key: _Key) -> dict[int, bool]:
    classifier, threat, norm, eps = key
    return summary.outcomes(rows, name, classifier, threat, eps, norm)


def _paired(key: _Key, a: Mapping[int, bool], b: Mapping[int, bool]) -> Paired:
    try:
        return mcnemar(a, b)
    except ConfigError as error:
        raise ConfigError(f"{_words(key)}: {error}") from None


def _row(key: _Key, outcomes: tuple[Mapping[int, bool], Mapping[int, bool]], test: Paired, adjusted: float) -> Row:
    right_a, right_b, total = sum(outcomes[0].values()), sum(outcomes[1].values()), len(outcomes[0])
    both = right_a - test.won
    low, high = difference_interval(both, test.won, test.lost, total - both - test.won - test.lost)
    a, b = summary.share(right_a, total), summary.share(right_b, total)
    gap = (right_a - right_b) / total
    return Row(*key, total, a, b, gap, low, high, test.won, test.lost, test.p_value, adjusted)


def _cells(row: Row) -> tuple[str, ...]:
    gap = f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    tests = (f"{row.won}/{row.lost}", _p(row.p_value), _p(row.p_holm))
    eps = "–" if row.threat == "clean" else eps_label(row.eps, row.norm)
    return (row.threat, eps, str(row.num_images), percent(row.a), percent(row.b), gap, *tests)


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _words(key: _Key) -> str:
    classifier, threat, norm, eps = key
    return f"{threat} in front of {classifier}" + (f" at {eps_label(eps, norm)}" if threat != "clean" else "")


def _order(result: Result) -> Any:
    """Sort key: classifier as in the result, then threat model, norm and eps."""
    classifiers, threats = list(result.values["classifiers"]), list(THREAT_TEXTS)

    def place(key: _Key) -> tuple[Any, ...]:
        classifier, threat, norm, eps = key
        known = classifiers.index(classifier) if classifier in classifiers else len(classifiers)
        return known, threats.index(threat) if threat in threats else len(threats), *summary.norm_order(norm), eps

    return place
