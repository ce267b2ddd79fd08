# SPDX-License-Identifier: Apache-2.0
"""Threads of the daemon for what its loop must not wait for, such as memory of a VM that hangs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar, Protocol

from scope_ebpf.errors import ScopeError

if TYPE_CHECKING:
    from collections import Counter

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.looks.owners import Owner


class Observed(Protocol):
    """A target that a thread reads: a ``watch.Watch``."""

    @property
    def target(self) -> Target:
        """The VM."""

    @property
    def owner(self) -> Owner:
        """Whose process it is."""

    @property
    def income(self) -> float:
        """Seconds of CPU a second that observing it may cost."""

    def fail(self, error: ScopeError) -> None:
        """Take why the target must be dropped."""


def reason(error: Exception, errors: Counter[str]) -> str:
    """Why a target could not be read; an unexpected error is counted in *errors*."""
    if isinstance(error, ScopeError):
        return str(error)
    errors["snapshot"] += 1
    return repr(error)


class ReadingThread:
    """
    A thread that reads targets from :meth:`start` to :meth:`close`.

    A subclass has its ``NAME``, and ``_run``, which returns soon once ``_ended`` is set.
    """

    __slots__ = ("_ended", "_thread")
    NAME: ClassVar[str]

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=self.NAME, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end with what it reads now, or its pause; for any thread."""
        self._ended.set()

    def close(self) -> None:
        """End the thread; it ends at once where no memory is read any more."""
        self.stop()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError
