# SPDX-License-Identifier: Apache-2.0
"""
Listens, with or without TLS, and lets nobody keep others from being served.

A client has ten seconds from its first byte to its last, and no more than eight are
served at once; the daemon's own loop waits for none of them.
"""

from __future__ import annotations

import io
import logging
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.http import Site
from scope_ebpf.daemon.notify import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.daemon.loop import Daemon

#: Seconds that a client may take in all, and clients that are served at once.
PATIENCE = 10.0
AT_ONCE = 8
#: Seconds for which one more waits for another to end before it is turned away.
_WAIT = 0.5


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def setup(self) -> None:
        super().setup()
        self._trouble = io.StringIO()

    def get_stderr(self) -> Any:
        """Where a traceback goes: not to our log, where each thing is one line."""
        return self._trouble

    def finish(self) -> None:
        super().finish()
        if text := self._trouble.getvalue().strip():
            raise _FailedError(text.splitlines()[-1])

    def log_message(self, *_: Any) -> None:
        """Requests are no news."""


class _FailedError(Exception):
    """A request could not be answered."""


class Server(ThreadingMixIn, WSGIServer):
    """Serves *site* where *config* says; ConfigError where that cannot be."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, config: Config, site: Site, errors: Callable[[], None]) -> None:
        self._room = threading.Semaphore(AT_ONCE)
        self._errors = errors
        self._since: dict[socket.socket, float] = {}
        self._tls = _tls(config)
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

    def heed(self, config: Config) -> None:
        """Take the certificate of a config that was read again; it may have been renewed."""
        if (self._tls is None) != (config.tls_cert is None):
            say(logging.WARNING, "TLS is switched on and off by the next start only")
        elif self._tls is not None:
            try:
                self._tls = _tls(config)
            except ConfigError as error:
                say(logging.ERROR, "certificate refused, the old one stays", why=error)

    def server_bind(self) -> None:
        """As the base class, without asking DNS for our own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "scope-ebpfd", self.server_address[1]
        self.setup_environ()

    def service_actions(self) -> None:
        """Hang up on who takes too long; called twice a second."""
        late = time.monotonic() - PATIENCE
        for request, since in list(self._since.items()):
            if since < late:
                with suppress(OSError):
                    # Not the method of a TLS socket, which its own thread uses.
                    socket.socket.shutdown(request, socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in a thread, if there is room soon; else it is turned away."""
        if not self._room.acquire(timeout=_WAIT):
            self._errors()
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be started
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client; a bad one harms nobody else."""
        tls = self._tls
        try:
            request.settimeout(PATIENCE)
            if tls:
                request = tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            self._since[request] = time.monotonic()
            if tls:
                request.do_handshake()
            super().process_request_thread(request, client_address)
        except OSError:
            self._errors()
            self.shutdown_request(request)
        finally:
            self._since.pop(request, None)
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that went away, most likely; anything else is worth a line."""
        self._errors()
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            say(logging.WARNING, "a request failed", why=error)


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    # A new one each time: what refuses a certificate's key has taken the certificate already.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password for the key nobody is asked for one on the terminal.
        context.load_cert_chain(config.tls_cert, config.tls_key, password=str)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the certificate {config.tls_cert}: {error}") from None
    return context


def serve(daemon: Daemon) -> Server:
    """Listen, and answer from a thread of its own; ConfigError where that cannot be."""

    def count() -> None:
        daemon.errors["http"] += 1

    server = Server(daemon.config, Site(daemon), count)
    daemon.heeding.append(server.heed)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
