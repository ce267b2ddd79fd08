# SPDX-License-Identifier: Apache-2.0
"""
What could not be observed, so that it is tried more and more rarely.

Of a program the file is remembered, by its inode, with who runs it: then not each process of it
costs a look of its own, and another user is not held to what the processes of this one looked like.
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

#: Seconds until what was refused is tried again: at first, and at most; doubled in between.
FIRST, MOST = 60.0, 3600.0
#: Seconds after which a VM is tried again that may only have begun.
BEGUN = 1.0
#: What is remembered, those that were refused last.
_REMEMBERED = 4096


class Program(NamedTuple):
    """A file that an owner runs."""

    device: int
    inode: int
    owner: Owner


class Bad(NamedTuple):
    """Why a program was refused, until when, and for how long."""

    reason: Exception
    until: float
    pause: float


def program_at(folder: Path, owner: Owner) -> Program:
    """The program that the process in *folder* runs; NoSuchProcessError where there is none."""
    try:
        device, inode = inode_of(f"{folder}/exe")
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcessError(f"{folder.name} has ended") from None
    except OSError as error:  # it lies in a filesystem whose server has gone, or refuses
        raise NoSuchProcessError(f"the program of {folder.name} is not there: {error}") from None
    return Program(device, inode, owner)


class Refused:
    """What was refused, a program or a pid, and when each may be tried again; for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bad: OrderedDict[Program | int, Bad] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, what: Program | int, reason: Exception, first: float = FIRST) -> Bad:
        """Remember that it was refused: for *first* seconds, then twice as long each time."""
        # What it was raised in holds the process, and what is open of it.
        reason.__context__ = reason.__cause__ = None
        reason = reason.with_traceback(None)
        with self._lock:
            before = self._bad.pop(what, None)
            pause = min(MOST, max(first, 2 * before.pause if before else first))
            bad = self._bad[what] = Bad(reason, self._clock() + pause, pause)
            if len(self._bad) > _REMEMBERED:
                self._bad.popitem(last=False)
        return bad

    def find(self, what: Program | int) -> Bad | None:
        """What is remembered, if it is not to be tried again yet."""
        with self._lock:
            bad = self._bad.get(what)
        return bad if bad and self._clock() < bad.until else None

    def clear(self, what: Program | int) -> None:
        """It was observed, or has ended."""
        with self._lock:
            self._bad.pop(what, None)

    def forget(self) -> None:
        """Try them all again."""
        with self._lock:
            self._bad.clear()
