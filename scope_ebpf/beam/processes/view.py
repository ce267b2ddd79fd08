# SPDX-License-Identifier: Apache-2.0
"""Rows of the process table as people and JSON readers get them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scope_ebpf.arrays import grouped
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.layouts.checks import check_rare_data
from scope_ebpf.beam.memory.terms import PID_TAG, PidCodec
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.blocks import Blocks
from scope_ebpf.beam.processes.names import Names
from scope_ebpf.beam.processes.shapes import TermReader
from scope_ebpf.beam.processes.sizes import LIMIT, Sizes, memory_bytes
from scope_ebpf.beam.processes.table import (
    ALL,
    ProcessTable,
    Snapshot,
    base_bytes,
    binary_bytes,
    statuses,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.table import Field
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.processes import ProcessRow, TopHead

#: Where ``proc_lib:set_label/1`` (OTP 27) and ``Process.set_label/1`` of Elixir keep a label.
LABEL = "$process_label"


class Viewer:
    """
    Everything that is needed to show processes of one VM.

    A row's keys are the contract of ``top --format json``. A memory that is an
    estimate (a mailbox too long to walk, a process that runs or ended meanwhile)
    has ``memory_estimated`` besides.
    """

    def __init__(self, target: Target, fields: Sequence[Field] = ALL) -> None:
        self.target = target
        self.atoms = Atoms(target)
        self.code = CodeMap(target, self.atoms)
        self.names = Names(target, self.atoms, self.code)
        self.terms = TermReader(target, self.atoms)
        self.table = ProcessTable(target, fields)
        self.pids = PidCodec.of(target)
        self._blocks = Blocks(target)

    def refresh(self) -> None:
        """Take in code that was loaded since."""
        self.code.refresh()

    def sizes(self, rows: NDArray[np.void], limit: int = LIMIT) -> Sizes:
        """
        Return the memory of each row, as it is shown and as it is sorted by.

        *limit* bounds what is walked of one mailbox. The size of what is gone, or has moved on,
        is given as that of its heaps, which is the least that it can be.
        """
        found = memory_bytes(self.target, rows, limit, self._blocks)
        _, calm = self.table.still(rows)
        exact = found.exact & calm & ((rows["psd"] == 0) | self._fits_rare_data)
        return Sizes(np.where(calm, found.bytes, self.heaps(rows)), exact, found.mailboxes)

    @cached_property
    def _fits_rare_data(self) -> bool:
        """Whether the size of what few processes have is known."""
        try:
            check_rare_data(self.target)
        except ReadRefusedError:
            return False
        return True

    def heaps(self, rows: NDArray[np.void]) -> NDArray[np.uint64]:
        """Return the bytes of struct and heaps of each row, which need the columns LOAD alone."""
        return base_bytes(rows, self.target.layout.size("Process"))

    def describe(
        self, rows: NDArray[np.void], limit: int = LIMIT, sizes: Sizes | None = None
    ) -> list[ProcessRow]:
        """Describe each row; *sizes* are those of :meth:`sizes`, where they are known already."""
        names = self.names.registered(rows)
        identities = self.names.identities(rows)
        current = self.names.current_functions(rows)
        memory, exact, _ = sizes or self.sizes(rows, limit)
        labels = self.labels(rows)
        there, _ = self.table.still(rows)
        for index in np.flatnonzero(~there).tolist():
            # Behind its pointers may be another process's names by now.
            row = rows[index : index + 1].copy()
            row["dictionary"] = 0
            names[index], labels[index] = None, None
            identities[index] = self.names.identities(row)[0]
        texts: dict[Mfa | None, str | None] = {
            mfa: str(mfa) if mfa else None
            for mfa in {*current, *(i.initial_call for i in identities)}
        }
        columns: dict[str, list[Any]] = {
            "pid": self.pids.texts(rows["id"]),
            "name": [*names],
            "initial_call": [texts[identity.initial_call] for identity in identities],
            "behaviour": [identity.behaviour for identity in identities],
            "module": [identity.module for identity in identities],
            "label": [*labels],
            "status": [*statuses(rows["state"])],
            "current_function": [texts[mfa] for mfa in current],
            "reductions": rows["reductions"].tolist(),
            "message_queue_len": rows["mailbox"].tolist(),
            "memory_bytes": memory.tolist(),
            "heap_words": rows["heap_words"].tolist(),
            "stack_words": rows["stack_words"].tolist(),
            "binary_bytes": binary_bytes(rows).tolist(),
            "minor_gcs": rows["minor_gcs"].tolist(),
            "parent": self._pids(rows["parent"]),
            "group_leader": self._pids(rows["group_leader"]),
        }
        described = [
            cast("ProcessRow", dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        ]
        for index in np.flatnonzero(~exact).tolist():
            described[index]["memory_estimated"] = True
        return described

    def labels(self, rows: NDArray[np.void]) -> list[str | None]:
        """Read what ``proc_lib:set_label/1`` set (OTP 27), as text."""
        terms = self.names.dictionary(rows, LABEL)
        return [self.terms.text(term) if term else None for term in terms.tolist()]

    def _pids(self, terms: NDArray[np.uint64]) -> list[Any]:
        """Write pids; None for ``undefined`` and for processes of other nodes."""
        unique, _, inverse = grouped(terms)
        texts = np.array(self.pids.texts(unique), object)
        texts[unique & np.uint64(0xF) != PID_TAG] = None
        written: list[Any] = texts[inverse].tolist()
        return written


def document(target: Target, snapshot: Snapshot) -> TopHead:
    """Make the document of ``top --once --format json``, but for the processes."""
    return {
        "schema": 1,
        "target": target.as_json(),
        "processes_total": snapshot.total,
        "read": len(snapshot),
        "torn": snapshot.torn + snapshot.unreadable,
        "seconds": round(snapshot.seconds, 3),
    }
