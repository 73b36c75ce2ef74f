"""A wrapper that hardens the HAProxy configuration that Ray Serve writes, then becomes HAProxy.

    python haproxy.py MOST BINARY [HAPROXY'S OWN ARGUMENTS]

MOST: requests that one replica accepts at a time. Ray starts this program in place of HAProxy (see `ingress.py`)
outside of maep's environment, so it uses the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2): otherwise a killed Ray leaves HAProxy behind, which keeps the port
_STATISTICS_SECTIONS = re.compile(r"^((?:frontend prometheus|listen stats)\n +bind )\S*:(\d+)$", re.M)
_PUBLIC_SECTION = re.compile(r"^(frontend http_frontend\n +bind \S+\n)", re.M)
_REPLICAS_SECTION = re.compile(r"^(backend (?!default_backend$)\S+\n)", re.M)
_NO_APPLICATION_SECTION = re.compile(r"^(backend default_backend\n)( +http-request return .*\n)+", re.M)
_ERROR_FILE = re.compile(r"^ +errorfile 503 (\S+)$", re.M)
_SMALL_BODY = 65536  # bytes
_PROBLEM = "application/problem+json"
_REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
_RAY_HEADERS = "^x-(session-id|request-(timeout-seconds|disconnect-disabled))$|^serve[_-]multiplexed[_-]model[_-]id$"


def _problem(status: int, code: str, title: str, detail: str) -> str:
    """A problem document like those of maep_serve.problems."""
    members = {"type": f"urn:maep:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return json.dumps({**members, "error": f"{code}: {detail}"}, separators=(",", ":"))


_NO_REPLICA = _problem(503, "not-ready", "The endpoint is not ready", "no replica responded; retry later")
_NOT_FOUND = _problem(404, "not-found", "Not found", "nothing under /-/ is public")
_TOO_MANY = _problem(429, "queue-full", "Too many requests", "all replicas are at their limit")
_TOO_SLOW = _problem(408, "body-timeout", "The body did not arrive in time", "the request arrived too slowly")
_PUBLIC_LINES = f"""\
    option http-buffer-request
    timeout http-request 10s
    http-error status 408 content-type {_PROBLEM} string '{_TOO_SLOW}'
    http-request set-log-level silent
    http-request set-var(txn.id) req.fhdr(x-request-id)
    http-request set-var(txn.id) uuid unless {{ var(txn.id) -m reg {_REQUEST_ID} }}
    http-request set-header x-request-id %[var(txn.id)]
    http-request del-header {_RAY_HEADERS} -m reg
    http-after-response set-var(txn.id) uuid unless {{ var(txn.id) -m found }}
    http-after-response set-header x-request-id %[var(txn.id)]
    http-request return status 404 content-type {_PROBLEM} string '{_NOT_FOUND}' if {{ path,url_dec -m beg -i /-/ }}
"""
_NO_APPLICATION_LINES = f"""\
    http-request return status 503 content-type {_PROBLEM} hdr retry-after 1 string '{_NO_REPLICA}'
"""


def _replicas_lines(most: int) -> str:
    too_many = "METH_POST { nbsrv gt 0 } { be_conn,sub(txn.most) gt 0 }"
    small = f"{{ req.hdr_val(content-length) -m int 1:{_SMALL_BODY} }}"
    return f"""\
    http-request set-header x-request-disconnect-disabled ?1 if {small}
    http-request set-header x-request-timeout-seconds 0 if {small}
    http-request set-var(txn.most) nbsrv,mul({most})
    http-request return status 429 content-type {_PROBLEM} hdr retry-after 1 string '{_TOO_MANY}' if {too_many}
"""


def hardened(configuration: str, most: int) -> str:
    """Ray's `configuration` with private statistics, stricter limits and problem documents.

    - Statistics: Ray binds them to every address, and exposes routes under /-/ that list the applications.
    - Slow callers: Ray lets a caller take an hour to send the headers.
    - Overload: Ray forwards everything. At twice its capacity a replica would do nothing but refuse requests, which
      costs HAProxy a tenth. `be_conn`, which counts a replica's requests, includes callers that were refused and still
      send their body; so a request counts only once its body, or the 16 kB of it that HAProxy buffers, has arrived. The
      endpoint limits the time of the rest.
    - No application, as while the endpoint shuts down: Ray responds 404, as if the address were wrong.
    - Request headers of Ray's own: Ray fails if they are not UTF-8; only a plain x-request-id passes. HAProxy's own
      responses carry one too.

    Raises ValueError if a section is not where it was, for example in a later Ray: what should be private would be
    public, without a warning.
    """
    configuration, num_statistics = _STATISTICS_SECTIONS.subn(r"\g<1>127.0.0.1:\2", configuration)
    if _PUBLIC_LINES in configuration:
        return configuration
    configuration, num_public = _PUBLIC_SECTION.subn(lambda found: found[1] + _PUBLIC_LINES, configuration)
    configuration, num_default = _NO_APPLICATION_SECTION.subn(
        lambda found: found[1] + _NO_APPLICATION_LINES, configuration
    )
    if (num_statistics, num_public, num_default) != (2, 1, 1):
        raise ValueError("HAProxy not started: this Ray writes a configuration that maep does not know: pin Ray")
    return _REPLICAS_SECTION.sub(lambda found: found[1] + _replicas_lines(most), configuration)


def unanswered() -> bytes:
    """The HTTP response when no replica is reachable, or one dies during the request: 503, with a problem document.

    Ray's own is a plain 500, which blames the request.
    """
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {_PROBLEM}\r\nretry-after: 1\r\n"
    return f"{head}cache-control: no-cache\r\ncontent-length: {len(_NO_REPLICA)}\r\n\r\n{_NO_REPLICA}".encode("ascii")


def main() -> None:
    """Harden the configuration and become HAProxy."""
    most, binary, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        configuration = file.read_text(encoding="utf-8")
        try:
            file.write_text(hardened(configuration, int(most)), encoding="utf-8")
        except ValueError as error:
            sys.exit(str(error))
        for path in set(_ERROR_FILE.findall(configuration)):
            Path(path).write_bytes(unanswered())
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
