"""The Ray Serve application: one deployment whose ingress is the FastAPI application, so a request takes one hop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
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
from maep_serve.ray.metrics import HISTOGRAM_PARTS, INSTRUMENTS, Summary
from maep_serve.release import releases

APP_NAME = "maep"
CANARY_NAME = "maep-canary"
CANARY_ROUTE = "/canary"
_REFRESH_S = 4.0  # Ray exports every ten
_log = logging.getLogger(__name__)


class PurifierDeployment:
    """One replica. It takes no traffic before its constructor is done: the model is loaded, verified and warmed."""

    def __init__(self, config: ServeConfig, tracking: TrackingConfig, digests: tuple[str, ...]) -> None:
        torch.set_num_threads(config.num_threads or max(1, (os.cpu_count() or 1) // config.most_replicas))
        memory.keep_freed()  # a batch asks for the megabytes that the one before it has freed
        self._tracking = tracking
        self._tokens = Tokens.of(config, digests)
        models = releases.load_first(config, tracking)
        self._sink = RaySink()
        self._service = Service(config, models, self._sink)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve routes requests to; it adds x-request-id."""
        return create_api(self._service, self._tokens, own_request_id=False, background=self._background)

    async def _background(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sink.keep_fresh())
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


class RaySink:
    """Gives measurements to Ray Serve, which exports them with the application, deployment and replica as labels.

    Histograms are added up here and exported as gauges, under the names that Prometheus gives a histogram's parts.
    Ray's own cost its agent a tenth of a millisecond a request, as it takes in one observation after the other, each as
    the middle of its bucket. And a gauge that nobody has set for half a minute is gone: `keep_fresh` sets all again.
    """

    def __init__(self) -> None:
        from ray.serve import metrics

        self._counters = {
            each.name: metrics.Counter(each.name, each.description, each.tags)
            for each in INSTRUMENTS
            if each.kind == "counter"
        }
        self._gauges: dict[str, Any] = {}
        for each in INSTRUMENTS:
            if each.kind == "gauge":
                self._gauges[each.name] = metrics.Gauge(each.name, each.description, each.tags)
            elif each.kind == "histogram":
                for part in HISTOGRAM_PARTS:
                    tags = (*each.tags, "le") if part == "_bucket" else each.tags
                    self._gauges[each.name + part] = metrics.Gauge(each.name + part, each.description, tags)
        self._summary = Summary()

    def __call__(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Takes one measurement."""
        if name in self._counters:
            self._counters[name].inc(value, dict(tags))
        else:
            self._summary.add(name, value, tags)

    async def keep_fresh(self) -> None:
        """Hands over all gauges, again and again, and once more at the end."""
        try:
            while True:
                self._hand_over()
                await asyncio.sleep(_REFRESH_S)
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        try:
            for name, value, tags in self._summary.values():
                self._gauges[name].set(value, tags)
        except Exception:  # nothing else of the replica ends for want of a figure
            _log.exception("the metrics were not handed over")
