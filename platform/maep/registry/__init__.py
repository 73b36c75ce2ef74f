"""The extension points: attacks, baselines, data sets, purifier families, loss terms and search metrics, by name.

To add one, decorate it in one file. In this repository the file goes into the folder of its kind and nothing else
changes. In a package of your own, name its module in an entry-point group, under the registered name:

    @registry.baseline("mirror")                        [project.entry-points."maep.baselines"]
    class Mirror(nn.Module): ...                        mirror = "my_package.mirror"

A name is looked up lazily: names are listed, and what decorators declare of them is read from the text of the files,
without importing them. A file is imported when its name is used, or when what it declares is not all literals.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from maep.errors import ConfigError, UserError, nearest
from maep.registry.entries import AttackEntry, DatasetEntry, FamilyEntry, LossEntry, MetricEntry, baseline_arguments

P = ParamSpec("P")
D = TypeVar("D")
T = TypeVar("T")

_log = logging.getLogger("maep.registry")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""A name is a key of configurations, a value on the command line and part of file names."""


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
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{self.kind} {name!r}: a name is a letter, then letters, digits, - and _")

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
        if name not in self._registered and source is not None:
            if source.load is not None:
                source = _read(source, name, self.kind)
            if source.whole:
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
            if not _NAME.fullmatch(point.name):
                _log.warning("%s %r of the package %s is ignored: a name is a letter, then letters, digits, - and _",
                    self.kind, point.name, _distribution(point))  # fmt: skip
            elif other is None:
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


def _read(source: _Source, name: str, kind: str) -> _Source:
    """`source`, a plug-in's, with what the text of its file declares; as it is where there is no such text."""
    package, *inner = source.module.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(package)  # of the package itself, which imports nothing
        if spec is None or not spec.origin:
            return source
        paths = [Path(folder, *inner).with_suffix(".py") for folder in spec.submodule_search_locations or []]
        paths = paths if inner else [Path(spec.origin)]
        text = next(path for path in paths if path.is_file()).read_text(encoding="utf-8")
        declared, whole = next(found[1:] for found in _decorators(text, kind) if found[0] == name)
    except (StopIteration, OSError, ValueError, SyntaxError, ImportError):
        return source  # importing it says what is wrong
    return replace(source, declared=declared, whole=whole)


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
