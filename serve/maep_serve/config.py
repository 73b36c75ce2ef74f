"""The configuration of an endpoint: what it serves, where, and within which limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from maep import config
from maep.data.config import DataConfig

TOKEN_VARIABLE = "MAEP_SERVE_TOKEN"
_ABOVE_ZERO = (
    *("max_batch_size", "num_replicas", "max_body_bytes", "max_pixels", "request_timeout_s"),
    *("num_threads", "tile_size", "target_requests", "metrics_port"),  # where not null
)
_NOT_NEGATIVE = (
    *("batch_wait_ms", "max_queued_requests", "follow_s", "min_replicas"),
    *("upscale_delay_s", "downscale_delay_s"),
)


@dataclass(frozen=True)
class ServeConfig:
    """One endpoint: a purifier, optionally the classifier it protects, an address, and limits."""

    model: str = config.key(
        config.REQUIRED,
        "Purifier to serve: models:/purifier@champion, bundled:NAME, runs:/ID, s3://, a folder.",
        decides=True,
    )
    follow_s: float = config.key(
        10.0,
        """Seconds between checks of whether an alias (models:/NAME@ALIAS) has moved; the replicas then load the new
        version, if it reproduces its golden outputs, while requests continue. 0: never.""",
        decides=False,
    )
    canary: str | None = config.key(
        None,
        "Second purifier, served below /canary; a proxy such as nginx sends it its share of requests.",
        decides=True,
    )
    classifier: str | None = config.key(
        None, "Classifier, as a spec for `maep.load_classifier`; null: there is no /v1/classify.", decides=True
    )
    calibration: str | None = config.key(
        None,
        "File that `maep serve --calibrate FILE` wrote for these models; null: the one that maep ships, if any.",
        decides=True,
    )
    data: DataConfig | None = config.key(
        None,
        "Data set of the classifier's weights and the page's samples; null: the one the purifier was trained on.",
        decides=True,
    )
    host: str = config.key("127.0.0.1", "Address to listen on.", decides=False)
    port: int = config.key(8000, "Port to listen on.", decides=False)
    max_batch_size: int = config.key(32, "Maximum images of equal size in one forward pass.", decides=False)
    batch_wait_ms: float = config.key(
        0.0, "Milliseconds that an incomplete batch waits for more images.", decides=False
    )
    num_replicas: int = config.key(1, "Number of replicas if `max_replicas` is null.", decides=False)
    min_replicas: int = config.key(
        1,
        """With `max_replicas`: minimum replicas. 0 stops the last one when idle; the next request waits for a new
        one.""",
        decides=False,
    )
    max_replicas: int | None = config.key(None, "Maximum replicas, scaled with load; null: no scaling.", decides=False)
    target_requests: float | None = config.key(
        None, "Requests in progress on a replica before another one starts; null: `max_batch_size`.", decides=False
    )
    upscale_delay_s: float = config.key(5.0, "Seconds of higher load before replicas are added.", decides=False)
    downscale_delay_s: float = config.key(60.0, "Seconds of lower load before replicas are removed.", decides=False)
    num_threads: int | None = config.key(
        None, "Torch threads of a replica; null: the machine's cores, divided among the replicas.", decides=False
    )
    max_queued_requests: int = config.key(
        128, "Maximum requests waiting in a replica beyond one full batch; the next one gets 429.", decides=False
    )
    max_body_bytes: int = config.key(8 * 2**20, "Maximum request body in bytes.", decides=False)
    max_pixels: int = config.key(
        4096 * 4096, "Maximum pixels of an image, checked in its header before decoding.", decides=False
    )
    max_pixels_in_flight: int = config.key(
        4 * 4096 * 4096,
        """Maximum pixels of all images in progress in a replica; the next image gets 429 before decoding. With the
        bodies not yet decoded (max_queued_requests + max_batch_size, each max_body_bytes) it bounds a replica's memory.
        Images up to 256 x 256 do not count: the number of requests bounds those.""",
        decides=False,
    )
    tile_size: int | None = config.key(
        None,
        """Side in pixels of the overlapping tiles in which larger images are purified; null: 8 x the purifier's
        training size.""",
        decides=True,
    )
    request_timeout_s: float = config.key(
        30.0,
        "Seconds for the body to arrive (else 408), and again for everything until the response (else 504).",
        decides=False,
    )
    tokens_file: str | None = config.key(
        None,
        "File of digests of bearer tokens (maep_serve.http.tokens), in addition to $MAEP_SERVE_TOKEN.",
        decides=False,
    )
    playground: bool | None = config.key(None, "Attacks on the page; null: on loopback addresses only.", decides=False)
    dashboard: bool = config.key(False, "Ray's dashboard, where this process starts Ray.", decides=False)
    metrics_port: int | None = config.key(
        None,
        """Port of the Prometheus metrics, where this process starts Ray; null: chosen by Ray. Ray listens on every
        address and asks for no token.""",
        decides=False,
    )

    def __post_init__(self) -> None:
        """Raises ValueError naming the key that cannot be used."""
        for name, port in (("port", self.port), ("metrics_port", self.metrics_port)):
            if port is not None and not 0 < port < 65536:
                raise ValueError(f"{name}: {port} is not between 1 and 65535")
        for name in _ABOVE_ZERO:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name}: {value} must be above 0")
        for name in _NOT_NEGATIVE:
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"{name}: {value} must not be negative")
        if self.max_pixels_in_flight < self.max_pixels:
            raise ValueError(
                f"max_pixels_in_flight: {self.max_pixels_in_flight} must be at least max_pixels, {self.max_pixels}"
            )
        if self.max_replicas is not None and self.max_replicas < max(self.min_replicas, 1):
            raise ValueError(f"max_replicas: {self.max_replicas} must be at least 1 and at least min_replicas")
        if self.playground and not is_loopback(self.host):
            raise ValueError(f"playground: attacks are served on loopback only, but host is {self.host}")

    @property
    def most_replicas(self) -> int:
        """The largest possible number of replicas."""
        return self.num_replicas if self.max_replicas is None else self.max_replicas

    @property
    def most_in_flight(self) -> int:
        """The most requests in flight in one replica."""
        return self.max_queued_requests + self.max_batch_size

    @property
    def longest_s(self) -> float:
        """The longest time of one request: request_timeout_s for its body, and again for the work."""
        return 2 * self.request_timeout_s

    @property
    def playground_is_on(self) -> bool:
        """Whether POST /v1/attack exists (it also needs a classifier)."""
        return is_loopback(self.host) if self.playground is None else self.playground


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
