"""The Ray Serve application: one deployment whose ingress is the FastAPI application, so a request takes one hop."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from maep import config as configuration
from maep import memory
from maep.tracking.client import TrackingConfig
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.engine.service import Service
from maep_serve.http.tokens import Tokens, endpoint_tokens
from maep_serve.ray.metrics import RayExporter
from maep_serve.release.releases import Releases

APP_NAME = "maep"
CANARY_NAME = "maep-canary"
CANARY_ROUTE = "/canary"


class PurifierDeployment:
    """One replica. It gets traffic only after its constructor has loaded, verified and warmed the model."""

    def __init__(self, releases: Releases, digests: tuple[str, ...]) -> None:
        config = releases.config
        torch.set_num_threads(config.num_threads or max(1, (os.cpu_count() or 1) // config.most_replicas))
        memory.keep_freed()  # each batch needs the megabytes that the previous batch freed
        self._releases = releases
        self._tokens = Tokens.of(config, digests)
        self._service = Service(config, releases.load_first())
        self._exporter = RayExporter(self._service.metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Ray Serve routes requests to. Ray adds x-request-id."""
        return create_api(self._service, self._tokens, own_request_id=False, background=self._background)

    async def _background(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._exporter.run())
            if self._releases.followed:
                group.create_task(self._releases.follow(self._service))


def build_app(releases: Releases, digests: tuple[str, ...] = ()) -> serve.Application:
    """The application for `serve.run`.

    releases: its tracking URIs must not depend on the working directory.
    digests: hex sha256 of bearer tokens, so that no token is in the cluster's state.
    Serve's own limits are far above those of the service, which responds with problem documents: Serve counts a burst
    as queued until the service has admitted it.
    """
    config = releases.config
    deployment = serve.deployment(
        name="purifier",
        **replicas(config),
        max_ongoing_requests=8 * config.most_in_flight,
        max_queued_requests=8 * config.most_in_flight,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_surge_percent=25,  # at least one extra replica, so that the old one serves until the new one is ready
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=config.longest_s + 5,
    )
    return deployment(serve.ingress()(PurifierDeployment)).bind(releases, digests)


def replicas(config: ServeConfig) -> dict[str, Any]:
    """The number of replicas, as arguments of `serve.deployment`."""
    if config.max_replicas is None:
        return {"num_replicas": config.num_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "initial_replicas": max(config.min_replicas, 1),
            "target_ongoing_requests": config.target_requests or config.max_batch_size,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
        }
    }


def application(values: dict[str, Any]) -> serve.Application:
    """The application that `serve deploy` builds from a file's `args`: the keys of ServeConfig, and `tracking`.

    Unless `host` is given, the endpoint is assumed to be reachable from other machines: it requires a token and has no
    playground. Raises ConfigError.
    """
    rest = dict(values)
    tracking = configuration.build(TrackingConfig, rest.pop("tracking", None), "tracking")
    config = configuration.build(ServeConfig, {"host": "0.0.0.0", **rest})
    return build_app(Releases.of(config, tracking), endpoint_tokens(config))
