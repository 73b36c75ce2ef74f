"""Compares two purifiers image by image: `maep evaluate --compare A B`.

Both must have been attacked with the same settings on the same images, so the test is a paired one. Differences are
A - B with the interval of Newcombe (1998, Statistics in Medicine 17:2635-2650, method 10). p comes from McNemar's exact
two-sided test (1947), corrected over all rows of a comparison as in Holm (1979).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from maep.errors import ConfigError
from maep.evaluate.config import eps_label
from maep.evaluate.report.table import Table, percent
from maep.evaluate.results import summary
from maep.evaluate.results.paired import difference_interval, holm, mcnemar
from maep.evaluate.results.summary import CURVES, THREATS, Result, Share, check_alike

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
    """`rows` in the order of the threat models; `remarks`: a line per difference in attacks and omitted figure."""

    a: Side
    b: Side
    image_list: str
    rows: list[Row]
    remarks: list[str]

    @property
    def values(self) -> dict[str, Any]:
        """As JSON, the method included."""
        return {"name": "maep comparison", "method": METHOD.format(count=len(self.rows)), **asdict(self)}


class _Key(NamedTuple):
    """What both sides were measured under."""

    classifier: str
    threat: str
    norm: str
    eps: float

    def __str__(self) -> str:
        budget = "" if self.threat == "clean" else f" at {eps_label(self.eps, self.norm)}"
        return f"{self.threat} in front of {self.classifier}{budget}"


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
    attacks = _attacks(tables[0]), _attacks(tables[1])
    rows: list[Row] = []
    remarks: list[str] = []
    for key in sorted(attacks[0].keys() | attacks[1].keys(), key=_order(a)):
        mine, theirs = (each.get(key) for each in attacks)
        if mine is None or theirs is None:
            remarks.append(f"left out, measured for {'A' if mine else 'B'} only: {key}")
        elif key.threat == "transfer" and mine != theirs:
            remarks.append(f"left out, different sources: {key}")
        else:
            outcomes = (
                summary.outcomes(table, name, key.classifier, key.threat, key.eps, key.norm)
                for table, name in zip(tables, names, strict=True)
            )
            rows.append(_row(key, *outcomes))
            if mine != theirs:
                remarks.append(f"different attacks: {key}: A by {', '.join(mine)}; B by {', '.join(theirs)}")
    if not rows:
        raise ConfigError(f"{names[0]} of {a.folder} and {names[1]} of {b.folder} share no threat model and budget")
    adjusted = holm([row.p_value for row in rows])
    rows = [replace(row, p_holm=p_holm) for row, p_holm in zip(rows, adjusted, strict=True)]
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


def _attacks(rows: pa.Table) -> dict[_Key, list[str]]:
    """The attacks that were run, in order, with the number of EOT samples where there are several."""
    found: dict[_Key, list[str]] = {}
    columns = ["classifier", "threat", "norm", "eps", "attack", "eot"]
    for row in rows.select(columns).group_by(columns, use_threads=False).aggregate([]).to_pylist():
        key = _Key(row["classifier"], row["threat"], row["norm"], round(row["eps"], 9))
        found.setdefault(key, []).append(row["attack"] + (f" x EOT {row['eot']}" if row["eot"] > 1 else ""))
    return found


def _row(key: _Key, a: Mapping[int, bool], b: Mapping[int, bool]) -> Row:
    """From the outcomes of both sides; `p_holm` is set once all rows are known."""
    try:
        test = mcnemar(a, b)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    right_a, right_b, total = sum(a.values()), sum(b.values()), len(a)
    both = right_a - test.won
    low, high = difference_interval(both, test.won, test.lost, total - both - test.won - test.lost)
    shares = summary.share(right_a, total), summary.share(right_b, total)
    gap = (right_a - right_b) / total
    return Row(*key, total, *shares, gap, low, high, test.won, test.lost, test.p_value, p_holm=1.0)


def _cells(row: Row) -> tuple[str, ...]:
    gap = f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    tests = (f"{row.won}/{row.lost}", _p(row.p_value), _p(row.p_holm))
    eps = "–" if row.threat == "clean" else eps_label(row.eps, row.norm)
    return (row.threat, eps, str(row.num_images), percent(row.a), percent(row.b), gap, *tests)


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _order(result: Result) -> Any:
    """Sort key: classifier as in the result, others last; then threat model, norm and eps."""
    classifiers = list(result.values["classifiers"])

    def place(key: _Key) -> tuple[Any, ...]:
        known = classifiers.index(key.classifier) if key.classifier in classifiers else len(classifiers)
        return known, THREATS.index(key.threat), *summary.norm_order(key.norm), key.eps

    return place
