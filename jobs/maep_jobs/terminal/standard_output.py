"""Standard output under `--json`: one value, and nothing else.

Whatever else is said goes to standard error: Ray, for one, tells on standard output that a worker has died, which is a
thing that maep goes on after.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_places: list[TextIO] = []
"""Standard output as it was, while it is kept for the JSON."""


@contextmanager
def json_alone() -> Iterator[None]:
    """Within, only `print_json` reaches standard output."""
    _places.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _places.pop()


def print_json(value: Any) -> None:
    """Prints `value` as JSON in one line on standard output, at once."""
    print(json.dumps(value), file=_places[-1] if _places else sys.stdout, flush=True)
