# SPDX-License-Identifier: Apache-2.0
"""
The responses of ``/metrics``, ``/healthz``, ``/readyz`` and pages, with authentication.

``server.py`` listens. ``scope_ebpf.local`` in a request's environ is True if the request came to a
loopback address.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import ipaddress
import re
import threading
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import make_wsgi_app

from scope_ebpf.daemon.loop import STUCK
from scope_ebpf.daemon.web import vm_status
from scope_ebpf.daemon.web.collector import Readings
from scope_ebpf.daemon.web.status_page import POLICY, page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.daemon.loop import Daemon

_TEXT = [("Content-Type", "text/plain; charset=utf-8")]
_HTML = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", POLICY),
    ("Referrer-Policy", "no-referrer"),
]
_KINDS = {"html": _HTML, "json": [("Content-Type", "application/json")]}
_ASK = [*_TEXT, ("WWW-Authenticate", 'Basic realm="scope-ebpf"')]
_METHODS = ("GET", "HEAD")
_THERE_ARE = (
    "there are: / /metrics /healthz /readyz, and /vm/PID and /api/v1/vm/PID for each observed VM"
)
_NOT_OURS = "a loopback address is asked for by that name only; the config's hosts has others"
#: After a failed login, password checks pause for this multiple of the check's CPU time. This
#: bounds password guessing to a fifth of a core in total.
_PAUSE = 4.0
#: ``name``, ``name:port``, ``[address]:port``.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", re.IGNORECASE)


class Effort(enum.Enum):
    """The work that a response takes: nearly none, a page, or checking a password."""

    NONE = enum.auto()
    PAGE = enum.auto()
    PASSWORD = enum.auto()


class Site:
    """The WSGI application of *daemon*."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        registry = CollectorRegistry()
        registry.register(Readings(daemon))
        ProcessCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        #: Last successful logins, by user: a fingerprint of the password and of its stored hash.
        self._logins: dict[str, bytes] = {}
        self._checking = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Respond to one request."""
        method = environ["REQUEST_METHOD"]
        if method not in _METHODS:
            allow = [*_TEXT, ("Allow", ", ".join(_METHODS))]
            return _answer(start, "405 Method Not Allowed", allow, "there are: GET and HEAD")
        body = self._get({**environ, "REQUEST_METHOD": "GET"}, start)
        return body if method == "GET" else []

    def effort(self, environ: dict[str, Any]) -> Effort:
        """The work that the response takes; for NONE any thread may make it."""
        if environ["PATH_INFO"] in _HEALTH:
            return Effort.NONE
        credentials = _credentials(environ)
        if not self._daemon.config.users or credentials is None or self._knows(*credentials):
            return Effort.PAGE
        return Effort.PASSWORD

    def _get(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path, daemon = environ["PATH_INFO"], self._daemon
        if environ.get("scope_ebpf.local") and not self._is_ours(environ.get("HTTP_HOST")):
            return _answer(start, "421 Misdirected Request", _TEXT, _NOT_OURS)
        if path in _HEALTH:
            return _answer(start, *_HEALTH[path](daemon))
        if not self._may(environ):
            return _answer(start, "401 Unauthorized", _ASK, "who are you?")
        if path == "/metrics":
            if daemon.config.compat:
                # In OpenMetrics, names of prometheus.erl 4 and 6 would be in one family.
                environ = {**environ, "HTTP_ACCEPT": ""}
            body: Iterable[bytes] = self._metrics(environ, start)
            return body
        found = ("html", page(daemon)) if path == "/" else vm_status.answer(daemon, path)
        if found is None:
            return _answer(start, "404 Not Found", _TEXT, _THERE_ARE)
        return _answer(start, "200 OK", _KINDS[found[0]], found[1])

    def _is_ours(self, host: str | None) -> bool:
        """
        True if *host* is a name of this host.

        Otherwise any web page could let its own name resolve to 127.0.0.1 and read the response in
        a browser on this host (DNS rebinding).
        """
        if host is None:
            return True  # not a browser
        match = _HOST.fullmatch(host)
        name = (match[1] or match[2]).lower().removesuffix(".") if match else ""
        if name == "localhost" or name in self._daemon.config.hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _may(self, environ: dict[str, Any]) -> bool:
        if not self._daemon.config.users:
            return True
        credentials = _credentials(environ)
        return credentials is not None and (self._knows(*credentials) or self._fits(*credentials))

    def _knows(self, user: str, password: bytes) -> bool:
        """True if *user* has logged in with this password, and the config has not changed it."""
        stored = self._daemon.config.users.get(user)
        if stored is None:
            return False
        return hmac.compare_digest(self._logins.get(user, b""), _fingerprint(stored, password))

    def _fits(self, user: str, password: bytes) -> bool:
        """Check with :func:`matches`, one at a time, since that is slow by design."""
        users = self._daemon.config.users
        # A user that does not exist takes as long as one that does.
        stored = users.get(user) or _like(users.values())
        with self._checking:
            began = time.thread_time()
            if matches(stored, password) and user in users:
                self._logins[user] = _fingerprint(stored, password)
                return True
            time.sleep(_PAUSE * (time.thread_time() - began))
        return False


def _healthz(daemon: Daemon) -> tuple[str, list[tuple[str, str]], str]:
    if time.monotonic() - daemon.turned >= STUCK:
        return "503 Stuck", _TEXT, "stuck"
    if daemon.discovery.inspector.stuck:
        return "503 Stuck", _TEXT, "looks at processes hang, and no more are begun"
    return "200 OK", _TEXT, "ok"


def _readyz(daemon: Daemon) -> tuple[str, list[tuple[str, str]], str]:
    return ("200 OK", _TEXT, "ready") if daemon.ready else ("503 Not yet", _TEXT, "not yet")


_HEALTH = {"/healthz": _healthz, "/readyz": _readyz}


def _credentials(environ: dict[str, Any]) -> tuple[str, bytes] | None:
    """The user and the password of a request; None without them (RFC 7617)."""
    kind, _, encoded = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    try:
        name, _, password = base64.b64decode(encoded, validate=True).partition(b":")
    except ValueError:
        return None
    return (name.decode("utf-8", "replace"), password) if kind.lower() == "basic" else None


def _fingerprint(stored: str, password: bytes) -> bytes:
    return hashlib.sha256(b"%s\0%s" % (stored.encode(), password)).digest()


def _like(hashes: Iterable[str]) -> str:
    """A hash of no password that takes as long to check as the slowest of *hashes*."""
    _, rounds, salt, digest = max(hashes, key=lambda stored: int(stored.split(":")[1])).split(":")
    return f"pbkdf2:{rounds}:{salt}:{'0' * len(digest)}"


def _answer(start: Any, status: str, headers: list[tuple[str, str]], text: str) -> Iterable[bytes]:
    start(status, [*headers])  # the server adds more
    return [text.encode("utf-8", "backslashreplace") + b"\n"]


def hash_password(password: bytes, salt: bytes, rounds: int = 100_000) -> str:
    """The hash of *password* for the config."""
    digest = hashlib.pbkdf2_hmac("sha256", password, salt, rounds)
    return f"pbkdf2:{rounds}:{salt.hex()}:{digest.hex()}"


def matches(stored: str, password: bytes) -> bool:
    """True if *stored* is a hash of *password*."""
    _, rounds, salt, _ = stored.split(":")
    made = hash_password(password, bytes.fromhex(salt), int(rounds))
    return hmac.compare_digest(made, stored)
