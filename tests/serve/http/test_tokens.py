"""Bearer tokens: required if configured, several at a time, rotated at run time, never logged."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from maep.errors import ConfigError
from maep_serve.api import create_api
from maep_serve.engine.service import Service
from maep_serve.http import tokens
from maep_serve.http.tokens import Tokens, digest_of, digests_in, endpoint_tokens

PNG = {"content-type": "image/png"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file is re-read at once."""
    monkeypatch.setattr(tokens, "_CHECK_INTERVAL_S", 0.0)


def write(file: Path, text: str) -> None:
    """Replace the file, as secret stores do."""
    beside = file.with_name("new")
    beside.write_text(text)
    os.replace(beside, file)


def test_configured_tokens_are_required(config, models, png, is_problem):
    app = create_api(Service(config, models), Tokens(digests_in("secret, other")))
    with TestClient(app) as client:
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/purifier/ready", "/"):
            assert client.get(path).status_code == 200
        for given in ("", "Bearer wrong", "secret", "Basic secret", "Bearer", "Bearer secret, other", "Bearer \xe9"):
            headers = {**PNG, "authorization": given.encode("latin-1")}
            refused = client.post("/v1/purify", content=png(), headers=headers)
            assert is_problem(refused, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
            for path in ("/v1/info", "/v1/samples"):
                assert is_problem(client.get(path, headers=headers), "unauthorized")
            assert client.get("/v2/models/purifier", headers=headers).status_code == 401
            assert client.post("/v2/models/purifier/infer", content=b"{}", headers=headers).status_code == 401
        for token in ("secret", "other"):
            headers = {**PNG, "authorization": f"Bearer {token}"}
            assert client.post("/v1/purify", content=png(), headers=headers).status_code == 200


def test_empty_tokens_are_never_valid():
    known = Tokens((digest_of(""), digest_of("secret")))
    assert [known.allow(given) for given in ("", "Bearer", "Bearer ", "Bearer   ")] == [False] * 4
    assert known.allow("Bearer secret")


def test_tokens_rotate_without_a_restart(tmp_path: Path, impatient: None):
    file = tmp_path / "tokens"
    write(file, f"# team tokens\nold {digest_of('old')}\n")
    known = Tokens(digests_in("fixed"), file)
    assert "old" in known
    assert "new" not in known
    write(file, f"old {digest_of('old')}\n{digest_of('new')}  # rotated\n")
    assert "old" in known
    assert "new" in known
    write(file, f"new {digest_of('new')}\n")
    assert "old" not in known
    assert "new" in known
    assert "fixed" in known


@pytest.mark.parametrize("damage", ["token secret-in-the-clear\n", None])
def test_a_damaged_file_keeps_the_last_tokens_and_is_logged_without_its_content(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture, damage: str | None
):
    file = tmp_path / "tokens"
    write(file, digest_of("old"))
    known = Tokens(file=file)
    if damage is None:
        file.unlink()
    else:
        write(file, damage)
    with caplog.at_level(logging.ERROR):
        assert "old" in known
    assert str(file) in caplog.text
    assert "secret-in-the-clear" not in caplog.text


def test_an_unusable_file_is_refused_at_start(config, tmp_path: Path):
    for text, match in (
        ("token\n", "line 1 "),
        ("# none\n", "tokens_file"),
        (f"team {digest_of('')}\n", "line 1 "),
    ):
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(ConfigError, match=match):
            endpoint_tokens(dataclasses.replace(config, tokens_file=str(tmp_path / "tokens")))
    with pytest.raises(ConfigError, match="absent"):
        endpoint_tokens(dataclasses.replace(config, tokens_file=str(tmp_path / "absent")))


def test_a_token_is_required_off_loopback(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert endpoint_tokens(config) == ()
    outside = dataclasses.replace(config, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"host: .*MAEP_SERVE_TOKEN"):
        endpoint_tokens(outside)
    monkeypatch.setenv("MAEP_SERVE_TOKEN", "a, b,")
    assert endpoint_tokens(outside) == (digest_of("a"), digest_of("b"))
    monkeypatch.delenv("MAEP_SERVE_TOKEN")
    (tmp_path / "tokens").write_text(digest_of("c"))
    assert endpoint_tokens(dataclasses.replace(outside, tokens_file=str(tmp_path / "tokens"))) == ()


def test_tokens_are_never_logged(config, models, png, caplog: pytest.LogCaptureFixture):
    with (
        caplog.at_level(logging.DEBUG),
        TestClient(create_api(Service(config, models), Tokens(digests_in("s3cr3t")))) as c,
    ):
        for token in ("s3cr3t", "wr0ng"):
            c.post("/v1/purify", content=png(), headers={**PNG, "authorization": f"Bearer {token}"})
    assert "s3cr3t" not in caplog.text
    assert "wr0ng" not in caplog.text
