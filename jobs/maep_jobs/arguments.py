"""The arguments that verbs share: a configuration by name or file, overrides, output, --dry-run, --json."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from maep import config, storage
from maep.errors import ConfigError, nearest
from maep.tracking.client import TrackingConfig, hide_secrets

T = TypeVar("T", covariant=True)
_PHASES = {"pretrain", "finetune"}
"""Verbs that have a section of their own in a file of several."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """What a verb was asked to do: its own `settings`, where to track, and the parsed `options`."""

    settings: T
    tracking: TrackingConfig
    options: argparse.Namespace


class Parser(argparse.ArgumentParser):
    """Shows examples below the help, and says what is wrong in one line, as every other mistake is said."""

    def __init__(self, verb: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"maep {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message} ({self.prog} --help shows examples)")


def parser(verb: str, description: str, examples: str, output: bool = True, remote: bool = False) -> Parser:
    """A parser with the shared options; `examples` are shown below the help. `remote`: the output may be s3://."""
    made = Parser(verb, description, f"Any configuration key: --section.key VALUE\n\nexamples:\n{examples}")
    made.add_argument("--config", metavar="NAME|FILE", help="a configuration that maep ships, or a YAML file")
    if output:
        where = "folder, or s3://BUCKET/PREFIX," if remote else "folder"
        made.add_argument(
            "--output",
            type=run_output if remote else local_folder,
            metavar="DIR",
            help=f"{where} for results (default: outputs/NAME)",
        )
    made.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and the plan, do nothing"
    )
    made.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return made


def parse(made: Parser, settings_class: type[T], argv: Sequence[str], default: str | None = None) -> Job[T]:
    """Parses `argv`; words that no option takes are overrides. The section `tracking` goes its own way.

    Raises ConfigError for what does not fit `settings_class`.
    """
    options, overrides = made.parse_known_args(list(argv))
    source, verb = options.config or default, made.prog.split()[-1]
    values, name = _read(source, verb, settings_class) if source else ({}, verb)
    _check_options(made, settings_class, overrides)
    values = config.apply_overrides(values, overrides)
    tracking = config.build(TrackingConfig, values.pop("tracking", None), "tracking")
    settings = config.build(settings_class, values)
    if getattr(options, "output", Path()) is None:
        options.output = default_output(name)
    return Job(settings, tracking, options)


def _read(source: str, verb: str, settings_class: type) -> tuple[dict[str, Any], str]:
    """What `source` says to `verb`, and the name of what that makes.

    A file with a section of the verb's name, such as best.yaml of a search, is of several verbs: each takes its own
    section, and `tracking`.
    """
    values = config.read_yaml(find(source))
    assert dataclasses.is_dataclass(settings_class)
    keys = {field.name for field in dataclasses.fields(settings_class)}
    others = [key for key in values if key in _PHASES - keys]
    if verb in _PHASES and verb not in values and others:  # best.yaml of a U-Net has nothing to pretrain
        raise ConfigError(f"{source}: has no section {verb}, it is for maep {' and maep '.join(others)}")
    if verb not in values or verb in keys:
        return _with_sections(values, settings_class), source
    for key in values:
        if key in keys:
            raise ConfigError(f"{source}: {key} stands beside a section {verb}: put it into the section, or have none")
    section = values[verb]
    section = config.read_yaml(find(section, verb)) if isinstance(section, str) else section
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: {verb}: expected a section of keys, got {section!r}")
    shared = {key: values[key] for key in ("tracking",) if key in values}
    return _with_sections({**section, **shared}, settings_class), f"{source.removesuffix('.yaml')}/{verb}"


def _with_sections(values: dict[str, Any], settings_class: type) -> dict[str, Any]:
    """`values` with each section that is given as a name (`finetune: cifar10/finetune`) read from there."""
    kinds = typing.get_type_hints(settings_class)
    for key, value in values.items():
        kind = kinds.get(key)
        if (
            isinstance(value, str)
            and not value.startswith("{")
            and any(map(dataclasses.is_dataclass, (kind, *typing.get_args(kind))))
        ):
            values[key] = config.read_yaml(find(value, key))
            values[key].pop("tracking", None)
    return values


def local_folder(text: str) -> Path:
    """A folder of this machine, or one that it mounts."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is no folder; s3:// is for --tracking.artifact_uri, and what pretrain and finetune put out"
        )
    return Path(text)


def run_output(text: str) -> Path | str:
    """The same, or an s3:// address below a bucket."""
    if not storage.is_remote(text):
        return local_folder(text)
    if not re.fullmatch(r"s3://[^/]+/.*[^/].*", text):
        raise argparse.ArgumentTypeError(f"{text}: write s3://BUCKET/PREFIX, for a run of its own")
    return text.rstrip("/")


def default_output(name: str) -> Path:
    """Where results go that nobody gave a place: `outputs/` and the name of the configuration."""
    return Path("outputs") / name.removesuffix(".yaml").lstrip("./")


def _check_options(made: Parser, settings_class: type, overrides: Sequence[str]) -> None:
    """Refuses a first key that is neither an option nor a section, with the nearest of both."""
    assert dataclasses.is_dataclass(settings_class)
    sections = {field.name for field in dataclasses.fields(settings_class)} | {"tracking"}
    options = {name.removeprefix("--") for name in made._option_string_actions if name.startswith("--")}
    for word in overrides:
        key = word.removeprefix("--").partition("=")[0].partition(".")[0]
        if word.startswith("--") and len(word) > 2 and key not in sections:
            raise ConfigError(f"unknown option --{key}: {nearest(key, sections | options)}")


def find(name: str, where: str = "--config") -> Path:
    """The file of a configuration: a path, or the name of one that ships with maep (`cifar10/pretrain`).

    Raises ConfigError, which says that it was named in `where`, for anything else.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = resources.files("maep_jobs").joinpath("configs")
    inside = Path(str(shipped.joinpath(f"{name}.yaml")))
    if inside.is_file() and ".." not in Path(name).parts:
        return inside
    root = Path(str(shipped))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")]
    raise ConfigError(f"{where} {name!r} is no file and not shipped with maep: {nearest(name, names)}")


def plan_text(job: Job[Any], lines: Sequence[str]) -> str:
    """What --dry-run prints: the resolved configuration, then the plan, as YAML with comments."""
    shown = dataclasses.replace(job.tracking, uri=job.tracking.uri and hide_secrets(job.tracking.uri))
    tracking = config.to_yaml(shown).replace("\n", "\n  ").rstrip()
    return f"{config.to_yaml(job.settings)}tracking:\n  {tracking}\n" + "".join(f"# {line}\n" for line in lines)
