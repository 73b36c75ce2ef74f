"""The result of an evaluation: accuracies with intervals, each recomputable from the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from maep import storage
from maep.errors import ConfigError, DataError, nearest
from maep.evaluate.config import Threat, eps_label
from maep.evaluate.results import rows

SCHEMA = 2
RESULT = "result.json"
IMAGES = "images.parquet"
CONFIDENCE = 0.95
WORST = "worst case"
THREATS: tuple[Threat, ...] = get_args(Threat)
CURVES = ("adaptive-steps", "adaptive-eot")
"""Threat models without a worst case: each attack is one point of a curve."""
_GROUP = ["purifier", "purifier_sha256", "classifier", "classifier_sha256", "threat", "norm", "eps", "eot", "num_draws"]
_SUMS = [("correct", "sum"), ("correct", "count"), ("num_right", "sum"), ("all_right", "sum")]


@dataclass(frozen=True)
class Share:
    """An accuracy in [0, 1] and its 95 % interval of Wilson (1927)."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """Accuracy under one threat model: the share of `num_images` classified correctly, in [0, 1].

    `attack` names one attack; under `worst case` an image counts only if it is right after all of them.
    The attacks of `bpda`, `black-box` and `adaptive` form a cascade: each accuracy is what remains after that attack
    and those before it, starting from the images that are right without any attack.
    `low` and `high` are the 95 % interval of Wilson (1927).
    A randomised purifier is judged on `num_draws` fresh draws of each attacked image: `accuracy` is of the majority
    vote, `mean_accuracy` of a single draw, `worst_accuracy` of images that every draw gets right.
    """

    purifier: str
    purifier_sha256: str
    classifier: str
    classifier_sha256: str
    threat: str
    norm: str
    attack: str
    eps: float
    steps: int
    eot: int
    num_images: int
    num_correct: int
    accuracy: float
    low: float
    high: float
    num_draws: int = 1
    mean_accuracy: float | None = None
    worst_accuracy: float | None = None

    @property
    def budget(self) -> str:
        """`eps` as written in its norm, such as 8/255."""
        return eps_label(self.eps, self.norm)


@dataclass(frozen=True)
class Result:
    """A finished evaluation in `folder`; `values` is its result.json."""

    folder: Path
    values: dict[str, Any]

    @cached_property
    def figures(self) -> list[Figure]:
        """Every figure, in the order of the table."""
        return [Figure(**entry) for entry in self.values["figures"]]

    @property
    def unreliable(self) -> dict[str, list[str]]:
        """Purifier -> the sanity checks that it failed, in words; reliable purifiers are left out."""
        reasons: dict[str, list[str]] = {}
        for entry in self.values["sanity"]:
            for check in entry["checks"]:
                if not check["passed"]:
                    line = f"{check['name']} ({entry['classifier']}): {check['detail']}"
                    reasons.setdefault(entry["purifier"], []).append(line)
        return reasons

    @property
    def evaluated(self) -> list[str]:
        """The purifiers that were evaluated, without the baselines."""
        return [name for name in self.values["purifiers"] if name not in self.values["baselines"]]

    def choose(self, name: str | None) -> str:
        """`name`, checked, or the only purifier. Raises ConfigError where it is missing or ambiguous."""
        if name is None and len(self.evaluated) == 1:
            return self.evaluated[0]
        if name is None:
            example = (self.evaluated or ["PURIFIER"])[0]
            raise ConfigError(
                f"{self.folder} holds {len(self.evaluated)} purifiers: name one, such as FOLDER:{example}"
            )
        if name not in self.values["purifiers"]:
            raise ConfigError(f"{self.folder} holds no purifier {name!r}: {nearest(name, self.values['purifiers'])}")
        return name

    def rows(self) -> pa.Table:
        """All rows, verified against the digest in result.json."""
        path = self.folder / IMAGES
        if not path.is_file() or storage.sha256_file(path) != self.values["images_sha256"]:
            raise DataError(f"{path} is missing or was changed after the evaluation: run the evaluation again")
        return rows.read(path)

    def figure(
        self, purifier: str, classifier: str, threat: str, eps: float = 0.0, attack: str = WORST, norm: str = "Linf"
    ) -> Figure:
        """One accuracy; `clean` needs no eps. Raises KeyError where it was not measured."""
        wanted = (purifier, classifier, threat, norm)
        for f in self.figures:
            same = (f.purifier, f.classifier, f.threat, f.norm) == wanted
            if same and abs(f.eps - eps) < 1e-9 and f.attack in (attack, "clean"):
                return f
        raise KeyError(f"{purifier} on {classifier}: {threat} {attack} at {eps:.4f} {norm}")


def summarise(table: pa.Table) -> list[Figure]:
    """Accuracies from rows alone, in the order in which purifiers and attacks first appear."""
    table = table.append_column("all_right", pc.equal(table["num_right"], table["num_draws"]))
    single = table.group_by([*_GROUP, "attack", "steps"], use_threads=False)
    figures = [_figure(row) for row in single.aggregate(_SUMS).to_pylist()]
    worst = table.filter(pc.invert(pc.is_in(table["threat"], pa.array(["clean", *CURVES]))))
    by_image = worst.group_by([*_GROUP, "index"], use_threads=False)
    least = by_image.aggregate([(name, "min") for name in ("correct", "num_right", "all_right")] + [("steps", "max")])
    least = least.rename_columns(
        [name.removesuffix("_min").replace("steps_max", "steps") for name in least.column_names]
    )
    groups = least.group_by(_GROUP, use_threads=False).aggregate([*_SUMS, ("steps", "max")]).to_pylist()
    figures += [_figure({**row, "attack": WORST, "steps": row["steps_max"]}) for row in groups]
    seen = list(dict.fromkeys((figure.classifier, figure.purifier) for figure in figures))
    order = {pair: place for place, pair in enumerate(seen)}
    return sorted(
        figures,
        key=lambda f: (
            order[f.classifier, f.purifier],
            THREATS.index(f.threat),
            *norm_order(f.norm),
            f.eps,
            f.attack == WORST,
        ),
    )


def check_alike(a: Result, b: Result, keys: Sequence[str]) -> None:
    """Raises ConfigError where two results differ in one of `keys`."""
    for key in keys:
        if a.values[key] != b.values[key]:
            raise ConfigError(f"{a.folder} and {b.folder} differ in {key}: evaluate both with the same settings")


def norm_order(norm: str) -> tuple[bool, str]:
    """Sorts Linf before the other norms."""
    return norm != "Linf", norm


def interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    from scipy.stats import binomtest  # takes half a second to import

    bounds = binomtest(num_correct, num_images).proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def share(num_correct: int, num_images: int) -> Share:
    """The share of correct answers with its interval."""
    return Share(num_correct / num_images, *interval(num_correct, num_images))


def outcomes(
    table: pa.Table, purifier: str, classifier: str, threat: str, eps: float, norm: str = "Linf"
) -> dict[int, bool]:
    """Official index -> whether the image is right after every attack of that threat and budget."""
    words = {"purifier": purifier, "classifier": classifier, "threat": threat, "norm": norm}
    chosen = pc.less(pc.abs(pc.subtract(table["eps"], eps)), 1e-9)
    for name, word in words.items():
        chosen = pc.and_(chosen, pc.equal(table[name], word))
    least = table.filter(chosen).group_by("index", use_threads=False).aggregate([("correct", "min")])
    return dict(zip(least["index"].to_pylist(), least["correct_min"].to_pylist(), strict=True))


def write(folder: Path, table: pa.Table, values: Mapping[str, Any], sanity: Sequence[Mapping[str, Any]]) -> Result:
    """Writes images.parquet and then result.json, last."""
    data = rows.encode(table)
    storage.write_bytes(folder / IMAGES, data)
    complete = {
        "schema": SCHEMA,
        **values,
        "images_sha256": storage.sha256(data),
        "figures": [asdict(figure) for figure in summarise(table)],
        "sanity": [dict(entry) for entry in sanity],
    }
    result = Result(folder, complete)
    complete["reliable"] = not result.unreliable
    complete["unreliable"] = result.unreliable
    storage.write_bytes(folder / RESULT, (json.dumps(complete, indent=2) + "\n").encode())
    return read(folder)


def read(folder: str | Path) -> Result:
    """The finished evaluation in `folder`. Raises DataError where there is none."""
    path = Path(folder) / RESULT
    try:
        values = json.loads(path.read_bytes())
        schema = values["schema"]
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {RESULT}: it is no evaluation, or an unfinished one") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not the result of an evaluation: it is truncated or was edited") from None
    if schema > SCHEMA:
        raise DataError(f"{path} has schema {schema}, this maep reads up to {SCHEMA}: upgrade maep")
    return Result(Path(folder), values)


def _figure(row: Mapping[str, Any]) -> Figure:
    right, total, draws = int(row["correct_sum"]), int(row["correct_count"]), int(row["num_draws"])
    low, high = interval(right, total)
    named = {name: row[name] for name in [*_GROUP, "attack", "steps"]}
    over_draws: dict[str, Any] = {}
    if draws > 1:
        over_draws["mean_accuracy"] = int(row["num_right_sum"]) / (total * draws)
        over_draws["worst_accuracy"] = int(row["all_right_sum"]) / total
    accuracy = right / total
    return Figure(**named, num_images=total, num_correct=right, accuracy=accuracy, low=low, high=high, **over_draws)
