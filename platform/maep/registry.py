"""The extension points: attacks, baselines, data sets, purifier families, loss terms and search metrics, by name.

To add one, decorate it in one file. In this repository the file goes into the folder of its kind and nothing else
changes. In a package of your own, name its module in an entry-point group, under the registered name:

    @registry.baseline("mirror")                        [project.entry-points."maep.baselines"]
    class Mirror(nn.Module): ...                        mirror = "my_package.mirror"

A name is looked up lazily: names are listed, and what the repository declares of them is read, without importing the
files; only the file that registers the name in use is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any, Generic, ParamSpec, TypeVar

from maep.errors import ConfigError, UserError, nearest

P = ParamSpec("P")
D = TypeVar("D")
T = TypeVar("T")

_log = logging.getLogger("maep.registry")


@dataclass(frozen=True)
class AttackEntry:
    """A function from an `AttackTask` (maep.attacks.task) to attacked images, float [B, 3, H, W]."""

    norms: tuple[str, ...]
    """In which it can measure its budget, the usual one first: Linf, L2, L1, or one of its own."""
    label: str
    """Its name in tables."""
    effort: str | None = "steps"
    """The key of AttackConfig that says how long it works: steps, queries or draws; None: it has a fixed length."""
    targeted: bool = False
    """Whether it aims at each of `AttackConfig.targets` classes."""
    differentiates: bool = True
    """Whether it takes the model's gradient; the others only query it."""


def baseline_arguments(**arguments: Any) -> dict[str, Any]:
    """Of a class or function that makes a defence, an `nn.Module` with `differentiable` and `randomised`.

    It is called with the keyword arguments of the decorator.
    """
    return arguments


@dataclass(frozen=True)
class DatasetEntry:
    """A function from a DataConfig and a split to an ImageSet."""

    num_classes: int
    side: int
    """Height and width of an image in pixels; where it is `cropped`, unless `data.image_size` says otherwise."""
    cropped: bool = False
    """Whether its images are cropped to `data.image_size`."""
    streamed: bool = False
    """Whether training reads it in shards, local or on S3, as `maep.data.sets.imagenet.train_shards` opens them."""


@dataclass(frozen=True)
class FamilyEntry:
    """A class or function that makes a purifier, an `nn.Module`, from a configuration of class `config`.

    Its `forward` maps float [B, 3, H, W] in [0, 1] to the same; it may have `stride`, of which H and W are multiples,
    `randomised`, and `unclamped`, the output before it is cut to [0, 1], from which training takes the gradient.
    """

    config: type
    """A frozen dataclass with the keys `name`, whose default is the registered name, and `image_size`; a key `mae` is
    an autoencoder, which pretraining can start."""
    title: str = "Purifier"
    """Heading of the cards of its artifacts."""


@dataclass(frozen=True)
class LossEntry:
    """A function from `LossInputs` (maep.train.losses.inputs) and the term's configuration to a scalar tensor."""

    meaning: str
    """What it measures, for `--help`."""
    config: type | None = None
    """A subclass of TermConfig, for further keys; None: TermConfig."""
    teacher: bool = False
    """Whether it compares the teaching classifier's outputs."""
    order: float = math.inf
    """Place among the terms; those of equal `order` go by name."""


@dataclass(frozen=True)
class MetricEntry:
    """A function from a `Candidate` (maep.tune.metrics.candidate) to a number, or to a bool array, right answers.

    A value is written as `scale` times itself in `unit`, with `digits` after the point.
    """

    words: str
    unit: str
    scale: float = 1.0
    digits: int = 1
    lower_is_better: bool = False
    order: float = math.inf
    """Place in tables; those of equal `order` go by name."""

    @property
    def label(self) -> str:
        """For an axis or a column's head: clean accuracy, %."""
        return f"{self.words}, {self.unit}"

    def text(self, value: float) -> str:
        """`value` as it is written, without its unit."""
        return f"{self.scale * value:,.{self.digits}f}"


@dataclass(frozen=True)
class _Source:
    """Where a name is registered: a module of the repository, or an entry point of `distribution`."""

    module: str
    declared: dict[str, Any]
    """The keyword arguments of the decorator that are literals."""
    whole: bool = False
    """Whether all of them are."""
    distribution: str | None = None
    load: Callable[[], Any] | None = None


