"""Which version of a purifier an endpoint serves: find it, check its golden outputs, and follow its alias.

`maep promote` and `maep rollback` move an alias. Every replica polls it and switches to the new version while it keeps
serving requests. A version that cannot be loaded or warmed, or that fails its golden outputs, gets no traffic: the
replica keeps the previous one.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError, UserError
from maep.tracking import registry
from maep.tracking.client import TrackingConfig
from maep.tracking.purifier_ref import PurifierRef
from maep.tracking.registry import Version
from maep.tracking.resolve import resolve
from maep_serve.config import ServeConfig
from maep_serve.engine import suspicion
from maep_serve.engine.loading import Models, build_models
from maep_serve.engine.service import Service
from maep_serve.release import golden

GOLDEN_TAG = "evaluation.golden"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """A verified purifier and the golden outputs that were recorded at its promotion, or None."""

    artifact: Artifact
    golden: str | None = None


@dataclass(frozen=True)
class Releases:
    """The versions of the purifier `ref` that an endpoint serves. `tracking`: where `models:/` and `runs:/` are."""

    config: ServeConfig
    ref: PurifierRef
    tracking: TrackingConfig

    @classmethod
    def of(cls, config: ServeConfig, tracking: TrackingConfig | None = None) -> Releases:
        """The releases of `config.model`. Raises ConfigError for a malformed URI."""
        return cls(config, PurifierRef.parse(config.model), tracking or TrackingConfig())

    @property
    def followed(self) -> bool:
        """Whether replicas poll an alias and switch to the version it points at."""
        return self.config.follow_s > 0 and self.ref.alias is not None

    def current(self) -> int | None:
        """The version that the alias points at, or None. Raises UnavailableError."""
        assert self.ref.alias is not None
        return registry.aliases(replace(self.tracking, model=self.ref.name)).get(self.ref.alias)

    def find(self, version: int | None = None) -> Release:
        """The purifier that `ref` names; for an alias, version `version`, by default the one it points at.

        Raises what `maep.tracking.resolve` raises.
        """
        pinned = self.ref.alias is None or self.ref.sha256 is not None
        if pinned or (number := version or self.current()) is None:
            return Release(resolve(self.ref, self.tracking))
        artifact = resolve(self.ref.at_version(number), self.tracking)
        return Release(artifact, self._registered(number).tags.get(GOLDEN_TAG))

    def load(self, release: Release) -> Models:
        """The models of `release`, built, warmed and checked against its golden outputs. Raises UserError."""
        models = build_models(release.artifact, self.config)
        if release.golden is not None:
            try:
                golden.check(models.purifier, release.golden)
            except ArtifactError as error:
                raise ArtifactError(f"purifier {models.version}: {error}") from None
        return models

    def load_first(self) -> Models:
        """The models that a new replica starts with.

        If the version that a followed alias points at is refused, this tries the version that had the alias before,
        and so on: a replica that starts after bad promotions serves the same version as the running ones. Raises the
        last version's error if no earlier one is left, and UnavailableError at once: an unreachable version is not
        refused.
        """
        number = self.current() if self.followed else None
        refused: list[int | None] = []
        while True:
            try:
                return self._load_version(number)
            except UnavailableError:
                raise
            except Exception as error:  # whatever the reason, this version gets no traffic
                refused.append(number)
                tags = {} if number is None else self._registered(number).tags
                before = tags.get(f"{self.ref.alias}.previous")
                if before is None or (previous := int(before)) in refused:
                    raise
                _log.error("%s: version %s refused, trying version %s instead: %s", self.ref, number, previous, error)
                number = previous

    async def follow(self, service: Service) -> None:
        """Poll the alias every `follow_s` seconds until cancelled, and give `service` the version it points at."""
        seen = None
        while True:
            try:
                number = await asyncio.to_thread(self.current)
                if number is not None and number != seen:
                    await asyncio.to_thread(self.take, service, number)
                    seen = number
            except UserError as error:  # such as a registry that is down; the endpoint keeps serving
                _log.warning("cannot poll %s, still serving %s: %s", self.ref, service.version, error)
            except Exception:
                _log.exception("cannot poll %s, still serving %s", self.ref, service.version)
            await asyncio.sleep(self.config.follow_s)

    def take(self, service: Service, number: int) -> bool:
        """Give `service` version `number` unless it serves it already; False where it is refused. Blocks for seconds.

        Raises UnavailableError for a version that cannot be fetched now; the caller may retry.
        """
        sha256 = self._registered(number).sha256
        if sha256 == service.models.purifier_sha256:
            return True
        try:
            service.use(self._load_version(number))
        except UnavailableError:
            raise
        except Exception as error:  # whatever the reason, this version gets no traffic
            name = f"version {number} ({sha256[:12]})"
            _log.error("%s: %s refused, still serving %s: %s", self.ref, name, service.version, error)
            service.metrics.refused.labels(sha256[:12]).inc()
            return False
        _log.warning("%s: now serving version %s (%s)", self.ref, number, sha256[:12])
        return True

    def _load_version(self, number: int | None) -> Models:
        """`find` and `load`; a followed alias ignores a configured calibration that belongs to another version."""
        release, file = self.find(number), self.config.calibration
        sha256 = release.artifact.sha256
        if self.followed and file is not None and suspicion.read(Path(file)).purifier_sha256 != sha256:
            return replace(self, config=replace(self.config, calibration=None)).load(release)
        return self.load(release)

    def _registered(self, number: int) -> Version:
        return registry.by_version(replace(self.tracking, model=self.ref.name), number)
