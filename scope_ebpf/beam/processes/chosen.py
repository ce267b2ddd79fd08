# SPDX-License-Identifier: Apache-2.0
"""The processes that a user means by a pid, a registered name or a module."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.processes.detail import PID
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: What a process of proc_lib is until it has noted what it runs.
_STARTING = "proc_lib"


class Chosen:
    """
    The processes of one VM that *wanted* names.

    A pid is one process. Any other word is a registered name, and the module of the first function
    of processes or of the callbacks that they run, as Erlang or Elixir write it; what is spawned
    or registered later is found by the next :meth:`look`.
    """

    def __init__(self, target: Target, wanted: str) -> None:
        self._viewer = Viewer(target, IDENTITY)
        self._pid = PID.fullmatch(wanted)
        word = wanted[1:-1] if len(wanted) > 1 and wanted[0] == wanted[-1] == "'" else wanted
        self._words = {word, f"Elixir.{word}"}
        #: Pid terms, in order: those whose module is known, and those of them that are meant.
        self._known = np.empty(0, np.uint64)
        self._of_module = np.empty(0, np.uint64)
        #: CPU seconds of the last look.
        self.seconds = 0.0

    def look(self) -> NDArray[np.uint64]:
        """The pid terms of those that are there, in order."""
        began = time.process_time()
        self._viewer.refresh()
        rows = self._viewer.table.snapshot().rows
        rows = rows[np.argsort(rows["id"])]
        found = self._by_pid(rows) if self._pid else self._by_word(rows)
        self.seconds = time.process_time() - began
        return found

    @property
    def may_grow(self) -> bool:
        """Whether a later look may find others."""
        return self._pid is None

    def keys(self, found: NDArray[np.uint64]) -> set[int]:
        """The keys of processes in ``wanted`` of maps.bpf.h: as term, and as number and serial."""
        numbers, serials = self._viewer.pids.decode(found)
        texts = zip(numbers.tolist(), serials.tolist(), strict=True)
        return {*found.tolist(), *(1 << 63 | serial << 32 | number for number, serial in texts)}

    def _by_pid(self, rows: NDArray[np.void]) -> NDArray[np.uint64]:
        assert self._pid  # noqa: S101 - the caller looks
        texts = self._viewer.pids.texts(rows["id"])
        is_it = np.array([text == f"<{self._pid[1]}>" for text in texts], np.bool_)
        found: NDArray[np.uint64] = rows["id"][is_it]
        return found

    def _by_word(self, rows: NDArray[np.void]) -> NDArray[np.uint64]:
        named = rows[rows["registered"] != 0]
        is_it = [name in self._words for name in self._viewer.names.registered(named)]
        by_name = named["id"][np.array(is_it, np.bool_)]
        self._learn(rows[~within(rows["id"], self._known)])
        self._known = self._known[within(self._known, rows["id"])]
        self._of_module = self._of_module[within(self._of_module, rows["id"])]
        return np.union1d(by_name, self._of_module)

    def _learn(self, rows: NDArray[np.void]) -> None:
        """Note which processes, seen for the first time, are of the module."""
        modules = [
            {one.module, one.initial_call.module if one.initial_call else None}
            for one in self._viewer.names.identities(rows)
        ]
        known = np.array([not of <= {None, _STARTING} for of in modules], np.bool_)
        is_it = np.array([not self._words.isdisjoint(of) for of in modules], np.bool_)
        self._known = np.union1d(self._known, rows["id"][known | is_it])
        self._of_module = np.union1d(self._of_module, rows["id"][is_it])
