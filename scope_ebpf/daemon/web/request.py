# SPDX-License-Identifier: Apache-2.0
"""
Parses the head of an HTTP request, from chunks of bytes to a WSGI environ (PEP 3333).

Bodies are not read: no request to the daemon has one.
"""

from __future__ import annotations

import http.client
import io
import re
from typing import Any
from urllib.parse import unquote

#: Maximum bytes of a head, and of its first line.
MOST = 32 << 10
_MOST_LINE = 8 << 10
#: ``GET /metrics HTTP/1.1`` (RFC 9112, section 3), with any version.
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/([0-9])\.[0-9]\r?")


class RefusedRequestError(Exception):
    """The bytes are not a request; *status* is the status of the response."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


class Head:
    """The bytes of one head until it is complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._line: re.Match[bytes] | None = None

    def room(self) -> int:
        """Maximum bytes for :meth:`add`: one more than a head may have."""
        return MOST + 1 - len(self._bytes)

    def add(self, more: bytes) -> bool:
        """Add *more*; True if the head is complete. Raises RefusedRequestError."""
        # The end may be split over two chunks.
        start = max(0, len(self._bytes) - 3)
        self._bytes += more
        if self._line is None:
            self._line = _request_line(self._bytes)
        complete = any(self._bytes.find(end, start) >= 0 for end in (b"\n\r\n", b"\n\n"))
        if not complete and len(self._bytes) > MOST:
            raise RefusedRequestError("431 Request Header Fields Too Large", "too many headers")
        return complete and self._line is not None

    def environ(self) -> dict[str, Any]:
        """The environ of a complete head. Raises RefusedRequestError if headers are wrong."""
        assert self._line is not None  # noqa: S101 - add() has returned True
        method, target = (self._line[group].decode("ascii") for group in (1, 2))
        path, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": unquote(path, "iso-8859-1"),
            "QUERY_STRING": query,
        }
        fields = io.BytesIO(self._bytes)
        fields.readline()
        return environ | _headers(fields)


def _request_line(head: bytearray) -> re.Match[bytes] | None:
    """The first line; None while it is incomplete."""
    end = head.find(b"\n", 0, _MOST_LINE)
    if end < 0:
        if len(head) > _MOST_LINE:
            raise RefusedRequestError("414 URI Too Long", "the first line is too long")
        return None
    line = _LINE.fullmatch(head, 0, end)
    if line is None:
        raise RefusedRequestError("400 Bad Request", "this is no HTTP request")
    if line[3] != b"1":
        raise RefusedRequestError("505 HTTP Version Not Supported", "HTTP/1.0 or HTTP/1.1")
    return line


def _headers(fields: io.BytesIO) -> dict[str, str]:
    try:
        message = http.client.parse_headers(fields)
    except http.client.HTTPException:
        raise RefusedRequestError(
            "431 Request Header Fields Too Large", "too many headers"
        ) from None
    if message.defects or len(message.get_all("Host", [])) > 1:
        raise RefusedRequestError("400 Bad Request", "headers that are none, or two of Host")
    return {f"HTTP_{name.upper().replace('-', '_')}": text for name, text in message.items()}
