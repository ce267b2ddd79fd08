# SPDX-License-Identifier: Apache-2.0
"""
The server: it listens, with or without TLS, and no client can keep others from being served.

One thread reads all requests and writes all responses. Another thread is used only after a request
is complete, and only while its response is made. Health checks are answered by the thread that
reads.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from scope_ebpf.daemon.config import Config, ConfigError
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.web import listening
from scope_ebpf.daemon.web.fairness import FullError, SlotQueue, TaskLimit, group_of
from scope_ebpf.daemon.web.http import Effort, Site
from scope_ebpf.daemon.web.request import MOST, Head, RefusedRequestError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from scope_ebpf.daemon.loop import Daemon

#: Maximum seconds from a connection to the end of its request's head, TLS included.
HEAD_SECONDS = 2.0
#: Maximum seconds for which a request waits for a thread, and in which a client reads a response.
PATIENCE = 10.0
#: Seconds for which the server waits for the client to close the connection after a response.
_PARTING = 1.0
#: Bytes after a request that are read and discarded, so that the response arrives.
_DISCARDED = 1 << 20
#: Maximum clients whose request is incomplete. A client succeeds if its request is complete before
#: this many later clients have connected.
UNFINISHED = 128
#: Responses that are made at the same time, and requests that wait for a thread.
AT_ONCE, _WAITING = 8, 128
#: Passwords that wait to be checked, one at a time, since that is slow by design.
_GUESSES = 16
#: Maximum bytes of responses that clients have not read, and the minimum that each counts.
_UNREAD, _LEAST = 64 << 20, 1 << 20
#: Connections that are accepted in a row, so that earlier ones are read in between.
_ACCEPTED = 8
#: Descriptors below the limit that clients leave to the daemon's loop.
_SPARED = 64
#: Seconds without accepting after the descriptors were exhausted.
_PAUSE = 0.1
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_HEADERS = (
    ("Connection", "close"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)
_TEXT = [("Content-Type", "text/plain; charset=utf-8")]


class Server:
    """
    Serves *site* at the address of *config*; *errors* is called for each failed request.

    Raises ConfigError if it cannot listen there, or if the certificate is wrong.

    Attributes:
        addresses: where it listens, as in the config.
    """

    def __init__(self, config: Config, site: Site, errors: Callable[[], None]) -> None:
        self._config, self._site, self._errors = config, site, errors
        self._tls = _tls(config)
        self._listeners = listening.listeners(config)
        self.addresses = [listening.describe(listener) for listener in self._listeners]
        self._unfinished, self._unread = TaskLimit(UNFINISHED), TaskLimit(_UNREAD)
        self._slots = {
            Effort.PAGE: (SlotQueue(AT_ONCE, _WAITING), ThreadPoolExecutor(AT_ONCE, "http")),
            Effort.PASSWORD: (SlotQueue(1, _GUESSES), ThreadPoolExecutor(1, "http")),
        }
        #: All clients, and those with one of the last descriptors: while there are any, one client
        #: is dropped for each new one.
        self._clients: set[asyncio.Task[None]] = set()
        self._last: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._failed(context))
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Close all connections and stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for _, pool in self._slots.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for listener in self._listeners:
            listening.close(listener, self._config)

    def apply_config(self, config: Config) -> None:
        """Load the certificate of *config*, which may have been renewed."""
        if (self._tls is None) != (config.tls_cert is None):
            say(logging.WARNING, "TLS is switched on and off by the next start only")
        elif self._tls is not None:
            try:
                self._tls = _tls(config)
            except ConfigError as error:
                say(logging.ERROR, "certificate refused, the old one stays", why=error)

    def _run(self) -> None:
        for listener in self._listeners:
            self._accept_from(listener)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._hang_up())
            self._loop.close()

    async def _hang_up(self) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _accept_from(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._accept, listener, listening.is_loopback(listener))

    def _accept(self, listener: socket.socket, local: bool) -> None:
        for _ in range(_ACCEPTED):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._errors()
                if error.errno in _NO_FILES and not self._unfinished.drop_oldest():
                    self._loop.remove_reader(listener)
                    self._loop.call_later(_PAUSE, self._accept_from, listener)
                return
            client.setblocking(False)
            task = self._loop.create_task(self._serve(client, local))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)
            if client.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARED:
                self._last.add(task)
                task.add_done_callback(self._last.discard)
            if self._last:
                self._unfinished.drop_oldest()
                return  # the cancelled client ends in a later pass of the event loop

    async def _serve(self, client: socket.socket, local: bool) -> None:
        """Serve one client; its errors affect no other."""
        try:
            async with _Stream(client) as stream:
                answer = await self._answer(stream, local)
                with self._unread.join(_this_task(), stream.group, max(len(answer), _LEAST)):
                    await stream.part(answer)
        except asyncio.CancelledError:
            self._errors()  # dropped in favour of others, or the server is closed
        except (OSError, EOFError):
            self._errors()
        except Exception as error:  # noqa: BLE001 - one client must not take the others along
            self._failed({"exception": error})

    async def _answer(self, stream: _Stream, local: bool) -> bytes:
        """Read a request; its response."""
        try:
            with self._unfinished.join(_this_task(), stream.group):
                async with asyncio.timeout(HEAD_SECONDS):
                    environ = await stream.request(self._tls)
        except RefusedRequestError as refused:
            self._errors()
            return _written(refused.status, _TEXT, f"{refused}\n".encode())
        environ["scope_ebpf.local"] = local
        effort = self._site.effort(environ)
        if effort is Effort.NONE:
            return self._made(environ)
        slots, pool = self._slots[effort]
        try:
            async with asyncio.timeout(PATIENCE) as wait, slots.slot(stream.group):
                wait.reschedule(None)
                return await self._loop.run_in_executor(pool, self._made, environ)
        except (FullError, TimeoutError):
            self._errors()
            return _written("503 Service Unavailable", _TEXT, b"too many ask at once\n")

    def _made(self, environ: dict[str, Any]) -> bytes:
        """The response of the site; an exception in it is logged as one line."""
        begun: list[Any] = []
        try:
            body = b"".join(self._site(environ, lambda *said: begun.extend(said)))
        except Exception as error:  # noqa: BLE001 - the client learns that it is not its fault
            self._failed({"exception": error})
            return _written("500 Internal Server Error", _TEXT, b"the daemon's log says why\n")
        return _written(begun[0], begun[1], body, head=environ["REQUEST_METHOD"] == "HEAD")

    def _failed(self, context: dict[str, Any]) -> None:
        self._errors()
        error = context.get("exception")
        if not isinstance(error, OSError):
            say(logging.WARNING, "a request failed", why=repr(error) if error else context)


class _Stream:
    """A connection, until the block ends. Raises OSError if the client has closed it."""

    group: str

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._reader = asyncio.StreamReader(MOST)
        self._transport: asyncio.Transport | None = None

    async def __aenter__(self) -> Self:
        try:
            self.group = group_of(self._client)
        except OSError:
            self._client.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._transport:
            self._transport.abort()
        else:
            self._client.close()

    async def request(self, tls: ssl.SSLContext | None) -> dict[str, Any]:
        """The environ of the request. Raises RefusedRequestError, EOFError if it is incomplete."""
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        self._transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, self._client, ssl=tls
        )
        self._writer = asyncio.StreamWriter(self._transport, protocol, self._reader, loop)
        head = Head()
        while True:
            more = await self._reader.read(head.room())
            if not more:
                raise EOFError
            if head.add(more):
                return head.environ()

    async def part(self, answer: bytes) -> None:
        """Send *answer*, and close the connection once the client has read it, or does not."""
        async with asyncio.timeout(PATIENCE):
            self._writer.transport.set_write_buffer_limits(0)
            self._writer.write(answer)
            await self._writer.drain()
            if not self._writer.can_write_eof():  # TLS closes the connection itself
                self._writer.close()
                await self._writer.wait_closed()
                return
            self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PARTING):
                await self._discard()

    async def _discard(self) -> None:
        """Discard bytes after a request: unread ones make the kernel reset the connection."""
        left = _DISCARDED
        while left > 0 and (more := await self._reader.read(MOST)):
            left -= len(more)


def _this_task() -> asyncio.Task[None]:
    task: asyncio.Task[None] | None = asyncio.current_task()
    assert task is not None  # noqa: S101 - clients are served by tasks
    return task


def _written(
    status: str, headers: list[tuple[str, str]], body: bytes, *, head: bool = False
) -> bytes:
    """The bytes of a response; without body and Content-Length if only *head* is wanted."""
    lines = [f"HTTP/1.0 {status}", *(f"{name}: {text}" for name, text in (*headers, *_HEADERS))]
    if not head:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head else body)


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    # A new context each time: one that refuses the key has already loaded the certificate.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The password prevents a prompt on the terminal for an encrypted key.
        context.load_cert_chain(config.tls_cert, config.tls_key, password=str)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the certificate {config.tls_cert}: {error}") from None
    return context


def serve(daemon: Daemon) -> Server:
    """Listen, and respond from a thread of its own. Raises ConfigError."""

    def count() -> None:
        daemon.errors["http"] += 1

    server = Server(daemon.config, Site(daemon), count)
    daemon.listeners.append(server.apply_config)
    server.start()
    return server
