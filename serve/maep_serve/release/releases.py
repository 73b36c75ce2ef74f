"""Which purifier an endpoint serves: found, held to its golden outputs, and followed when its alias moves.

`maep promote` and `maep rollback` move the alias; every replica looks for itself and takes the new version while
requests go on. One that cannot be loaded, warmed or does not make its golden outputs again takes no traffic: the
version before it stays.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError, UserError
from maep.tracking.client import TrackingConfig
from maep.tracking.purifier_ref import PurifierRef
from maep_serve.config import ServeConfig
from maep_serve.engine import suspicion
from maep_serve.engine.loading import Models, build_models
from maep_serve.engine.service import Service
from maep_serve.release import golden

if TYPE_CHECKING:
    from maep.tracking.registry import Version

GOLDEN_TAG = "evaluation.golden"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """A verified purifier, and the golden outputs that were recorded with it; None where there are none."""

    artifact: Artifact
    golden: str | None = None


def moves(config: ServeConfig) -> bool:
    """Whether `config.model` is an alias that is followed."""
    return config.follow_s > 0 and PurifierRef.parse(config.model).alias is not None


def current(uri: str, tracking: TrackingConfig) -> int | None:
    """The version that the alias `uri` points at; None where there is none. Raises UnavailableError."""
    from maep.tracking import registry

    ref = PurifierRef.parse(uri)
    assert ref.alias is not None
    return registry.aliases(dataclasses.replace(tracking, model=ref.name)).get(ref.alias)


def find(uri: str, tracking: TrackingConfig, version: int | None = None) -> Release:
    """The purifier that `uri` names, or that model's `version` where `uri` is an alias.

    Raises what `maep.tracking.resolve` raises.
    """
    from maep.tracking.resolve import resolve

    ref = PurifierRef.parse(uri)
    if ref.alias is None or (number := version or current(uri, tracking)) is None:
        return Release(resolve(ref, tracking))
    artifact = resolve(ref.at_version(number), tracking)
    return Release(artifact, _registered(uri, tracking, number).tags.get(GOLDEN_TAG))


def load(release: Release, config: ServeConfig) -> Models:
    """Its models, built, warmed and held to the golden outputs. Raises UserError."""
    models = build_models(release.artifact, config)
    if release.golden is not None:
        try:
            golden.check(models.purifier, release.golden)
        except ArtifactError as error:
            raise ArtifactError(f"purifier {release.artifact.sha256[:12]}: {error}") from None
    return models


def load_first(config: ServeConfig, tracking: TrackingConfig) -> Models:
    """The models that a new replica begins with.

    Where the version that a followed alias points at is refused, the one that had the alias before it, and so on: a
    replica which starts after bad promotions serves what its elders serve. Raises what the last one did where there is
    none before it, and UnavailableError at once: what cannot be fetched now was not refused.
    """
    number = current(config.model, tracking) if moves(config) else None
    refused: list[int | None] = []
    while True:
        try:
            release = find(config.model, tracking, number)
            return load(release, _fitting(config, release))
        except UnavailableError:
            raise
        except Exception as error:  # whatever is wrong with it, it takes no traffic
            refused.append(number)
            before = None if number is None else _previous(config.model, tracking, number)
            if before is None or before in refused:
                raise
            _log.error("version %s is refused, version %s is tried: %s", number, before, error)
            number = before


async def follow(service: Service, tracking: TrackingConfig) -> None:
    """Looks every `follow_s` seconds where the alias points, and gives `service` that version; for ever."""
    config, seen = service.config, None
    while True:
        try:
            number = await asyncio.to_thread(current, config.model, tracking)
            if number is not None and number != seen:
                await asyncio.to_thread(take, service, tracking, number)
                seen = number
        except UserError as error:  # the registry is away: what is served goes on
            _log.warning("cannot look where %s points: %s", config.model, error)
        except Exception:  # nor may anything else end the looking
            _log.exception("cannot look where %s points", config.model)
        await asyncio.sleep(config.follow_s)


def take(service: Service, tracking: TrackingConfig, number: int) -> bool:
    """Gives `service` version `number`, unless it serves it already or refuses it. Blocks for seconds.

    Raises UnavailableError where the version cannot be fetched now; that may be tried again.
    """
    sha256 = _registered(service.config.model, tracking, number).sha256
    if sha256 == service.models.purifier_sha256:
        return True
    try:
        release = find(service.config.model, tracking, number)
        service.use(load(release, _fitting(service.config, release)))
    except UnavailableError:
        raise
    except Exception as error:  # whatever is wrong with it, it takes no traffic
        _log.error("version %s is refused, %s stays: %s", number, service.version, error)
        service.metrics.refused.labels(sha256[:12]).inc()
        return False
    _log.warning("version %s, %s, is served from now on", number, sha256[:12])
    return True


def _fitting(config: ServeConfig, release: Release) -> ServeConfig:
    """`config`, where its alias is followed without a calibration that is of another version than this `release`."""
    if not moves(config) or config.calibration is None:
        return config
    if suspicion.read(Path(config.calibration)).purifier_sha256 == release.artifact.sha256:
        return config
    return dataclasses.replace(config, calibration=None)


def _previous(uri: str, tracking: TrackingConfig, version: int) -> int | None:
    """The version that had the alias before `version`."""
    alias = PurifierRef.parse(uri).alias
    number = _registered(uri, tracking, version).tags.get(f"{alias}.previous")
    return None if number is None else int(number)


def _registered(uri: str, tracking: TrackingConfig, version: int) -> Version:
    """What the registry knows of `version` of the model of the alias `uri`."""
    from maep.tracking import registry

    return registry.by_version(dataclasses.replace(tracking, model=PurifierRef.parse(uri).name), version)
