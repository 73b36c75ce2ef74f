"""infra/nginx with Debian's nginx in front of two real purifiers: TLS, limits, canary share, logs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from purifier_toys import small_unet
from serving import serving
from stack import free_ports
from starlette.applications import Starlette
from starlette.routing import Mount

from maep_serve.api import create_api
from maep_serve.client.client import Client, ProblemError
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import build_models
from maep_serve.engine.service import Service
from maep_serve.http.tokens import Tokens, digest_of

FOLDER = Path(__file__).parents[2] / "infra" / "nginx"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs Debian's nginx: apt install nginx"),
    pytest.mark.skipif(OPENSSL is None, reason="needs openssl, for the certificate"),
]
TOKEN = "not-for-the-log"
MAIN = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/maep.conf;
}}
"""


@dataclass(frozen=True)
class Front:
    """A running nginx, its folder, and the two purifiers behind it (sha256 by track)."""

    url: str
    folder: Path
    versions: dict[str, str]
    backend: str

    @property
    def ca_file(self) -> str:
        return str(self.folder / "cert.pem")

    def client(self, token: str | None = TOKEN, **options: Any) -> Client:
        return Client(self.url, token, ca_file=self.ca_file, **options)

    def http(self) -> httpx.Client:
        trust = ssl.create_default_context(cafile=self.ca_file)
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "image/png"}
        return httpx.Client(base_url=self.url, headers=headers, verify=trust, trust_env=False, timeout=60)

    def logged(self, request_id: str) -> dict[str, Any]:
        """The log line of a request, which nginx writes once the response is sent."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            lines = (self.folder / "access.log").read_text().splitlines()
            found = [line for line in map(json.loads, lines) if line["request_id"] == request_id]
            if found:
                assert len(found) == 1
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"{request_id} is not logged")


def written(
    folder: Path, port: int, backend: str, changes: dict[str, str], of_maep: dict[str, str] | None = None
) -> None:
    """Write both files with this machine's ports and paths, `changes` to site.conf, and `of_maep` to maep.conf."""
    site = (FOLDER / "site.conf").read_text()
    maep = (FOLDER / "maep.conf").read_text()
    changes = {
        "127.0.0.1:8000": backend.removeprefix("http://"),
        "/etc/ssl/certs/maep.pem": f"{folder}/cert.pem",
        "/etc/ssl/private/maep.key": f"{folder}/key.pem",
        **changes,
    }
    for old, new in changes.items():
        assert old in site
        site = site.replace(old, new)
    for old, new in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "    listen [::]:443 ssl http2;\n": "",
        "/var/log/nginx/maep.log": f"{folder}/access.log",
        **(of_maep or {}),
    }.items():
        assert old in maep
        maep = maep.replace(old, new)
    (folder / "maep-site.conf").write_text(site)
    (folder / "maep.conf").write_text(maep)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    subject = ["-subj", "/CN=maep", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    made = [str(OPENSSL), "req", "-x509", "-days", "2", *subject, *key, "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def running(folder: Path, port: int) -> Iterator[None]:
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=60)
    assert "syntax is ok" in tested.stderr, tested.stderr
    assert "test is successful" in tested.stderr, tested.stderr
    assert "[warn]" not in tested.stderr, tested.stderr
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A quarter of the requests to the canary."""
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)  # the workers may run as another user
    artifacts = [small_unet(folder / f"purifier-{seed}", seed, 0.01) for seed in (0, 1)]
    settings = [ServeConfig(str(each.folder), playground=False) for each in artifacts]
    services = [Service(each, build_models(saved, each)) for saved, each in zip(artifacts, settings, strict=True)]
    stable, canary = (create_api(service, Tokens((digest_of(TOKEN),))) for service in services)
    behind = Starlette(routes=[Mount("/canary", canary), Mount("/", stable)])
    port = free_ports(1)[0]
    versions = [service.models.purifier_sha256 for service in services]
    with serving(behind) as backend:
        written(folder, port, backend, {"# 5%  canary;": "25%  canary;"})
        with running(folder, port):
            url = f"https://127.0.0.1:{port}"
            yield Front(url, folder, dict(zip(("stable", "canary"), versions, strict=True)), backend)


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def is_problem(answer: httpx.Response, status: int, code: str) -> bool:
    body = answer.json()
    assert [len(answer.headers.get_list(name)) for name in ("x-request-id", "x-maep-track")] == [1, 1]
    assert "max-age" in answer.headers["strict-transport-security"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) == {"type", "title", "status", "detail", "code"}
    return (answer.status_code, body["status"], body["code"]) == (status, status, code)


def test_a_purified_image_over_tls_and_its_logged_version(front: Front, png: bytes) -> None:
    with front.http() as http:
        for track, version in front.versions.items():
            headers = {"x-maep-track": track, "x-request-id": f"mine-{track}"}
            answer = http.post("/v1/purify?secret=query", content=png, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-maep-track"] == track
            assert answer.headers["x-maep-purifier"] == version
            assert answer.headers.get_list("x-request-id") == [f"mine-{track}"]
            assert "max-age" in answer.headers["strict-transport-security"]
            assert "nginx/" not in answer.headers.get("server", "")
            line = front.logged(f"mine-{track}")
            assert (line["track"], line["version"], line["status"], line["path"]) == (track, version, 200, "/v1/purify")
    everything = "".join(path.read_text() for path in front.folder.glob("*.log"))
    assert TOKEN not in everything
    assert "secret" not in everything


def test_the_canary_has_its_share(front: Front, png: bytes) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    with front.http() as http:
        for _ in range(160):
            answer = http.post("/v1/purify", content=png)
            seen[answer.headers["x-maep-track"], answer.headers["x-maep-purifier"]] += 1
    assert set(seen) == set(front.versions.items())
    share = seen["canary", front.versions["canary"]] / seen.total()
    assert 0.1 < share < 0.4, "4 standard deviations about a quarter"


def test_the_rate_limit_sends_retry_after_and_the_client_honours_it(front: Front, png: bytes, tmp_path: Path) -> None:
    """Two per second after a burst of two: plain requests get 429 with Retry-After, the client waits."""
    tmp_path.chmod(0o755)
    port = free_ports(1)[0]
    written(tmp_path, port, front.backend, {"rate=100r/s": "rate=2r/s"}, {"burst=200": "burst=2"})
    with running(tmp_path, port):
        narrow = dataclasses.replace(front, url=f"https://127.0.0.1:{port}", folder=tmp_path)
        with narrow.http() as http:
            answers = [http.get("/healthz") for _ in range(12)]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert is_problem(answer, 429, "queue-full")
                assert answer.headers["retry-after"] == "1"
        with narrow.client() as client:
            assert {client.purify(png).purifier for _ in range(4)} <= set(front.versions.values())


def test_only_maeps_routes_are_forwarded(front: Front) -> None:
    with front.http() as http:
        for path in (
            "/-/routes",
            "/-/healthz",
            "/metrics",
            "/canary/v1/info",
            "/docs",
            "/v1/attack",
            "/v1/attack?eps=8",
        ):
            answer = http.post(path, content=b"x")
            assert is_problem(answer, 404, "not-found"), path
        for path in ("/", "/healthz", "/readyz", "/v1/info", "/openapi.json"):
            assert http.get(path).status_code == 200, path


def test_refused_requests_are_problems(front: Front, png: bytes) -> None:
    with front.http() as http:
        assert is_problem(http.post("/v1/purify", content=bytes(8 * 2**20 + 1)), 413, "body-too-large")

        def chunks() -> Iterator[bytes]:
            for _ in range(9):
                yield bytes(2**20)

        assert is_problem(http.post("/v1/purify", content=chunks()), 413, "body-too-large")
        assert is_problem(http.post("/v1/purify", content=b"nothing"), 400, "not-an-image")
    with front.client(token="another") as client, pytest.raises(ProblemError, match="unauthorized"):
        client.purify(png)


def test_old_tls_and_plain_http_are_refused(front: Front) -> None:
    port = httpx.URL(front.url).port
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port), 30) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)
    plain_answer = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
    assert plain_answer.status_code == 400


def test_an_unreachable_backend_is_503_with_retry_after(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    port = free_ports(1)[0]
    written(tmp_path, port, f"http://127.0.0.1:{free_ports(1)[0]}", {})
    with running(tmp_path, port):
        trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        mine = {"x-request-id": "mine"}
        answer = httpx.get(f"https://127.0.0.1:{port}/readyz", verify=trust, trust_env=False, headers=mine)
        assert is_problem(answer, 503, "not-ready")
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["retry-after"] == "2"


def test_the_shipped_canary_has_no_share() -> None:
    site = (FOLDER / "site.conf").read_text()
    share = re.search(r"split_clients[^{]*\{(.*?)\}", site, re.S)
    assert share is not None
    entries = [line.split("#")[0].strip() for line in share[1].splitlines()]
    assert [entry.split() for entry in entries if entry] == [["*", "stable;"]]


def test_every_code_of_nginx_is_one_of_the_endpoints(front: Callable[..., Any]) -> None:
    from maep_serve.problems import CODES

    said = re.findall(r"return (\d+) '(\{.*\})';", (FOLDER / "maep.conf").read_text())
    assert len(said) == 5
    for status, body in said:
        values = json.loads(body)
        assert CODES[values["code"]][0] == int(status) == values["status"]
