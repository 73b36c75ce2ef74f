"""The extension points: attacks, baselines, data sets, purifier families, loss terms and search metrics, by name.

To add one, decorate it in one file. In this repository the file goes into the folder of its kind and nothing else
changes. In a package of your own, name its module in an entry-point group, under the registered name:

    @registry.baseline("mirror")                        [project.entry-points."maep.baselines"]
    class Mirror(nn.Module): ...                        mirror = "my_package.mirror"

A name is looked up lazily: names are listed, and what the repository declares of them is read, without importing the
files. Only the file that registers the name in use is imported.
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


@dataclass(frozen=True)
class _Source:
    """Where a name is registered: a module of the repository, or an entry point of `distribution`."""

    module: str
    declared: dict[str, Any]
    """The decorator's keyword arguments that are literals."""
    whole: bool = False
    """Whether all of the decorator's arguments are literals."""
    distribution: str | None = None
    load: Callable[[], Any] | None = None


class Registry(Generic[P, D]):
    """The registered objects of one kind by name, and the entries that their decorators declare.

    `package` holds the repository's own, one file each; `entry` is built from a decorator's arguments.
    """

    def __init__(self, kind: str, package: str, entry: Callable[P, D], group: str) -> None:
        self.kind, self.group = kind, group
        self._package, self._entry = package, entry
        self._registered: dict[str, tuple[Any, D]] = {}

    def register(self, name: str, /, *args: P.args, **kwargs: P.kwargs) -> Callable[[T], T]:
        """A decorator that registers an object under `name`. Raises ConfigError if `name` is taken."""
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
        """All names, or only the repository's, by declared order, then alphabetically. Imports no file."""
        if not plug_ins:
            return sorted(self._builtin, key=lambda name: (self._builtin[name].declared.get("order", math.inf), name))
        orders = {name: source.declared.get("order", math.inf) for name, source in self._sources.items()}
        orders |= {name: getattr(entry, "order", math.inf) for name, (_, entry) in self._registered.items()}
        return sorted(orders, key=lambda name: (orders[name], name))

    def require(self, names: Iterable[str], key: str) -> None:
        """Raises ConfigError naming configuration key `key` if one of `names` is unknown. Imports nothing."""
        for name in names:
            if name not in self._registered and name not in self._sources:
                raise ConfigError(f"{key}: {name!r} is not known: {nearest(name, self.names())}")

    def get(self, name: str) -> Any:
        """The object registered under `name`.

        Raises ConfigError, naming the nearest name, for an unknown one, and UserError, naming the package, if the
        package that should register it fails.
        """
        return self._found(name)[0]

    def declared(self, name: str) -> D:
        """The entry that the decorator of `name` declares. Raises as `get` does."""
        source = self._sources.get(name)
        if name not in self._registered and source is not None and source.whole:
            entry: Callable[..., D] = self._entry
            return entry(**source.declared)
        return self._found(name)[1]

    def config_class(self, name: str) -> type:
        """The configuration class of `name`. Raises as `get` does."""
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
        except (Exception, SystemExit) as error:  # a foreign module may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{where} cannot be imported: {reason}") from error
        if name not in self._registered:
            raise UserError(f"{where} registers no such {self.kind}: it needs the decorator registry.{self.kind}")

    @functools.cached_property
    def _builtin(self) -> dict[str, _Source]:
        """The repository's names, parsed from the files of `package`."""
        found: dict[str, _Source] = {}
        for file in resources.files(self._package).iterdir():
            if file.name.endswith(".py"):
                module = f"{self._package}.{file.name.removesuffix('.py')}"
                for name, declared, whole in _decorators(file.read_text(encoding="utf-8"), self.kind):
                    if name in found:
                        raise ConfigError(f"{self.kind} {name!r} is registered by {found[name].module} and by {module}")
                    found[name] = _Source(module, declared, whole)
        return found

    @functools.cached_property
    def _sources(self) -> dict[str, _Source]:
        """Every known name. On a clash the repository wins, then the alphabetically first package."""
        found = dict(self._builtin)
        for point in sorted(metadata.entry_points(group=self.group), key=lambda point: (_distribution(point), point)):
            other = found.get(point.name)
            if other is None:
                found[point.name] = _Source(point.value, {}, False, _distribution(point), point.load)
            elif other.distribution != _distribution(point):  # a package may be found twice on the path
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
    return (point.dist.name if point.dist is not None else None) or point.module


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
