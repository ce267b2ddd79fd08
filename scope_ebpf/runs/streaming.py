# SPDX-License-Identifier: Apache-2.0
"""Streams of events with the names of one VM."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

from scope_ebpf.beam.memory.terms import PID_TAG
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.term_text import TermText
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError, ScopeError
from scope_ebpf.sinks.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.sinks.stream import Style

#: Processes that are looked up for one batch of lines: a storm of spawns must not stop the reader.
_LOOKUPS = 64


class LazyStream:
    """
    A line for each event of *target*, in the style *form*.

    The stream is made by :meth:`ready`, which may be called when there is time for it, or at the
    first line. *wanted* are the events.
    """

    def __init__(
        self, target: Target, output: TextIO, wanted: Collection[str], form: Style
    ) -> None:
        self._target, self._output = target, output
        self._wanted, self._form = wanted, form

    @cached_property
    def _stream(self) -> Stream:
        target, called = self._target, None
        if {"long_call", "mark_callback", "mark_function"} & {*self._wanted}:
            from scope_ebpf.beam.code.tables import CodeMap
            from scope_ebpf.beam.processes.called import CalledNames

            with contextlib.suppress(ReadRefusedError):
                atoms = Atoms(target)
                called = CalledNames(target, atoms, CodeMap(target, atoms))
        terms = TermText(target)
        return Stream(self._output, terms, self._form, names_of(target), called=called)

    def ready(self) -> None:
        """Make the stream, unless it is made."""
        _ = self._stream

    def write(self, records: NDArray[np.void]) -> None:
        """See ``Stream.write``."""
        self._stream.write(records)


def names_of(target: Target) -> Callable[[list[int]], dict[int, str | None]] | None:
    """
    A function that names processes, given as terms; None if the VM's tables cannot be read.

    It looks up 64 new processes at a call, and gives no names once the target has ended.
    """
    from scope_ebpf.beam.code.tables import CodeMap
    from scope_ebpf.beam.processes.labels import Labels

    try:
        atoms = Atoms(target)
        labels = Labels(target, atoms, CodeMap(target, atoms))
        # The label of the first process: the tables that names come from are read with it.
        labels.label(PID_TAG)
    except (ReadRefusedError, NoSuchProcessError):
        return None

    def who(pids: list[int]) -> dict[int, str | None]:
        with contextlib.suppress(ScopeError):
            return {pid: label.who for pid, label in labels.labels(pids, _LOOKUPS).items()}
        return {}

    return who
