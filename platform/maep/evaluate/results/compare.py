"""Two purifiers side by side, image by image: `maep evaluate --compare A B`.

Both must have been attacked alike on the same images; then each image is its own control and the test is a paired one.
Differences are A - B with the interval of Newcombe (1998, Statistics in Medicine 17:2635-2650, method 10), p is of the
exact two-sided test of McNemar (1947), and Holm (1979) corrects it over all rows of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from maep.attacks.config import Norm
from maep.errors import ConfigError, nearest
from maep.evaluate.config import eps_label
from maep.evaluate.report.table import Table, markdown
from maep.evaluate.report.verdict import THREATS
from maep.evaluate.results import summary
from maep.evaluate.results.gate import Paired, paired
from maep.evaluate.results.paired import difference_interval, holm
from maep.evaluate.results.summary import CURVES, Result

if TYPE_CHECKING:
    from rich.console import Group

METHOD = (
    "Accuracy in % [95 % interval, Wilson] of the worst case per image. A - B in points [95 % interval for paired"
    " differences, Newcombe 1998, method 10]. Won: images right under A only; lost: under B only. p: exact two-sided"
    " test of McNemar; p (Holm): corrected over the {count} rows of this comparison."
)


@dataclass(frozen=True)
class Side:
    """One purifier of one result; `unreliable` are the reasons why its figures cannot be relied on."""

    folder: str
    purifier: str
    sha256: str
    unreliable: list[str]


@dataclass(frozen=True)
class Share:
    """An accuracy in [0, 1] and its 95 % interval of Wilson."""

    accuracy: float
    low: float
    high: float


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
    """`rows` in the order of the threat models; `remarks` say, a line each, where the attacks were not the same, and
    what was left out.
    """

    a: Side
    b: Side
    image_list: str
    rows: list[Row]
    remarks: list[str]

    @property
    def values(self) -> dict[str, Any]:
        """Ready for JSON; the method stands with the figures."""
        return {"name": "maep comparison", "method": METHOD.format(count=len(self.rows)), **asdict(self)}


_Key = tuple[str, str, str, float]
"""Classifier, threat model, norm, eps."""


def compare(a: Result, b: Result, a_name: str | None = None, b_name: str | None = None) -> Comparison:
    """Every figure that both have. A name is needed where a result holds several purifiers; baselines may be named.

    Raises ConfigError, in one line, where they were not measured alike (other images, seed, preset or weights of a
    classifier), or have nothing in common. Within one preset the attacks still depend on what is attacked, a purifier
    that draws or one that does not: that is remarked on. Figures of `transfer` from other sources are left out.
    """
    names = _choose(a, a_name), _choose(b, b_name)
    if names[0] == names[1] and a.folder.resolve() == b.folder.resolve():
        raise ConfigError(f"{names[0]} of {a.folder} is on both sides: name two purifiers, FOLDER:PURIFIER")
    _comparable(a, b)
    tables = _of(a.rows(), names[0]), _of(b.rows(), names[1])
    keys = _keys(tables[0]), _keys(tables[1])
    shared = sorted(keys[0].keys() & keys[1].keys(), key=_order(a))
    common = [key for key in shared if key[1] != "transfer" or keys[0][key] == keys[1][key]]
    if not common:
        raise ConfigError(f"{names[0]} of {a.folder} and {names[1]} of {b.folder} have no figure in common")
    outcomes = [(_outcomes(tables[0], names[0], key), _outcomes(tables[1], names[1], key)) for key in common]
    tests = [_paired(key, *pair) for key, pair in zip(common, outcomes, strict=True)]
    adjusted = holm([test.p_value for test in tests])
    rows = [_row(*line) for line in zip(common, outcomes, tests, adjusted, strict=True)]
    remarks = [_other_attacks(key, keys[0][key], keys[1][key]) for key in common if keys[0][key] != keys[1][key]]
    remarks += [f"left out, attacked from other sources: {_words(key)}" for key in shared if key not in common]
    remarks += [f"left out, only of A: {_words(key)}" for key in sorted(keys[0].keys() - set(shared), key=_order(a))]
    remarks += [f"left out, only of B: {_words(key)}" for key in sorted(keys[1].keys() - set(shared), key=_order(b))]
    return Comparison(_side(a, names[0]), _side(b, names[1]), a.values["image_list"], rows, remarks)


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
    """What must be read with the tables: unreliable sides first, who they are, the method, and what is left out."""
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
    """Tables and notes: print it with rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown: list[RichTable | Text] = []
    for table in tables(comparison):
        rich = RichTable(
            title=Text(table.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for place, head in enumerate(table.header):
            rich.add_column(Text(head), justify="right" if place else "left", overflow="fold")
        for cells in table.rows:
            rich.add_row(*map(Text, cells))
        shown.append(rich)
    shown += [Text(line, style="red" if "unreliable" in line else "dim") for line in notes(comparison)]
    return Group(*shown)


def _choose(result: Result, name: str | None) -> str:
    own = [each for each in result.values["purifiers"] if each not in result.values["baselines"]]
    if name is None:
        if len(own) != 1:
            raise ConfigError(
                f"{result.folder} holds {len(own)} purifiers: say which, FOLDER:{(own or ['PURIFIER'])[0]}"
            )
        return str(own[0])
    if name not in result.values["purifiers"]:
        raise ConfigError(f"{result.folder} holds no purifier {name!r}: {nearest(name, result.values['purifiers'])}")
    return name


def _side(result: Result, name: str) -> Side:
    return Side(str(result.folder), name, result.values["purifiers"][name], result.unreliable.get(name, []))


def _comparable(a: Result, b: Result) -> None:
    for key in ("dataset", "split", "image_list_sha256", "seed", "preset"):
        if a.values[key] != b.values[key]:
            raise ConfigError(f"{a.folder} and {b.folder} differ in {key}: evaluate both alike")
    mine, theirs = a.values["classifiers"], b.values["classifiers"]
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            raise ConfigError(f"{a.folder} and {b.folder} have other weights behind classifier {name}: not comparable")
    if not mine.keys() & theirs.keys():
        raise ConfigError(f"{a.folder} and {b.folder} have no classifier in common: evaluate both alike")


def _of(rows: pa.Table, name: str) -> pa.Table:
    curve = pc.is_in(rows["threat"], pa.array(CURVES))
    return rows.filter(pc.and_(pc.equal(rows["purifier"], name), pc.invert(curve)))


def _keys(rows: pa.Table) -> dict[_Key, list[str]]:
    """What was measured: key -> its attacks, in order, with the passes of EOT where there are several."""
    found: dict[_Key, list[str]] = {}
    columns = ["classifier", "threat", "norm", "eps", "attack", "eot"]
    for row in rows.select(columns).group_by(columns, use_threads=False).aggregate([]).to_pylist():
        key = (row["classifier"], row["threat"], row["norm"], round(row["eps"], 9))
        found.setdefault(key, []).append(row["attack"] + (f" x EOT {row['eot']}" if row["eot"] > 1 else ""))
    return found


def _other_attacks(key: _Key, a: list[str], b: list[str]) -> str:
    return f"other attacks: {_words(key)}: A by {', '.join(a)}; B by {', '.join(b)}"


def _outcomes(rows: pa.Table, name: str, key: _Key) -> dict[int, bool]:
    classifier, threat, norm, eps = key
    return summary.outcomes(rows, name, classifier, threat, eps, norm)


def _paired(key: _Key, a: Mapping[int, bool], b: Mapping[int, bool]) -> Paired:
    if a.keys() != b.keys():
        raise ConfigError(f"{_words(key)}: A was measured on {len(a)} images, B on {len(b)}: evaluate both alike")
    return paired(a, b)


def _row(key: _Key, outcomes: tuple[Mapping[int, bool], Mapping[int, bool]], test: Paired, adjusted: float) -> Row:
    right_a, right_b, total = sum(outcomes[0].values()), sum(outcomes[1].values()), len(outcomes[0])
    both = right_a - test.won
    low, high = difference_interval(both, test.won, test.lost, total - both - test.won - test.lost)
    a, b = (Share(right / total, *summary.interval(right, total)) for right in (right_a, right_b))
    gap = (right_a - right_b) / total
    return Row(*key, total, a, b, gap, low, high, test.won, test.lost, test.p_value, adjusted)


def _cells(row: Row) -> tuple[str, ...]:
    shares = [f"{100 * s.accuracy:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in (row.a, row.b)]
    gap = f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    tests = (f"{row.won}/{row.lost}", _p(row.p_value), _p(row.p_holm))
    eps = "–" if row.threat == "clean" else eps_label(row.eps, cast(Norm, row.norm))
    return (row.threat, eps, str(row.num_images), *shares, gap, *tests)


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _words(key: _Key) -> str:
    classifier, threat, norm, eps = key
    return f"{threat} before {classifier}" + (f" at {eps_label(eps, cast(Norm, norm))}" if threat != "clean" else "")


def _order(result: Result) -> Any:
    """Sorts keys by classifier as in the result, then threat model, norm and eps."""
    classifiers, threats = list(result.values["classifiers"]), list(THREATS)

    def place(key: _Key) -> tuple[Any, ...]:
        classifier, threat, norm, eps = key
        known = classifiers.index(classifier) if classifier in classifiers else len(classifiers)
        return known, threats.index(threat) if threat in threats else len(threats), norm != "Linf", norm, eps

    return place
