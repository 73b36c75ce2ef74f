"""The reference of configuration keys: `python -m maep_jobs.reference > docs/configuration.md`."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator

from maep import config
from maep.tracking.client import TrackingConfig
from maep_jobs.arguments import JobParser
from maep_jobs.cli import VERBS

_INTRODUCTION = """# Configuration

<!-- made by `python -m maep_jobs.reference > docs/configuration.md` from the configuration classes; do not edit -->

Every key can be given in the YAML file of `--config` or on the command line as `--section.key VALUE`, which wins.
`maep VERB --help` lists the keys of one verb, and `maep VERB --dry-run` prints their values.
Numbers may be written as `8/255`, lists as `[1, 2]`; a single value stands for a list of one. Text and paths are taken
as they are.

A key that decides is part of the identity of a result: a run with another value of it is a different run. A run may be
resumed with other values of the keys that do not.

| verb | configured by |
|---|---|
"""


def reference() -> str:
    """The page: the class of each verb, then the keys of each class."""
    verbs: dict[str, type] = {}
    for verb in VERBS:
        parser = importlib.import_module(f"maep_jobs.verbs.{verb}").parser()
        if isinstance(parser, JobParser):
            verbs[verb] = parser.settings_class
    rows = [f"| `maep {verb}` | {_link(cls)}, {_link(TrackingConfig)} as `tracking` |" for verb, cls in verbs.items()]
    classes = dict.fromkeys(found for cls in (*verbs.values(), TrackingConfig) for found in _below(cls))
    return _INTRODUCTION + "\n".join([*rows, *(line for cls in classes for line in _table(cls))]) + "\n"


def _below(cls: type) -> Iterator[type]:
    """The class, then those of its sections."""
    yield cls
    for inner in itertools.chain(*config.inner_classes(cls).values()):
        yield from _below(inner)


def _table(cls: type) -> Iterator[str]:
    keys = {key.path: key for key in config.describe(cls)}
    yield from ("", f"## {cls.__name__}", "", " ".join((cls.__doc__ or "").split()))
    if keys:
        yield from ("", "| key | type | default | meaning | decides |", "|---|---|---|---|---|")
    for name, classes in config.inner_classes(cls).items():
        key, inner = keys[name], " or ".join(map(_link, classes))
        type_ = key.type.replace("section", inner) if inner else key.type
        default = f"`{key.default}`" if key.default else ""
        decides = {None: "", True: "yes", False: "no"}[key.decides]
        cells = (f"`{key.path}`", type_, default, key.meaning, decides)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _link(cls: type) -> str:
    return f"[{cls.__name__}](#{cls.__name__.lower()})"


if __name__ == "__main__":
    print(reference(), end="")