class Registry(Generic[P, D]):
    """What is registered of one kind: the objects by name, and what their decorators declare of them.

    `package` holds the repository's own, a file each; `entry` is made of a decorator's keyword arguments.
    """

    def __init__(self, kind: str, package: str, entry: Callable[P, D], group: str) -> None:
        self.kind, self.group = kind, group
        self._package, self._entry = package, entry
        self._registered: dict[str, tuple[Any, D]] = {}

    def register(self, name: str, /, *args: P.args, **kwargs: P.kwargs) -> Callable[[T], T]:
        """A decorator that registers what it decorates under `name`. ConfigError where `name` is taken."""
        declared = self._entry(*args, **kwargs)

        def decorate(made: T) -> T:
            own, before = _module(made), self._registered.get(name)
            first = self._builtin.get(name)
            taken_by = first.module if first is not None else _module(before[0]) if before is not None else own
            if taken_by != own:
                raise ConfigError(f"{self.kind} {name!r} is registered by {taken_by}: {own} needs another name")
            self._registered[name] = made, declared
            return made

        return decorate

    def names(self, plug_ins: bool = True) -> list[str]:
        """Every name, or only the repository's, by declared order, then sorted; the files are not imported."""
        if not plug_ins:
            return sorted(self._builtin, key=lambda name: (self._builtin[name].declared.get("order", math.inf), name))
        orders = {name: source.declared.get("order", math.inf) for name, source in self._sources.items()}
        orders |= {name: getattr(entry, "order", math.inf) for name, (_, entry) in self._registered.items()}
        return sorted(orders, key=lambda name: (orders[name], name))

    def require(self, names: Iterable[str], key: str) -> None:
        """Raises ConfigError where one of `names`, of configuration key `key`, is not known; imports nothing."""
        for name in names:
            if name not in self._registered and name not in self._sources:
                raise ConfigError(f"{key}: {name!r} is not known: {nearest(name, self.names())}")

    def get(self, name: str) -> Any:
        """What is registered under `name`.

        Raises ConfigError, with the nearest name, for an unknown one; UserError, naming the package, where the
        package that should register it fails.
        """
        return self._found(name)[0]

    def declared(self, name: str) -> D:
        """What the decorator of `name` declares; raises as `get` does."""
        source = self._sources.get(name)
        if name not in self._registered and source is not None and source.whole:
            entry: Callable[..., D] = self._entry
            return entry(**source.declared)
        return self._found(name)[1]

    def config_class(self, name: str) -> type:
        """The class that `name` is configured by; raises as `get` does."""
        made: type = self.declared(name).config  # type: ignore[attr-defined]
        return made

    def _found(self, name: str) -> tuple[Any, D]:
        self.require([name], self.kind)
        if name not in self._registered:
            self._import(name, self._sources[name])
        return self._registered[name]

    def _import(self, name: str, source: _Source) -> None:
        if source.load is None:
            importlib.import_module(source.module)
            return
        where = f"{self.kind} {name!r} of the package {source.distribution} ({source.module})"
        try:
            source.load()
        except Exception as error:  # whatever a foreign module does
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{where} cannot be imported: {reason}") from error
        if name not in self._registered:
            raise UserError(f"{where} registers no such {self.kind}: it needs the decorator registry.{self.kind}")

    @functools.cached_property
    def _builtin(self) -> dict[str, _Source]:
        """The repository's names, from the text of the files of `package`."""
        found = {}
        for file in resources.files(self._package).iterdir():
            if file.name.endswith(".py"):
                module = f"{self._package}.{file.name.removesuffix('.py')}"
                for name, declared, whole in _decorators(file.read_text(encoding="utf-8"), self.kind):
                    found[name] = _Source(module, declared, whole)
        return found

    @functools.cached_property
    def _sources(self) -> dict[str, _Source]:
        """Every name that can be looked up; the repository's own win, then the first package by its name."""
        found = dict(self._builtin)
        for point in sorted(metadata.entry_points(group=self.group), key=lambda point: (_distribution(point), point)):
            other = found.get(point.name)
            if other is None:
                found[point.name] = _Source(point.value, {}, False, _distribution(point), point.load)
            elif other.distribution != _distribution(point):  # a package may be listed twice on the path
                owner = other.distribution or "maep"
                _log.warning(
                    "%s %r of the package %s is ignored: %s has that name",
                    self.kind, point.name, _distribution(point), owner,
                )  # fmt: skip
        return found


def _decorators(text: str, kind: str) -> list[tuple[str, dict[str, Any], bool]]:
    """For each `@registry.KIND(NAME, ...)` in a file: the name, its literal arguments, and whether all are literals."""
    found = []
    for node in ast.walk(ast.parse(text)):
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"registry.{kind}":
                literals = {}
                for keyword in call.keywords:
                    try:
                        literals[str(keyword.arg)] = ast.literal_eval(keyword.value)
                    except ValueError:
                        continue
                found.append((ast.literal_eval(call.args[0]), literals, len(literals) == len(call.keywords)))
    return found


def _module(made: Any) -> str:
    return str(getattr(made, "__module__", "__main__"))


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


attacks = Registry("attack", "maep.attacks.methods", AttackEntry, "maep.attacks")
baselines = Registry("baseline", "maep.evaluate.baselines", baseline_arguments, "maep.baselines")
datasets = Registry("dataset", "maep.data.sets", DatasetEntry, "maep.datasets")
families = Registry("family", "maep.models.families", FamilyEntry, "maep.families")
losses = Registry("loss", "maep.train.losses", LossEntry, "maep.losses")
metrics = Registry("metric", "maep.tune.metrics", MetricEntry, "maep.metrics")

attack = attacks.register
baseline = baselines.register
dataset = datasets.register
family = families.register
loss = losses.register
metric = metrics.register
