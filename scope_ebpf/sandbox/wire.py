# SPDX-License-Identifier: Apache-2.0
"""Messages between client and child: JSON behind its length."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

from scope_ebpf.sandbox import limits

_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 16
_MAX_FDS = 2


class NonsenseError(Exception):
    """The bytes received are not a message."""


def send(channel: socket.socket, message: object, fds: tuple[int, ...] = ()) -> None:
    """Send one message, and descriptors with it."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > limits.MESSAGE:
        raise limits.LimitError(f"an answer of {len(data):,} bytes")
    head = _LENGTH.pack(len(data))
    if fds:
        socket.send_fds(channel, [head], list(fds))
        head = b""
    channel.sendall(head + data)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """
    The next message; EOFError at the end, TimeoutError at *deadline* (monotonic seconds).

    NonsenseError for what is no JSON of at most ``limits.MESSAGE`` bytes.
    """
    (size,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline))
    if size > limits.MESSAGE:
        raise NonsenseError(f"a message of {size:,} bytes")
    try:
        return json.loads(_exactly(channel, size, deadline))
    except (ValueError, RecursionError) as error:
        raise NonsenseError("a message that is no JSON") from error


def receive_with_fds(channel: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; without a deadline, for the child."""
    head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, _MAX_FDS)
    if len(head) != _LENGTH.size:
        raise EOFError
    return json.loads(_exactly(channel, _LENGTH.unpack(head)[0], None)), list(fds)


def _exactly(channel: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if deadline is not None:
            channel.settimeout(max(deadline - time.monotonic(), 1e-4))
        part = channel.recv(min(size - len(parts), _CHUNK))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
