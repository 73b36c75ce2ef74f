"""The Ray Serve application: one deployment whose ingress is the FastAPI application, so a request takes one hop."""

from __future__ import annotations

import os

import torch
from fastapi import FastAPI
from ray import serve

from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.service import Service

APP_NAME = "maep"


class PurifierDeployment:
    """One replica. It takes no traffic before its constructor is done: the model is loaded, verified and warmed."""

    def __init__(self, config: ServeConfig, token_sha256: str | None) -> None:
        torch.set_num_threads(config.num_threads or max(1, (os.cpu_count() or 1) // config.num_replicas))
        self._token_sha256 = token_sha256
        self._service = Service(config)
        self._service.load()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve routes requests to; its proxy adds x-request-id."""
        return create_api(self._service, self._token_sha256, own_request_id=False)


def build_app(config: ServeConfig, token_sha256: str | None = None) -> serve.Application:
    """The application for `serve.run`.

    token_sha256: hex digest of the bearer token that /v1/* needs, so that the token itself is in no cluster state.
    Serve's own limits lie above the service's, whose refusals are problem documents.
    """
    limit = config.max_queued_requests + config.max_batch_size
    deployment = serve.deployment(
        name="purifier",
        num_replicas=config.num_replicas,
        max_ongoing_requests=max(4 * config.max_batch_size, limit + 64),
        max_queued_requests=4 * (limit + 64),
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=config.request_timeout_s,
    )
    return deployment(serve.ingress()(PurifierDeployment)).bind(config, token_sha256)
