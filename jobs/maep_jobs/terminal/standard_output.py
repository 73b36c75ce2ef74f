"""Standard output under `--json`: one value, and nothing else.

Everything else, such as Ray's messages about dead workers, goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_places: list[TextIO] = []
"""The real standard output, while it is reserved for JSON."""


@contextmanager
def json_alone() -> Iterator[None]:
    """In the block, only `print_json` writes to standard output."""
    _places.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _places.pop()


def print_json(value: Any) -> None:
    """Prints `value` as one line of JSON on standard output, unbuffered."""
    print(json.dumps(value), file=_places[-1] if _places else sys.stdout, flush=True)
