# SPDX-License-Identifier: Apache-2.0
"""Files that were refused, so that they are not tried again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.errors import RefusedFileError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

#: A file as it was parsed: device, inode, size, mtime, which its owner can set, and ctime, ns.
Key = tuple[int, int, int, int, int]


def key_of(status: os.stat_result) -> Key:
    """The key of a file."""
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


class Refusals:
    """Remembers the last *most* refused files, for *seconds*."""

    def __init__(
        self,
        seconds: float = 3600.0,
        most: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        #: Until when, and why; the oldest first.
        self._known: dict[Key, tuple[float, str]] = {}

    def add(self, key: Key, error: RefusedFileError) -> None:
        """Remember that a file was refused, if that is the file's fault."""
        if error.lasting:
            self._known.pop(key, None)
            self._known[key] = self._clock() + self._seconds, str(error)
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]

    def check(self, key: Key) -> None:
        """Raise RefusedFileError, with the reason from then, for a file that was refused."""
        until, reason = self._known.get(key, (0.0, ""))
        if reason and self._clock() < until:
            raise RefusedFileError(reason)
        self._known.pop(key, None)
