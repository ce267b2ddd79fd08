# SPDX-License-Identifier: Apache-2.0
"""
Programs and processes that could not be observed, and when each is tried again.

A program is identified by the inode of its file and its owner. So not each of its processes needs
a look of its own, and the failures of one user do not affect another.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.sandbox.proc import inode_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scope_ebpf.daemon.looks.owners import Owner

#: Seconds until a refused program is tried again: at first, and at most; doubled each time.
FIRST, MOST = 60.0, 3600.0
#: Seconds after which a VM is tried again that may still be starting.
BEGUN = 1.0
#: Maximum number of refusals that are kept, the latest ones.
_REMEMBERED = 4096


class Program(NamedTuple):
    """The file of a program, and the owner who runs it."""

    device: int
    inode: int
    owner: Owner


class Bad(NamedTuple):
    """A refusal."""

    reason: Exception
    #: When it may be tried again, in seconds of the clock.
    until: float
    #: Seconds from the refusal until then.
    pause: float


def program_at(folder: Path, owner: Owner) -> Program:
    """The program of the process in *folder*. Raises NoSuchProcessError where there is none."""
    try:
        device, inode = inode_of(f"{folder}/exe")
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcessError(f"{folder.name} has ended") from None
    except OSError as error:  # its filesystem has no server any more, or refuses
        raise NoSuchProcessError(f"the program of {folder.name} is not there: {error}") from None
    return Program(device, inode, owner)


class Refused:
    """Refused programs and pids, and when each may be tried again; for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bad: OrderedDict[Program | int, Bad] = OrderedDict()
        self._lock = threading.Lock()

    def add(
        self, what: Program | int, reason: Exception, first: float = FIRST, most: float = MOST
    ) -> Bad:
        """Refuse *what* for *first* seconds, twice as long each time, and *most* at most."""
        # A traceback would keep the frames alive, with the open files of the process.
        reason.__context__ = reason.__cause__ = None
        reason = reason.with_traceback(None)
        with self._lock:
            before = self._bad.pop(what, None)
            pause = min(most, max(first, 2 * before.pause if before else first))
            bad = self._bad[what] = Bad(reason, self._clock() + pause, pause)
            if len(self._bad) > _REMEMBERED:
                self._bad.popitem(last=False)
        return bad

    def find(self, what: Program | int) -> Bad | None:
        """The refusal of *what*; None if it may be tried now."""
        with self._lock:
            bad = self._bad.get(what)
        return bad if bad and self._clock() < bad.until else None

    def clear(self, what: Program | int) -> None:
        """Forget the refusal of *what*: it is observed, or has ended."""
        with self._lock:
            self._bad.pop(what, None)

    def forget(self) -> None:
        """Forget all refusals."""
        with self._lock:
            self._bad.clear()
