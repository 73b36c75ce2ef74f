"""The rows of an evaluation (image x purifier x classifier x threat x attack x eps): every figure comes from them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from maep.attacks.norms import lengths
from maep.errors import DataError
from maep.evaluate.cost import Cost

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("image_list", pa.string()),
        ("index", pa.int64()),  # official index of the image in its data set
        ("label", pa.int64()),
        ("purifier", pa.string()),
        ("purifier_sha256", pa.string()),
        ("classifier", pa.string()),
        ("classifier_sha256", pa.string()),
        ("threat", pa.string()),  # see maep.evaluate.config.Threat
        ("norm", pa.string()),
        ("attack", pa.string()),
        ("eps", pa.float64()),
        ("steps", pa.int64()),
        ("eot", pa.int64()),
        ("seed", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("num_draws", pa.int64()),  # fresh draws of a randomised purifier, else 1; prediction is their majority vote
        ("num_right", pa.int64()),  # draws with the correct prediction
        ("loss", pa.float32()),  # cross-entropy of the label, mean over draws
        ("change", pa.float32()),  # size of the perturbation in `norm` (see `change`)
        ("inherited", pa.bool_()),  # not attacked: wrong on the clean image or after an earlier attack of the cascade
    ]
)
_COST = b"maep.cost"


def make(constants: Mapping[str, Any], columns: Mapping[str, Any]) -> pa.Table:
    """Rows from shared values and columns [N], which together fill the schema."""
    length = len(next(iter(columns.values())))
    arrays = {
        field.name: pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.array([constants[field.name]] * length, field.type)
        for field in SCHEMA
    }
    return pa.table(arrays, schema=SCHEMA)


def change(difference: Tensor, norm: str) -> Tensor:
    """float32 [B]: size of the perturbation [B, 3, H, W] in `norm`.

    For a patch it is the share of changed pixels, for a spatial attack the largest change of a pixel.
    """
    if norm == "patch":
        return (difference.abs().amax(dim=1) > 0).flatten(1).float().mean(dim=1)
    return lengths(difference, "Linf" if norm == "spatial" else norm)


def encode_part(rows: pa.Table, cost: Cost) -> bytes:
    """A finished task as the bytes of a file."""
    note = json.dumps([cost.forward_passes, cost.seconds]).encode()
    return encode(rows.replace_schema_metadata({_COST: note}))


def decode_part(data: bytes) -> tuple[pa.Table, Cost]:
    """The rows of a finished task and their cost."""
    table = pq.read_table(io.BytesIO(data))
    forward_passes, seconds = json.loads(table.schema.metadata[_COST])
    return table.replace_schema_metadata(None), Cost(forward_passes, seconds)


def encode(rows: pa.Table) -> bytes:
    """Rows as the bytes of a Parquet file; equal rows give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    return buffer.getvalue()


def read(path: str | Path) -> pa.Table:
    """The rows of images.parquet. Raises DataError where it cannot be read."""
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot read the rows of an evaluation: {' '.join(str(error).split())}") from None
    if "linf" in table.column_names:  # schema 1, without draws and other norms
        once = pa.array([1] * len(table), pa.int64())
        right = table["correct"].cast(pa.int64())
        table = table.append_column("num_draws", once).append_column("num_right", right)
        table = table.append_column("change", table["linf"])
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: it is not images.parquet of an evaluation")
    return table.select(SCHEMA.names)


def part_name(words: Sequence[object]) -> str:
    """A readable file name for these words, made unique by a digest."""
    text = "|".join(str(word) for word in words)
    readable = "".join(c if c.isalnum() or c in "-." else "-" for c in text.replace("|", "_"))
    return f"{readable[:80]}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"
