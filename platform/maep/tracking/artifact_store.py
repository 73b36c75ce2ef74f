"""Upload and download artifacts of runs: in a folder, on s3://, or through MLflow's server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from maep import storage
from maep.errors import ArtifactError
from maep.tracking import client as mlflow_client

if TYPE_CHECKING:
    from maep.artifact import Artifact


def direct(uri: str) -> str | None:
    """`uri` for `maep.storage` (a local path or s3://), or None where only MLflow's server has access."""
    if uri.startswith("file:"):
        return unquote(uri.removeprefix("file://").removeprefix("file:"))
    if uri.startswith("mlflow-artifacts:") or ("://" in uri and not storage.is_remote(uri)):
        return None
    return uri


def is_local(uri: str) -> bool:
    """Whether `uri` is a folder of this machine's file system."""
    place = direct(uri)
    return place is not None and not storage.is_remote(place)


def put(artifact: Artifact, uri: str, tracking_uri: str) -> None:
    """Uploads `artifact` file by file into folder `uri`, its manifest last."""
    from maep.artifact import MANIFEST, upload

    place = direct(uri)
    if place is not None:
        upload(artifact, place)
        return
    for name in [*artifact.files, MANIFEST]:
        put_file(artifact.folder / name, storage.join(uri, name), tracking_uri)


def put_file(path: Path, uri: str, tracking_uri: str) -> None:
    """Uploads one file to `uri`, whose last part is its new name."""
    place = direct(uri)
    if place is not None:
        storage.write_bytes(place, path.read_bytes())
        return
    folder, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory() as beside, mlflow_client.translated(tracking_uri):
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        renamed = shutil.copyfile(path, Path(beside) / name)  # MLflow keeps the name of the local file
        get_artifact_repository(folder, tracking_uri=tracking_uri).log_artifact(str(renamed))


def get(uri: str, folder: Path, tracking_uri: str) -> Artifact:
    """Downloads the artifact at `uri` into `folder` and verifies it. Raises ArtifactError if there is none."""
    from maep.artifact import download, read

    place = direct(uri)
    if place is not None:
        return download(place, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        try:
            with mlflow_client.translated(tracking_uri):
                from mlflow.artifacts import download_artifacts

                fetched = Path(download_artifacts(artifact_uri=uri, dst_path=beside, tracking_uri=tracking_uri))
        except OSError as error:
            raise ArtifactError(f"{uri} cannot be fetched: {error}") from None
        read(fetched)
        storage.replace_folder(fetched, folder)
    return read(folder)
