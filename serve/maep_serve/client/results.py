"""What the endpoint returns: frozen records. Their fields are the keys of the JSON documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from maep.errors import UserError


class ProblemError(UserError):
    """The endpoint refused a request: HTTP `status`, stable `code` (see maep_serve.problems), `detail`."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"the endpoint responded {status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Purified:
    """A purified image as the endpoint encoded it.

    purifier: sha256 of the artifact that made it; a rollout can change it between two requests.
    request_id: the request's id in the endpoint's logs.
    """

    image: bytes
    content_type: str
    purifier: str
    request_id: str | None


@dataclass(frozen=True)
class Candidate:
    """One class of a prediction; `probability` is the classifier's softmax, in [0, 1]."""

    index: int
    name: Annotated[str, Field(validation_alias="class")]
    probability: float


@dataclass(frozen=True)
class Suspicion:
    """How likely an image is to be attacked (see maep_serve.engine.suspicion).

    distance: root mean square of the change that purification makes, in [0, 1].
    score: share of clean images that look less suspicious. suspected: whether the score exceeds the threshold, which
        happens for a share `false_positive_rate` of clean images. All three are None for models and image sizes that
        have no calibration.
    """

    distance: float
    score: float | None
    suspected: bool | None
    false_positive_rate: float | None


@dataclass(frozen=True)
class Classified:
    """The top classes of an image before and after purification, best first.

    changed: whether the top class differs, as it does when purification undoes an attack (or makes a mistake).
    """

    before: tuple[Candidate, ...]
    after: tuple[Candidate, ...]
    changed: bool
    suspicion: Suspicion
    purifier: str
    classifier: str


@dataclass(frozen=True)
class Info:
    """The served models and the endpoint's limits. `image_size` is the (height, width) the purifier was trained on."""

    purifier: str
    image_size: tuple[int, int]
    classifier: str | None
    num_classes: int
    max_body_bytes: int
    max_pixels: int
