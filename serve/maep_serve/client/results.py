"""What the endpoint's answers are to a caller: frozen records, read from JSON and headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maep.errors import UserError


class ProblemError(UserError):
    """The endpoint refused a request: HTTP `status`, stable `code` (see maep_serve.http.problems) and one line."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"the endpoint answered {status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Purified:
    """A purified image as the endpoint encoded it.

    purifier: sha256 of the artifact that made it; a rollout may change it between two answers.
    request_id: what the endpoint's log calls this request.
    """

    image: bytes
    content_type: str
    purifier: str
    request_id: str | None


@dataclass(frozen=True)
class Candidate:
    """One class of an answer; `probability` is the classifier's softmax, in [0, 1]."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Suspicion:
    """How much an image looks attacked (see maep_serve.engine.suspicion).

    distance: root mean square of what purification changed, in [0, 1].
    score: the share of clean images that look less suspicious; suspected: whether that is too much, which it is for a
        share `false_positive_rate` of clean ones. All None where nothing was calibrated for these models and this size.
    """

    distance: float
    score: float | None
    suspected: bool | None
    false_positive_rate: float | None


@dataclass(frozen=True)
class Classified:
    """The best classes of an image and of its purified form, best first.

    changed: whether the best class differs, which is what an attack that was undone looks like (and a mistake too).
    """

    before: tuple[Candidate, ...]
    after: tuple[Candidate, ...]
    changed: bool
    suspicion: Suspicion
    purifier: str
    classifier: str


@dataclass(frozen=True)
class Info:
    """What is served, and within which limits. `image_size` is (height, width) the purifier was trained on."""

    purifier: str
    image_size: tuple[int, int]
    classifier: str | None
    num_classes: int
    max_body_bytes: int
    max_pixels: int


def purified(body: bytes, headers: Mapping[str, str]) -> Purified:
    """Of an answer of /v1/purify. Raises KeyError where a header is missing."""
    return Purified(body, headers["content-type"], headers["x-maep-purifier"], headers.get("x-request-id"))


def classified(values: Mapping[str, Any]) -> Classified:
    """Of the JSON of /v1/classify. Raises KeyError, TypeError, ValueError where it is another document."""
    return Classified(
        before=_candidates(values["before"]),
        after=_candidates(values["after"]),
        changed=bool(values["changed"]),
        suspicion=_suspicion(values["suspicion"]),
        purifier=str(values["purifier"]),
        classifier=str(values["classifier"]),
    )


def info(values: Mapping[str, Any]) -> Info:
    """Of the JSON of /v1/info. Raises KeyError, TypeError, ValueError where it is another document."""
    height, width = values["image_size"]
    classifier = values["classifier"]
    return Info(
        purifier=str(values["purifier"]),
        image_size=(int(height), int(width)),
        classifier=None if classifier is None else str(classifier),
        num_classes=int(values["num_classes"]),
        max_body_bytes=int(values["max_body_bytes"]),
        max_pixels=int(values["max_pixels"]),
    )


def _candidates(rows: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    return tuple(Candidate(int(row["index"]), str(row["class"]), float(row["probability"])) for row in rows)


def _suspicion(values: Mapping[str, Any]) -> Suspicion:
    score, suspected, rate = values["score"], values["suspected"], values["false_positive_rate"]
    return Suspicion(
        distance=float(values["distance"]),
        score=None if score is None else float(score),
        suspected=None if suspected is None else bool(suspected),
        false_positive_rate=None if rate is None else float(rate),
    )
