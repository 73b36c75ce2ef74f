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
from maep_serve.config import ServeConfig
from maep_serve.engine.service import Service
from maep_serve.http.api import create_api
from maep_serve.http.tokens import Tokens, endpoint_tokens
from maep_serve.ray.metrics import RayExporter
from maep_serve.release import releases

APP_NAME = "maep"
CANARY_NAME = "maep-canary"
CANARY_ROUTE = "/canary"


class PurifierDeployment:
    """One replica. It takes no traffic before its constructor is done: the model is loaded, verified and warmed."""

    def __init__(self, config: ServeConfig, tracking: TrackingConfig, digests: tuple[str, ...]) -> None:
        torch.set_num_threads(config.num_threads or max(1, (os.cpu_count() or 1) // config.most_replicas))
        memory.keep_freed()  # a batch asks for the megabytes that the one before it has freed
        self._tracking = tracking
        self._tokens = Tokens.of(config, digests)
        self._service = Service(config, releases.load_first(config, tracking))
        self._exporter = RayExporter(self._service.metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve routes requests to; it adds x-request-id."""
        return create_api(self._service, self._tokens, own_request_id=False, background=self._background)

    async def _background(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._exporter.run())
            if releases.moves(self._service.config):
                group.create_task(releases.follow(self._service, self._tracking))


def build_app(
    config: ServeConfig, tracking: TrackingConfig | None = None, digests: tuple[str, ...] = ()
) -> serve.Application:
    """The application for `serve.run`.

    tracking: where replicas look up `config.model`; its URIs must not depend on the working directory.
    digests: hex sha256 of bearer tokens, so that the tokens themselves are in no cluster state.
    Serve's own limits lie far above the service's, whose refusals are problem documents: a burst counts as queued by
    Serve until the service has seen it.
    """
    deployment = serve.deployment(
        name="purifier",
        **replicas(config),
        max_ongoing_requests=8 * config.most_in_flight,
        max_queued_requests=8 * config.most_in_flight,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_surge_percent=25,  # of one replica: one more, so that the old one answers until the new one does
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=config.longest_s + 5,
    )
    return deployment(serve.ingress()(PurifierDeployment)).bind(config, tracking or TrackingConfig(), digests)


def replicas(config: ServeConfig) -> dict[str, Any]:
    """How many replicas, as `serve.deployment` takes it."""
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
    """What `serve deploy` builds from the `args` of a configuration file: the keys of ServeConfig, and `tracking`.

    Unless `host` says otherwise the endpoint is taken to be reached from other machines: it asks for a token, and has
    no playground. Raises ConfigError.
    """
    rest = dict(values)
    tracking = configuration.build(TrackingConfig, rest.pop("tracking", None), "tracking")
    config = configuration.build(ServeConfig, {"host": "0.0.0.0", **rest})
    return build_app(config, tracking, endpoint_tokens(config))
