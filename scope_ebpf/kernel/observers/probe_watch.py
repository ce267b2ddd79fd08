# SPDX-License-Identifier: Apache-2.0
"""Calls of functions, watched by an interpreter's own probes (``interpreted.bpf.c``)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Self

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.bpf.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from scope_ebpf.kernel.observers.session import Session


class ProbeWatch:
    """
    Watches the functions that the probes call *texts*, four at most, by the hooks of *session*.

    A context manager; :meth:`open` lets calls count, until there were *limit*.
    """

    def __init__(self, session: Session, texts: Sequence[bytes], limit: int) -> None:
        self._session = session
        self._texts = texts
        self._limit = limit
        self._cpus = check(library().libbpf_num_possible_cpus(), "cannot count the CPUs")

    def __enter__(self) -> Self:
        self._session.__enter__()
        try:
            self._refuse_failures()
            self._update("call_state", np.uint32(events.PROBED_STATE_LIMIT), np.uint64(self._limit))
            for number, text in enumerate(self._texts):
                key = np.frombuffer(text.ljust(events.FUNCTION_TEXT_BYTES, b"\0"), np.uint8)
                self._update("call_texts", key, np.uint32(number))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_failures(self) -> None:
        """A count of only some of the sites would be wrong."""
        if self._session.failures:
            raise NothingToAttachError(self._session.failures[0].reason)

    def open(self, *, on: bool) -> None:
        """Let calls count from now on, or no longer."""
        self._session.count(on=on)

    def batch(self) -> AbstractContextManager[NDArray[np.void]]:
        """
        What came since the last time, shape ``(n,)`` of ``events.RECORD``.

        ``kind`` is the place of the function's text, ``class`` 1 for a return.
        """
        return self._session.ring.batch()

    def taken(self) -> int:
        """Calls that were counted so far, of all functions."""
        taken = np.zeros(1, np.uint64)
        self._lookup("call_state", events.PROBED_STATE_CALLS, taken)
        return int(taken[0])

    def totals(self) -> list[dict[str, int]]:
        """
        What was counted of each text, by the names of CALL_TOTALS; the last is of all others.

        ``strange`` are returns that found no room in the ring.
        """
        names = events.CALL_TOTALS.names or ()
        found = []
        for number in (*range(len(self._texts)), events.MAX_PROBED_FUNCTIONS):
            rows = np.zeros(self._cpus, events.CALL_TOTALS)
            self._lookup("call_totals", number, rows)
            found.append({name: int(rows[name].sum()) for name in names})
        return found

    def detach(self) -> None:
        """Take the probes out; what was counted can still be read."""
        self._session.detach()

    def close(self) -> None:
        """Take the probes out and give everything back to the kernel."""
        self._session.close()

    def _lookup(self, name: str, number: int, room: NDArray[np.generic]) -> None:
        key = ctypes.c_uint32(number)
        fd = self._session.map_fd(name)
        done = library().bpf_map_lookup_elem(fd, ctypes.byref(key), room.ctypes.data)
        check(done, f"cannot read the map {name}")

    def _update(
        self, name: str, key: np.uint32 | NDArray[np.uint8], value: np.uint32 | np.uint64
    ) -> None:
        fd = self._session.map_fd(name)
        done = library().bpf_map_update_elem(fd, key.tobytes(), value.tobytes(), 0)
        check(done, f"cannot write the map {name}")
