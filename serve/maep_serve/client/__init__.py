"""Python clients of the endpoint: `Client`, and `AsyncClient` for many images at once."""

from maep_serve.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
