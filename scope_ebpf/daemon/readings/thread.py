# SPDX-License-Identifier: Apache-2.0
"""Threads of the daemon for what its loop must not wait for, such as memory of a VM that hangs."""

from __future__ import annotations

import threading
from typing import ClassVar


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
