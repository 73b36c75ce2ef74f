"""The arguments that verbs share: a configuration by name or file, overrides, output, --dry-run, --json.

Imports nothing heavy, so that `--help` and errors appear at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from maep import config, storage
from maep.errors import ConfigError
from maep.tracking.client import TrackingConfig, hide_secrets
from maep_jobs import config_files
from maep_jobs.terminal.standard_output import print_json

T = TypeVar("T", covariant=True)
_MEANINGS_COLUMN = 28  # of `--help`


@dataclass(frozen=True)
class Job(Generic[T]):
    """A parsed command line: the verb's own `settings`, the section `tracking`, and the `options`."""

    settings: T
    tracking: TrackingConfig
    options: argparse.Namespace

    def print_plan(self, *lines: str) -> int:
        """Prints what --dry-run shows, the resolved configuration and the plan, as YAML with comments."""
        shown = dataclasses.replace(self.tracking, uri=self.tracking.uri and hide_secrets(self.tracking.uri))
        print(with_tracking(self.settings, shown) + "".join(f"# {line}\n" for line in lines), end="")
        return 0

    def print_result(self, values: Any, *lines: str) -> None:
        """Prints the result: `values` as JSON with --json, else `lines`."""
        print_result(self.options, values, *lines)


class Parser(argparse.ArgumentParser):
    """The options of a verb without a configuration. Errors are one line; the help ends with examples."""

    def __init__(self, verb: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"maep {verb}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.verb = verb

    def add_json(self) -> None:
        """Adds --json, for `print_result`."""
        self.add_argument("--json", action="store_true", help="print the result as JSON on standard output")

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message} ({self.prog} --help shows examples)")


class JobParser(Parser, Generic[T]):
    """The options of a verb that is configured by a `settings_class`; its keys are in the help."""

    def __init__(
        self,
        verb: str,
        settings_class: type[T],
        description: str,
        examples: str,
        output: bool = True,
        remote: bool = False,
    ) -> None:
        """`output`: whether there is --output; `remote`: whether it may be an s3:// address."""
        super().__init__(verb, description, examples)
        self.settings_class = settings_class
        self.add_argument("--config", metavar="NAME|FILE", help="a configuration that maep ships, or a YAML file")
        if output:
            where = "folder or s3://BUCKET/PREFIX" if remote else "folder"
            kind = run_output if remote else local_folder
            self.add_argument("--output", type=kind, metavar="DIR", help=f"{where} for results (default: outputs/NAME)")
        self.add_argument(
            "--dry-run", action="store_true", help="print the resolved configuration and the plan; do nothing"
        )
        self.add_json()

    @property
    def option_names(self) -> list[str]:
        """The long options, without dashes."""
        return [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--")]

    @property
    def keys(self) -> list[config.Key]:
        """Every configuration key of the verb, `tracking` last."""
        return [*config.describe(self.settings_class), *tracking_keys()]

    def format_help(self) -> str:
        """The options, the keys, and the examples."""
        examples = self.epilog
        self.epilog = (
            f"configuration keys, --KEY VALUE or in the file of --config:\n{_keys_text(self.keys)}\n\n{examples}"
        )
        try:
            return super().format_help()
        finally:
            self.epilog = examples

    def parse_job(self, argv: Sequence[str], default: Callable[[argparse.Namespace], str | None] | str = "") -> Job[T]:
        """The job of a command line. Words that are not options override keys of --config, or else of `default`.

        `default` may depend on the options. Raises ConfigError for what does not fit the settings.
        """
        words, overrides = self._split(argv)
        options, stray = self.parse_known_args(words)
        overrides += stray
        fallback = default if isinstance(default, str) else default(options)
        source = options.config or fallback
        values, name = config_files.read(source, self.verb, self.settings_class) if source else ({}, self.verb)
        values = config.apply_overrides(values, overrides)
        tracking = config.build(TrackingConfig, values.pop("tracking", None), "tracking")
        also = [key.path for key in tracking_keys()] + self.option_names
        settings = config.build(self.settings_class, values, also=also)
        if getattr(options, "output", Path()) is None:
            options.output = config_files.default_output(name)
        return Job(settings, tracking, options)

    def _split(self, argv: Sequence[str]) -> tuple[list[str], list[str]]:
        """Options with their values and positional arguments; overrides with theirs, wherever they are."""
        words, overrides, rest = list[str](), list[str](), list(argv)
        while rest:
            word = rest.pop(0)
            is_override = word.startswith("--") and word.partition("=")[0] not in self._option_string_actions
            (overrides if is_override else words).append(word)
            if is_override and "=" not in word and rest:
                overrides.append(rest.pop(0))
        return words, overrides


def print_result(options: argparse.Namespace, values: Any, *lines: str) -> None:
    """Prints `values` as JSON if the options say so, else `lines`."""
    if options.json:
        print_json(values)
    else:
        print(*lines, sep="\n", flush=True)


def command_line(words: Sequence[str]) -> str:
    """The command `maep WORDS` as reports show it: quoted for a shell, without secrets."""
    return hide_secrets(shlex.join(["maep", *words]))


def tracking_keys() -> list[config.Key]:
    """The section `tracking`, which every configured verb has, and its keys."""
    meaning = " ".join((TrackingConfig.__doc__ or "").split())
    return [config.Key("tracking", "section", "", meaning, None, True), *config.describe(TrackingConfig, "tracking.")]


def local_folder(text: str) -> Path:
    """A local or mounted folder."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is not a folder: only pretrain and finetune write results to s3://; for checkpoints and purifiers"
            " see --tracking.artifact_uri"
        )
    return Path(text)


def run_output(text: str) -> Path | str:
    """A local or mounted folder, or an s3:// address below a bucket."""
    if not storage.is_remote(text):
        return local_folder(text)
    if not re.fullmatch(r"s3://[^/]+/.*[^/].*", text):
        raise argparse.ArgumentTypeError(f"{text}: write s3://BUCKET/PREFIX, with a prefix of its own for each run")
    return text.rstrip("/")


def with_tracking(settings: Any, tracking: TrackingConfig) -> str:
    """Settings and their section `tracking` as YAML that --config takes."""
    return config.to_yaml(settings) + config.to_yaml({"tracking": config.to_dict(tracking)})


def _keys_text(keys: Sequence[config.Key]) -> str:
    """Keys with type, meaning and default, by section, wrapped to the terminal."""
    width = max(shutil.get_terminal_size().columns - 2, 60)
    sections: dict[str, list[str]] = {"": []}
    for key in keys:
        if key.is_section:
            optional = " (null by default)" if key.default == "null" else ""
            heading = f"{key.path}: {key.meaning}{optional}"
            sections[key.path] = ["", *textwrap.wrap(heading, width, subsequent_indent="  ")]
        else:
            owner = key.path
            while owner not in sections:
                owner = owner.rpartition(".")[0]
            sections[owner] += _key_lines(key, width)
    return "\n".join(line for lines in sections.values() for line in lines).strip("\n")


def _key_lines(key: config.Key, width: int) -> list[str]:
    name = f"  --{key.path}"
    default = "required" if key.default == "required" else f"default: {key.default or 'empty'}"
    kind = key.type.replace("|", " | ") if len(key.type) > _MEANINGS_COLUMN else key.type  # may break between choices
    text = f"{key.meaning} ({kind}; {default})"
    margin = " " * _MEANINGS_COLUMN
    lines = textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    if len(name) < _MEANINGS_COLUMN - 1:
        return [f"{name:<{_MEANINGS_COLUMN}}{lines[0].strip()}", *lines[1:]]
    return [name, *lines]
