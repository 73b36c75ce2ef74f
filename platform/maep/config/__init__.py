"""Typed configuration: YAML files and `--section.key VALUE` overrides into nested frozen dataclasses.

Each configuration class lives beside what it configures and declares its keys with `key` and `section`; this package
reads, fills, prints and describes them. It needs nothing but PyYAML, because `python -m maep.train` runs where there
is no more than PyTorch.
"""

from maep.config.fields import (
    REQUIRED,
    Key,
    deciding,
    describe,
    inner_classes,
    key,
    named_section,
    named_sections,
    section,
    section_class,
)
from maep.config.fill import build, load
from maep.config.plain import digest, flatten, to_dict, to_yaml
from maep.config.text import apply_overrides, read_yaml

__all__ = [
    "REQUIRED",
    "Key",
    "apply_overrides",
    "build",
    "deciding",
    "describe",
    "digest",
    "flatten",
    "inner_classes",
    "key",
    "load",
    "named_section",
    "named_sections",
    "read_yaml",
    "section",
    "section_class",
    "to_dict",
    "to_yaml",
]
