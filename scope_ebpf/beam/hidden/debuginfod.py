# SPDX-License-Identifier: Apache-2.0
"""
The debug file of a build, from a debuginfod server: one request by build id.

A server is a stranger: bytes, time and redirections are bounded here, and what it sends is a file
that the confined parser reads and compares with the build id (``learn.of_debug_file``). Nothing of
it is kept but the places of functions.
"""

from __future__ import annotations

import os
import time
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

from scope_ebpf.sandbox.files import MAX_DEBUG_FILE

if TYPE_CHECKING:
    from http.client import HTTPResponse

#: Seconds without a byte from a server, and for a whole file; bytes in one piece.
TIMEOUT, SECONDS, _BLOCK = 30.0, 600.0, 1 << 16
_SCHEMES = ("http://", "https://")


def fetch(server: str, build_id: str, most: int = MAX_DEBUG_FILE, seconds: float = SECONDS) -> int:
    """
    Get the debug file of *build_id* into memory; a descriptor of it, which becomes the caller's.

    OSError for a server that fails, ValueError for what is no such file or exceeds a limit.
    """
    url = f"{server.rstrip('/')}/buildid/{build_id}/debuginfo"
    _check_scheme(url)
    request = Request(url, headers={"User-Agent": "scope-ebpf"})  # noqa: S310 - checked above
    fd = os.memfd_create("debuginfo", os.MFD_CLOEXEC)
    try:
        with urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            _check_scheme(response.geturl())  # where it was redirected to
            _store(response, fd, most, time.monotonic() + seconds)
    except HTTPException as error:
        os.close(fd)
        raise ValueError(f"it does not answer as a server of HTTP: {error!r:.100}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_scheme(url: str) -> None:
    if not url.startswith(_SCHEMES):
        raise ValueError("it is no URL of http or https")


def _store(response: HTTPResponse, fd: int, most: int, deadline: float) -> None:
    """Write the body to *fd*. ValueError if it is too large, too slow, or shorter than it says."""
    announced = int(response.headers.get("Content-Length") or 0)
    size = 0
    # read1 returns what has come: a server that sends byte after byte meets the deadline.
    while announced <= most and size <= most and (block := response.read1(_BLOCK)):
        size += len(block)
        if time.monotonic() > deadline:
            raise ValueError("it takes too long")
        with open(fd, "ab", closefd=False) as file:
            file.write(block)
    if max(size, announced) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    if size < announced:
        raise ValueError(f"it ends after {size:,} of {announced:,} bytes")
