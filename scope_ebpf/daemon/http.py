# SPDX-License-Identifier: Apache-2.0
"""
``/metrics``, ``/healthz``, ``/readyz`` and one plain page at ``/``.

A scraper that is slow keeps a thread for at most ten seconds, and no more than
eight are served at once; the daemon's own loop waits for none of them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import ssl
import threading
import time
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import make_wsgi_app

from scope_ebpf.daemon.collector import Readings
from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.loop import STUCK
from scope_ebpf.daemon.page import page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scope_ebpf.daemon.loop import Daemon

#: Seconds for which a client may do nothing, and clients that are served at once.
PATIENCE = 10.0
AT_ONCE = 8

_TEXT = [("Content-Type", "text/plain; charset=utf-8")]
_HTML = [("Content-Type", "text/html; charset=utf-8")]
_ASK = [*_TEXT, ("WWW-Authenticate", 'Basic realm="scope-ebpf"')]


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
        self._passed: dict[bytes, str] = {}

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer one request."""
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
        stored = users.get(name.decode("utf-8", "replace"))
        return kind.lower() == "basic" and stored is not None and matches(stored, password)


def _answer(start: Any, status: str, headers: list[tuple[str, str]], text: str) -> Iterable[bytes]:
    start(status, [*headers])  # the server adds to it
    return [text.encode() + b"\n"]


def hash_password(password: bytes, salt: bytes, rounds: int = 100_000) -> str:
    """What the config holds instead of a password."""
    digest = hashlib.pbkdf2_hmac("sha256", password, salt, rounds)
    return f"pbkdf2:{rounds}:{salt.hex()}:{digest.hex()}"


def matches(stored: str, password: bytes) -> bool:
    """Whether *password* is the one whose hash is *stored*."""
    _, rounds, salt, _ = stored.split(":")
    made = hash_password(password, bytes.fromhex(salt), int(rounds))
    return hmac.compare_digest(made, stored)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, *_: Any) -> None:
        """Requests are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, config: Config, site: Site, errors: Callable[[], None]) -> None:
        self._room = threading.Semaphore(AT_ONCE)
        self._errors = errors
        self.address_family = socket.AF_INET6 if ":" in config.listen[0] else socket.AF_INET
        try:
            super().__init__(config.listen, _Handler)
        except OSError as error:
            host, port = config.listen
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; "
                "choose another with --listen"
            ) from None
        self.set_app(site)
        self._tls = _tls(config)

    def server_bind(self) -> None:
        """As the base class, without asking DNS for our own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "scope-ebpfd", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in a thread, if there is room; else it is turned away at once."""
        if not self._room.acquire(blocking=False):
            self._errors()
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client; a bad one harms nobody else."""
        try:
            request.settimeout(PATIENCE)
            if self._tls:
                request = self._tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self._errors()
            self.shutdown_request(request)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that went away, most likely."""
        self._errors()


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate {config.tls_cert}: {error}") from None
    return context


def serve(daemon: Daemon) -> WSGIServer:
    """Listen, and answer from a thread of its own; ConfigError where that cannot be."""

    def count() -> None:
        daemon.errors["http"] += 1

    server = _Server(daemon.config, Site(daemon), count)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
