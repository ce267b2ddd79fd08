# SPDX-License-Identifier: Apache-2.0
"""
The debug file of a build, from a debuginfod server: one request by build id.

A server is a stranger: bytes, time and redirections are bounded here, and what it sends is a file
that the confined parser reads and compares with the build id (``learn.of_debug_file``). Nothing of
it is kept but the places of functions.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from http.client import HTTPException
from typing import IO, TYPE_CHECKING
from urllib.request import HTTPRedirectHandler, Request, build_opener

from scope_ebpf.sandbox.files import MAX_DEBUG_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPMessage, HTTPResponse

#: Seconds without a byte from a server, and for a whole file with all redirections; bytes in one
#: piece.
TIMEOUT, SECONDS, _BLOCK = 30.0, 600.0, 1 << 16
_SCHEMES = ("http://", "https://")


class _LateError(Exception):
    """The time for a whole file is over. No OSError: sockets would go on with the next address."""


class _Redirections(HTTPRedirectHandler):
    """Follows to servers of http and https alone, and reads nothing of what redirects."""

    def redirect_request(  # noqa: PLR0917 - the library's
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _check_scheme(newurl)
        fp.close()  # else all of it is read, however much it is
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(server: str, build_id: str, most: int = MAX_DEBUG_FILE, seconds: float = SECONDS) -> int:
    """
    Get the debug file of *build_id* into memory; a descriptor of it, which becomes the caller's.

    Only in the main thread. OSError for a server that fails, ValueError for what is no such file or
    exceeds a limit.
    """
    url = f"{server.rstrip('/')}/buildid/{build_id}/debuginfo"
    _check_scheme(url)
    request = Request(url, headers={"User-Agent": "scope-ebpf"})  # noqa: S310 - checked above
    fd = os.memfd_create("debuginfo", os.MFD_CLOEXEC)
    try:
        with (
            _deadline(seconds),
            build_opener(_Redirections).open(request, timeout=TIMEOUT) as response,
        ):
            _store(response, fd, most)
    except _LateError:
        os.close(fd)
        raise ValueError("it takes too long") from None
    except HTTPException as error:
        os.close(fd)
        raise ValueError(f"it does not answer as a server of HTTP: {error!r:.100}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise _LateError in the block after so many seconds, whatever the server sends meanwhile."""

    def late(*_: object) -> None:
        raise _LateError

    handler = signal.signal(signal.SIGALRM, late)
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _check_scheme(url: str) -> None:
    if not url.startswith(_SCHEMES):
        raise ValueError("it is no URL of http or https")


def _store(response: HTTPResponse, fd: int, most: int) -> None:
    """Write the body to *fd*. ValueError if it is too large or shorter than it says."""
    announced = int(response.headers.get("Content-Length") or 0)
    size = 0
    while announced <= most and size <= most and (block := response.read1(_BLOCK)):
        size += len(block)
        with open(fd, "ab", closefd=False) as file:
            file.write(block)
    if max(size, announced) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    if size < announced:
        raise ValueError(f"it ends after {size:,} of {announced:,} bytes")
