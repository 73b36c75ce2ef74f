"""Shards on S3: from a real server on loopback, and what is said of one that is wrong or does not answer."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from stack import S3

from maep.data.config import DataConfig
from maep.data.reading import store
from maep.data.sets import imagenet
from maep.data.stream.plan import Sampling
from maep.data.stream.streaming import StreamedImages, ThreadLoader
from maep.errors import DataError, UnavailableError
from maep_jobs.strips import _shown


@pytest.fixture
def written(tmp_path: Path, noise: Any, encode: Any) -> Path:
    """A data root with one shard of 24 JPEGs."""
    images = [encode(each, "JPEG") for each in noise(24, 40, 48)]
    (tmp_path / "imagenet").mkdir()
    table = pa.table({"image": images, "label": list(range(24))})
    pq.write_table(table, tmp_path / "imagenet" / "train-0-of-1.parquet", row_group_size=8)
    return tmp_path


@pytest.mark.stack
@pytest.mark.timeout(300)
def test_shards_on_s3_match_local_files(s3_server: S3, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client("s3", endpoint_url=s3_server.endpoint)
    file = written / "imagenet" / "train-0-of-1.parquet"
    client.put_object(Bucket=s3_server.bucket, Key="set/imagenet/train-0-of-1.parquet", Body=file.read_bytes())
    pixels = []
    for root in (str(written), f"s3://{s3_server.bucket}/set"):
        images = StreamedImages(imagenet.train_shards(root), 28)
        with closing(ThreadLoader(images, Sampling(8), torch.device("cpu"), 2).parts(0, 6)) as parts:
            pixels.append(torch.cat([part.pixels for part in parts]))
    assert torch.equal(*pixels)
    assert imagenet.train_shards(root).fingerprint == imagenet.train_shards(str(written)).fingerprint
    client.put_object(Bucket=s3_server.bucket, Key="set/imagenet/val.parquet", Body=file.read_bytes())
    (written / "imagenet" / "val.parquet").write_bytes(file.read_bytes())
    here, there = (DataConfig("imagenet", place, image_size=28) for place in (str(written), root))
    assert torch.equal(_shown(here, str(written)), _shown(there, root))  # what the pictures of a run are drawn from
    with pytest.raises(DataError, match="s3://"):
        imagenet.train_shards(f"s3://{s3_server.bucket}/elsewhere")
    client.delete_object(Bucket=s3_server.bucket, Key="set/imagenet/train-0-of-1.parquet")
    with pytest.raises((DataError, UnavailableError), match=r"^s3://.*train-0-of-1\.parquet"):
        images.shards.read(0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UnavailableError, match=r"^s3://"):
        imagenet.train_shards(root)


def test_unresponsive_store_fails_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with pytest.raises(UnavailableError, match=r"^s3://bucket/imagenet"):
            store.list_files("s3://bucket/imagenet", timeout_s=1.0)
