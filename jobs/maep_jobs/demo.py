"""`maep demo`: the whole chain on scikit-learn's digits, in minutes, with a picture and what to try next."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from maep_jobs import run

_NEXT = """
next:
  maep serve --model {champion} --classifier {classifier}   (then open http://127.0.0.1:8000/)
  maep run digits/pipeline --output outputs/demo --keep
  maep run cifar10/pipeline --dry-run
  maep serve --model bundled:cifar10"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; the arguments are those of `maep run`."""
    print("demo: classifiers, autoencoder, purifier and rival on digits; about 4 minutes on 2 cores", file=sys.stderr)
    words = list(argv)
    if not any(word.startswith("--output") for word in words):
        words += ["--output", "outputs/demo"]
    status = run.main(["digits/pipeline", *words])
    if status == 0 and not {"--help", "-h", "--dry-run", "--json"} & set(words):
        print(_NEXT.format(champion="models:/purifier@champion", classifier="outputs/demo/classifier-*/model"))
    return status
