"""The registered model `tracking.model`: one version for each artifact, found by number or by alias.

One model holds the purifiers of one data set, so that its `champion` is the best among comparable purifiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maep import storage
from maep.errors import ArtifactError, ConfigError
from maep.tracking import artifact_store
from maep.tracking import client as mlflow_client
from maep.tracking.client import TrackingConfig, absolute
from maep.tracking.runs import KEY, flatten

if TYPE_CHECKING:
    from maep.artifact import Artifact

ALIASES = ("candidate", "champion")


@dataclass(frozen=True)
class Version:
    """A registered purifier: the URI of its files, the sha256 of its manifest, and the run that made it."""

    version: int
    uri: str
    sha256: str
    run_id: str | None
    tags: dict[str, str]


def register(
    config: TrackingConfig,
    artifact: Artifact,
    run_id: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> int:
    """Registers `artifact` as a version of `config.model` and returns its number.

    The artifact is copied below the artifact root first, so that the version does not depend on the original folder. An
    artifact that is registered already keeps its number; `evaluation` (figures, may nest) is added to its tags.
    Raises UnavailableError if the store does not answer.
    """
    client = _open(config)
    figures = {f"evaluation.{key}": value for key, value in flatten(evaluation or {}).items()}
    tags = {"sha256": artifact.sha256, "kind": artifact.kind, **({"run_id": run_id} if run_id else {}), **figures}
    known = next((found for found in versions(config) if found.sha256 == artifact.sha256), None)
    if known is not None:
        with mlflow_client.translated(config.store):
            for key, value in tags.items():
                client.set_model_version_tag(config.model, str(known.version), key, value)
        return known.version
    uri, run_id = _home(config, client, artifact, run_id)
    artifact_store.put(artifact, uri, config.store)
    with mlflow_client.translated(config.store):
        with mlflow_client.ignore_existing():
            client.create_registered_model(config.model, description="Purifiers: adversarial image in, clean image out")
        made = client.create_model_version(config.model, source=uri, run_id=run_id, tags=tags, await_creation_for=0)
    return int(made.version)


def set_alias(config: TrackingConfig, alias: str, version: int) -> None:
    """Moves `alias` to `version`, and records the version it leaves in the tag `<alias>.previous`."""
    client = _open(config)
    by_version(config, version)
    before = by_alias(config, alias)
    with mlflow_client.translated(config.store):
        if before is not None and before.version != version:
            client.set_model_version_tag(config.model, str(version), f"{alias}.previous", str(before.version))
        client.set_registered_model_alias(config.model, alias, str(version))


def roll_back(config: TrackingConfig, alias: str, version: int | None = None) -> tuple[int, int]:
    """Moves `alias` back to `version`, by default the previous one; returns the version left and the one reached.

    The tag `<alias>.rolled_back_to` of the version left names the one reached, which keeps its own `<alias>.previous`:
    rolling back again goes further back. Raises ArtifactError where there is no previous version.
    """
    client = _open(config)
    holder = by_alias(config, alias)
    if holder is None:
        raise ArtifactError(f"models:/{config.model}@{alias} does not exist: promote a purifier first")
    if version is None:
        before = holder.tags.get(f"{alias}.previous")
        if before is None:
            raise ArtifactError(
                f"version {holder.version} is the first {alias} of {config.model}: name a version, --to N"
            )
        version = int(before)
    by_version(config, version)
    with mlflow_client.translated(config.store):
        client.set_registered_model_alias(config.model, alias, str(version))
        client.set_model_version_tag(config.model, str(holder.version), f"{alias}.rolled_back_to", str(version))
    return holder.version, version


def by_alias(config: TrackingConfig, alias: str) -> Version | None:
    """The version of `alias` (candidate, champion), or None."""
    number = aliases(config).get(alias)
    return None if number is None else by_version(config, number)


def by_version(config: TrackingConfig, version: int) -> Version:
    """Version number `version`. Raises ArtifactError if there is none."""
    known = versions(config)
    for found in known:
        if found.version == version:
            return found
    have = f"the last is {known[-1].version}" if known else "none was registered"
    raise ArtifactError(f"models:/{config.model}/{version} does not exist: {have}")


def names(config: TrackingConfig) -> list[str]:
    """All registered models, sorted."""
    client = _open(config)
    with mlflow_client.translated(config.store):
        return sorted(model.name for model in client.search_registered_models())


def aliases(config: TrackingConfig) -> dict[str, int]:
    """Version number by alias; empty before the first registration."""
    client = _open(config)
    with mlflow_client.translated(config.store):
        models = client.search_registered_models(filter_string=f"name = '{config.model}'")
        return {alias: int(number) for model in models for alias, number in model.aliases.items()}


def versions(config: TrackingConfig) -> list[Version]:
    """All versions, by number."""
    client = _open(config)
    found: list[Version] = []
    token = None
    with mlflow_client.translated(config.store):
        while True:
            page = client.search_model_versions(f"name = '{config.model}'", page_token=token)
            for entity in page:
                tags = dict(entity.tags)
                sha256, run_id = tags.get("sha256", ""), entity.run_id or None
                found.append(Version(int(entity.version), entity.source, sha256, run_id, tags))
            token = page.token
            if not token:
                return sorted(found, key=lambda entry: entry.version)


def _open(config: TrackingConfig) -> Any:
    if not config.enabled:
        raise ConfigError("tracking.enabled: the registry needs tracking: leave it true")
    return mlflow_client.connect(config)


def _home(config: TrackingConfig, client: Any, artifact: Artifact, run_id: str | None) -> tuple[str, str | None]:
    """The folder for a version of `artifact`, and the run it belongs to.

    A server accepts a source on its own disk or behind its proxy only below the files of a run.
    """
    config, experiment = absolute(config), mlflow_client.experiment(client, config)
    if config.artifact_uri is not None:
        root = storage.join(config.artifact_uri, config.experiment)
    else:
        root = experiment.artifact_location
    on_server = config.store.startswith(("http://", "https://"))
    if not on_server or storage.is_remote(root):
        return storage.join(root, "registry", artifact.sha256), run_id
    with mlflow_client.translated(config.store):
        if run_id is not None:
            run = client.get_run(run_id)
        else:  # no run made this artifact
            tags, name = {KEY: f"register-{artifact.sha256}"}, f"register {artifact.sha256[:8]}"
            run = client.create_run(experiment.experiment_id, tags=tags, run_name=name)
            client.set_terminated(run.info.run_id)
    return storage.join(run.info.artifact_uri, "registry", artifact.sha256), run.info.run_id
