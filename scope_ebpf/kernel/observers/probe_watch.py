# SPDX-License-Identifier: Apache-2.0
"""Calls of functions, watched by an interpreter's own probes (``interpreted.bpf.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from scope_ebpf.kernel.bpf.maps import Map
    from scope_ebpf.kernel.observers.session import Session

#: A function's text, padded with zeroes (struct text).
_TEXT = np.dtype(f"S{events.FUNCTION_TEXT_BYTES}")


class ProbeWatch(Closing):
    """
    Watches the functions that the probes call *texts*, four at most, by the hooks of *session*.

    A context manager; calls count from :meth:`open` on, *limit* at most. NothingToAttachError if
    a hook of the session could not be attached.
    """

    def __init__(self, session: Session, texts: Sequence[bytes], limit: int) -> None:
        self._session = session
        self._texts = texts
        self._limit = limit

    def _open(self) -> None:
        self._session.__enter__()
        self._refuse_failures()
        self._state[events.PROBED_STATE_LIMIT] = self._limit
        numbers = self._session.map("call_texts", _TEXT, U32)
        for number, text in enumerate(self._texts):
            numbers[text] = number

    def _refuse_failures(self) -> None:
        """A count of only some of the sites would be wrong."""
        if self._session.failures:
            raise NothingToAttachError(self._session.failures[0].reason)

    @property
    def _state(self) -> Map:
        return self._session.map("call_state", U32, U64)

    def open(self, *, on: bool) -> None:
        """Count calls from now on, or no longer."""
        self._session.count(on=on)

    def batch(self) -> AbstractContextManager[NDArray[np.void]]:
        """
        The new records, shape ``(n,)`` of ``events.RECORD``.

        ``kind`` is the index of the function's text, ``class`` 1 for a return.
        """
        return self._session.ring.batch()

    def taken(self) -> int:
        """Number of calls counted so far, of all functions."""
        return int(self._state[events.PROBED_STATE_CALLS])

    def totals(self) -> list[dict[str, int]]:
        """
        The counts of each text, by the names of CALL_TOTALS; the last is of all others.

        ``strange`` are returns that found no room in the ring.
        """
        names = events.CALL_TOTALS.names or ()
        rows = self._session.map("call_totals", U32, events.CALL_TOTALS).at(
            (*range(len(self._texts)), events.MAX_PROBED_FUNCTIONS)
        )
        return [{name: int(row[name].sum()) for name in names} for row in rows]

    def detach(self) -> None:
        """Remove the probes; the counts can still be read."""
        self._session.detach()

    def close(self) -> None:
        """Remove the probes and give everything back to the kernel."""
        self._session.close()
