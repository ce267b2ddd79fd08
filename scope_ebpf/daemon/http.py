# SPDX-License-Identifier: Apache-2.0
"""
``/metrics``, ``/healthz``, ``/readyz`` and one plain page at ``/``: what is answered to whom.

``server.py`` listens.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import make_wsgi_app

from scope_ebpf.daemon.collector import Readings
from scope_ebpf.daemon.loop import STUCK
from scope_ebpf.daemon.page import page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.daemon.loop import Daemon

_TEXT = [("Content-Type", "text/plain; charset=utf-8")]
_HTML = [("Content-Type", "text/html; charset=utf-8")]
_ASK = [*_TEXT, ("WWW-Authenticate", 'Basic realm="scope-ebpf"')]
_METHODS = ("GET", "HEAD")
#: After a wrong password nobody's is looked at for so many times as long as it took to see that
#: it is wrong: who guesses takes a fifth of a core, however many guess.
_PAUSE = 4.0


class Site:
    """The WSGI application."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        registry = CollectorRegistry()
        registry.register(Readings(daemon))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        #: Who came in last, by name: a fingerprint of the password and of the hash that it fits.
        self._passed: dict[str, bytes] = {}
        self._looking = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer one request."""
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in _METHODS:
            allow = [*_TEXT, ("Allow", ", ".join(_METHODS))]
            return _answer(start, "405 Method Not Allowed", allow, "there are: GET and HEAD")
        body = self._get({**environ, "REQUEST_METHOD": "GET"}, start)
        return body if method == "GET" else []

    def _get(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path, daemon = environ.get("PATH_INFO", "/"), self._daemon
        if path == "/healthz":
            alive = time.monotonic() - daemon.turned < STUCK
            return _answer(
                start, "200 OK" if alive else "503 Stuck", _TEXT, "ok" if alive else "stuck"
            )
        if path == "/readyz":
            state = "200 OK" if daemon.ready else "503 Not yet"
            return _answer(start, state, _TEXT, "ready" if daemon.ready else "not yet")
        if not self._may(environ.get("HTTP_AUTHORIZATION", "")):
            return _answer(start, "401 Unauthorized", _ASK, "who are you?")
        if path == "/metrics":
            body: Iterable[bytes] = self._metrics(environ, start)
            return body
        if path == "/":
            return _answer(start, "200 OK", _HTML, page(daemon))
        return _answer(start, "404 Not Found", _TEXT, "there are: / /metrics /healthz /readyz")

    def _may(self, header: str) -> bool:
        users = self._daemon.config.users
        if not users:
            return True
        kind, _, encoded = header.partition(" ")
        try:
            name, _, password = base64.b64decode(encoded, validate=True).partition(b":")
        except ValueError:
            return False
        user = name.decode("utf-8", "replace")
        stored = users.get(user)
        return kind.lower() == "basic" and stored is not None and self._fits(user, stored, password)

    def _fits(self, user: str, stored: str, password: bytes) -> bool:
        """As :func:`matches`, which is slow by design: not at every scrape, and one at a time."""
        print_ = hashlib.sha256(b"%s\0%s" % (stored.encode(), password)).digest()
        if hmac.compare_digest(self._passed.get(user, b""), print_):
            return True
        with self._looking:
            began = time.thread_time()
            if matches(stored, password):
                self._passed[user] = print_
                return True
            time.sleep(_PAUSE * (time.thread_time() - began))
        return False


def _answer(start: Any, status: str, headers: list[tuple[str, str]], text: str) -> Iterable[bytes]:
    start(status, [*headers])  # the server adds to it
    return [text.encode("utf-8", "backslashreplace") + b"\n"]


def hash_password(password: bytes, salt: bytes, rounds: int = 100_000) -> str:
    """What the config holds instead of a password."""
    digest = hashlib.pbkdf2_hmac("sha256", password, salt, rounds)
    return f"pbkdf2:{rounds}:{salt.hex()}:{digest.hex()}"


def matches(stored: str, password: bytes) -> bool:
    """Whether *password* is the one whose hash is *stored*."""
    _, rounds, salt, _ = stored.split(":")
    made = hash_password(password, bytes.fromhex(salt), int(rounds))
    return hmac.compare_digest(made, stored)
