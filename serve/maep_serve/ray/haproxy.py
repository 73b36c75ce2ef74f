"""HAProxy as Ray Serve configures it, less what it would show to other machines; it ends with whoever started it.

    python haproxy.py MOST BINARY [HAPROXY'S OWN ARGUMENTS]

MOST: requests that one replica takes at once. Ray starts this program where it wants HAProxy (`ingress.py`), so
it is alone: the standard library, no maep.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2): killed, Ray would leave HAProxy behind, holding the port
_SECTIONS_FOR_US = re.compile(r"^((?:frontend prometheus|listen stats)\n +bind )\S*:(\d+)$", re.M)
_PUBLIC_SECTION = re.compile(r"^(frontend http_frontend\n +bind \S+\n)", re.M)
_REPLICAS_SECTION = re.compile(r"^(backend (?!default_backend$)\S+\n)", re.M)
_UNKNOWN_SECTION = re.compile(r"^(backend default_backend\n)( +http-request return .*\n)+", re.M)
_ERROR_FILE = re.compile(r"^ +errorfile 503 (\S+)$", re.M)
_SMALL = 65536  # bytes of a body
_TYPE = "application/problem+json"
_REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
_FOR_RAY = "^x-(session-id|request-(timeout-seconds|disconnect-disabled))$|^serve[_-]multiplexed[_-]model[_-]id$"


def _problem(status: int, code: str, title: str, detail: str) -> str:
    """A document as those of maep_serve.http.problems."""
    members = {"type": f"urn:maep:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return json.dumps({**members, "error": f"{code}: {detail}"}, separators=(",", ":"))


_NO_REPLICA = _problem(
    503, "not-ready", "The model is not loaded yet", "no replica answered; the request may be sent again"
)
_NOT_FOUND = _problem(404, "not-found", "There is nothing at this address", "below /-/ lies nothing of the endpoint")
_TOO_MANY = _problem(429, "queue-full", "Too many requests are waiting", "all replicas have as many as they take")
_TOO_SLOW = _problem(408, "body-timeout", "The body did not arrive in time", "the request came too slowly")
_OF_THE_PUBLIC_SECTION = f"""\
    option http-buffer-request
    timeout http-request 10s
    http-error status 408 content-type {_TYPE} string '{_TOO_SLOW}'
    http-request set-log-level silent
    http-request set-var(txn.id) req.fhdr(x-request-id)
    http-request set-var(txn.id) uuid unless {{ var(txn.id) -m reg {_REQUEST_ID} }}
    http-request set-header x-request-id %[var(txn.id)]
    http-request del-header {_FOR_RAY} -m reg
    http-after-response set-var(txn.id) uuid unless {{ var(txn.id) -m found }}
    http-after-response set-header x-request-id %[var(txn.id)]
    http-request return status 404 content-type {_TYPE} string '{_NOT_FOUND}' if {{ path,url_dec -m beg -i /-/ }}
"""
_OF_THE_UNKNOWN_SECTION = f"""\
    http-request return status 503 content-type {_TYPE} hdr retry-after 1 string '{_NO_REPLICA}'
"""


def _of_the_replicas_section(most: int) -> str:
    too_many = "METH_POST { nbsrv gt 0 } { be_conn,sub(txn.most) gt 0 }"
    small = f"{{ req.hdr_val(content-length) -m int 1:{_SMALL} }}"
    return f"""\
    http-request set-header x-request-disconnect-disabled ?1 if {small}
    http-request set-header x-request-timeout-seconds 0 if {small}
    http-request set-var(txn.most) nbsrv,mul({most})
    http-request return status 429 content-type {_TYPE} hdr retry-after 1 string '{_TOO_MANY}' if {too_many}
"""


def private(configuration: str, most: int) -> str:
    """`configuration` with HAProxy's own figures on loopback only, and a public port that takes no more than it must.

    Ray binds the figures to every address. Its routes, below /-/, tell which applications there are. It lets a caller
    take an hour for the lines before the body. And it passes on whatever comes: at twice its capacity a replica has no
    time for anything but refusing, which costs HAProxy a tenth of it. What a replica is counted to work on, be_conn,
    includes who was answered and still owes a part of his body; so no request counts before its body, or as much of it
    as HAProxy's buffer holds (16 kB), is there. The time of the rest is the endpoint's. Where there is no application,
    as while the endpoint ends, Ray says that the address is wrong. In the headers that are its own Ray takes whatever
    comes, and fails where they are not UTF-8: none but a plain x-request-id passes. What HAProxy itself answers has one
    too. Raises ValueError for a configuration of which something is not where it was, as after a Ray to come: what
    should be private would be public, and nobody would know.
    """
    configuration, num_for_us = _SECTIONS_FOR_US.subn(r"\g<1>127.0.0.1:\2", configuration)
    if _OF_THE_PUBLIC_SECTION in configuration:
        return configuration
    configuration, num_public = _PUBLIC_SECTION.subn(lambda found: found[1] + _OF_THE_PUBLIC_SECTION, configuration)
    configuration, num_unknown = _UNKNOWN_SECTION.subn(lambda found: found[1] + _OF_THE_UNKNOWN_SECTION, configuration)
    if (num_for_us, num_public, num_unknown) != (2, 1, 1):
        raise ValueError("HAProxy is not started: its configuration is not as Ray wrote it when this was made")
    return _REPLICAS_SECTION.sub(lambda found: found[1] + _of_the_replicas_section(most), configuration)


def unanswered() -> bytes:
    """What a caller is told where no replica can be reached, or one dies over the request: 503, as a problem document.

    Ray makes a plain 500 of it, which says that the request is at fault.
    """
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {_TYPE}\r\nretry-after: 1\r\n"
    return f"{head}cache-control: no-cache\r\ncontent-length: {len(_NO_REPLICA)}\r\n\r\n{_NO_REPLICA}".encode("ascii")


def main() -> None:
    """Becomes HAProxy."""
    most, binary, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        configuration = file.read_text(encoding="utf-8")
        try:
            file.write_text(private(configuration, int(most)), encoding="utf-8")
        except ValueError as error:
            sys.exit(str(error))
        for path in set(_ERROR_FILE.findall(configuration)):
            Path(path).write_bytes(unanswered())
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
