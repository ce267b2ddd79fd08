# SPDX-License-Identifier: Apache-2.0
"""
Peers that are no BEAM: one thread that shakes hands as nodes of any name do, and then only reads.

The handshake is that of version 6 (erl_dist_protocol, "Distribution Handshake").
"""

from __future__ import annotations

import contextlib
import hashlib
import selectors
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COOKIE = b"planted"
_CREATION, _CHALLENGE = 0x1234567, 0x7654321
_NAME, _HIGH = struct.Struct(">cQIH"), struct.Struct(">cQIIH")
_TICK = bytes(4)


class _Link:
    """
    One accepted connection, in one of the states of the handshake.
    """

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.connection, self._host = connection, host
        self._step = 0

    def read(self) -> bool:
        """
        Take what came in; False at the end.
        """
        if self._step == 2:
            data = self.connection.recv(1 << 16)
            if data.endswith(_TICK):
                self.connection.sendall(_TICK)
            return bool(data)
        head = self.connection.recv(2, socket.MSG_WAITALL)
        if len(head) < 2:
            return False
        body = self.connection.recv(struct.unpack(">H", head)[0], socket.MSG_WAITALL)
        (self._named, self._challenged)[self._step](body)
        self._step += 1
        return True

    def _say(self, *bodies: bytes) -> None:
        self.connection.sendall(b"".join(struct.pack(">H", len(one)) + one for one in bodies))

    def _named(self, body: bytes) -> None:
        tag, flags, _, _ = _NAME.unpack_from(body)
        assert tag == b"N", body
        name = self._host.encode()
        challenge = _HIGH.pack(b"N", flags, _CHALLENGE, _CREATION, len(name)) + name
        self._say(b"sok", challenge)

    def _challenged(self, body: bytes) -> None:
        assert body[:1] == b"r", body
        (challenge,) = struct.unpack_from(">I", body, 1)
        self._say(b"a" + hashlib.md5(_COOKIE + str(challenge).encode()).digest())


@contextlib.contextmanager
def fake_peers(nodes: Sequence[str], port: int) -> Iterator[None]:
    """
    Peers called *nodes*, each listening on *port* of the loopback address in its name.
    """
    ready, stop = selectors.DefaultSelector(), threading.Event()
    with contextlib.ExitStack() as open_ones:
        for node in nodes:
            one = open_ones.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((node.partition("@")[2], port))
            one.listen(1)
            ready.register(one, selectors.EVENT_READ, node)
        thread = threading.Thread(target=_serve, args=(ready, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _serve(ready: selectors.BaseSelector, stop: threading.Event) -> None:
    links: list[_Link] = []
    while not stop.is_set():
        for key, _ in ready.select(0.1):
            if isinstance(key.data, str):
                connection, _ = key.fileobj.accept()
                links.append(_Link(connection, key.data))
                ready.register(connection, selectors.EVENT_READ, links[-1])
            elif not key.data.read():
                ready.unregister(key.fileobj)
    for one in links:
        one.connection.close()
