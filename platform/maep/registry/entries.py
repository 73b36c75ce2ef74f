"""What the decorator of each kind declares, and what the decorated class or function must be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AttackEntry:
    """A function from an `AttackTask` (maep.attacks.task) to attacked images, float [B, 3, H, W]."""

    norms: tuple[str, ...]
    """The norms of its budget, the default first: Linf, L2, L1, or one of its own."""
    label: str
    """The name that tables show."""
    effort: str | None = "steps"
    """The key of AttackConfig that sets its effort: steps, queries or draws; None: its effort is fixed."""
    targeted: bool = False
    """Whether it aims at each of `AttackConfig.targets` classes."""
    differentiates: bool = True
    """Whether it uses the model's gradient. Other attacks only query the model."""

    def __post_init__(self) -> None:
        """Raises TypeError for a declaration that AttackConfig could not use."""
        if not isinstance(self.norms, tuple) or self.effort not in ("steps", "queries", "draws", None):
            raise TypeError("norms must be a tuple of names, and effort steps, queries, draws or None")


def baseline_arguments(**arguments: Any) -> dict[str, Any]:
    """The keyword arguments for the decorated class or function, which builds a baseline defence.

    A defence is an `nn.Module` with the attributes `differentiable` and `randomised`.
    """
    return arguments


@dataclass(frozen=True)
class DatasetEntry:
    """A function from a DataConfig and a split to an ImageSet."""

    num_classes: int
    side: int
    """Height and width of an image in pixels; for a `cropped` data set, the default of `data.image_size`."""
    cropped: bool = False
    """Whether its images are cropped to `data.image_size`."""
    streamed: bool = False
    """Whether training reads shards, local or on S3, as opened by `maep.data.sets.imagenet.train_shards`."""


@dataclass(frozen=True)
class FamilyEntry:
    """A class or function that builds a purifier, an `nn.Module`, from a configuration of class `config`.

    Its `forward` maps float [B, 3, H, W] in [0, 1] to the same. Optional attributes: `stride`, of which H and W must be
    multiples; `randomised`; and `unclamped`, a forward pass without the clamp to [0, 1], which the training loss uses.
    """

    config: type
    """A frozen dataclass with the keys `name`, whose default is the registered name, and `image_size`; a key `mae` is
    an autoencoder, which pretraining can start."""
    title: str = "Purifier"
    """Heading of the cards of its artifacts."""
    head: bool = False
    """Whether it classifies inside, with the parts and methods of `maep.models.robust.RobustPurifier`: `encoder`,
    `decoder`, `verdict_of` and `write`."""

    def __post_init__(self) -> None:
        """Raises TypeError for a class that cannot be filled from a configuration."""
        if "name" not in getattr(self.config, "__dataclass_fields__", ()):
            raise TypeError("config must be a frozen dataclass with a key name")


@dataclass(frozen=True)
class LossEntry:
    """A function from `LossInputs` (maep.train.losses.inputs) and the term's configuration to a scalar tensor."""

    meaning: str
    """What the term measures, for `--help`."""
    config: type | None = None
    """A subclass of TermConfig with further keys; None: TermConfig."""
    teacher: bool = False
    """Whether it compares the teaching classifier's outputs."""
    order: float = math.inf
    """Position among the terms; ties are sorted by name."""

    def __post_init__(self) -> None:
        """Raises TypeError for a class that is not a term's."""
        if self.config is not None and "weight" not in getattr(self.config, "__dataclass_fields__", ()):
            raise TypeError("config must be a subclass of TermConfig")


@dataclass(frozen=True)
class MetricEntry:
    """A function from a `Candidate` (maep.tune.metrics.candidate) to a number, or to bools: correct predictions.

    A value is shown in `unit`, multiplied by `scale`, with `digits` decimals.
    """

    words: str
    unit: str
    scale: float = 1.0
    digits: int = 1
    lower_is_better: bool = False
    order: float = math.inf
    """Position in tables; ties are sorted by name."""

    @property
    def label(self) -> str:
        """The label of an axis or a column: clean accuracy, %."""
        return f"{self.words}, {self.unit}"

    def text(self, value: float) -> str:
        """`value` as shown, without its unit."""
        return f"{self.scale * value:,.{self.digits}f}"
