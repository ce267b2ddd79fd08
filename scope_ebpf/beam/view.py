# SPDX-License-Identifier: Apache-2.0
"""Rows of the process table as people and JSON readers get them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.atoms import Atoms
from scope_ebpf.beam.code import CodeMap
from scope_ebpf.beam.names import Names
from scope_ebpf.beam.processes import ALL, ProcessTable, Snapshot, statuses
from scope_ebpf.beam.shapes import TermReader
from scope_ebpf.beam.sizes import LIMIT, memory_bytes
from scope_ebpf.beam.terms import PidCodec, is_pid

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.code import Mfa
    from scope_ebpf.beam.discover import Target
    from scope_ebpf.beam.processes import Field


class Viewer:
    """
    Everything that is needed to show processes of one VM.

    A row's keys are the contract of ``top --format json``. A memory that is an
    estimate (a mailbox too long to walk) has ``memory_estimated`` besides.
    """

    def __init__(self, target: Target, fields: Sequence[Field] = ALL) -> None:
        self.target = target
        self.atoms = Atoms(target)
        self.code = CodeMap(target, self.atoms)
        self.names = Names(target, self.atoms, self.code)
        self.terms = TermReader(target, self.atoms)
        self.table = ProcessTable(target, fields)
        self.pids = PidCodec.of(target)

    def refresh(self) -> None:
        """Take in code that was loaded since."""
        self.code.refresh()

    def describe(self, rows: NDArray[np.void], limit: int = LIMIT) -> list[dict[str, Any]]:
        """Describe each row; *limit* bounds what is walked of one mailbox."""
        names = self.names.registered(rows)
        identities = self.names.identities(rows)
        current = self.names.current_functions(rows)
        sizes = memory_bytes(self.target, rows, limit)
        labels = self.labels(rows)
        states = statuses(rows["state"])
        pids = self.pids.texts(rows["id"])
        parents, leaders = self._pids(rows["parent"]), self._pids(rows["group_leader"])
        described = []
        for place, row in enumerate(rows):
            call, behaviour, module = identities[place]
            described.append(
                {
                    "pid": pids[place],
                    "name": names[place],
                    "initial_call": _text(call),
                    "behaviour": behaviour,
                    "module": module,
                    "label": labels[place],
                    "status": states[place],
                    "current_function": _text(current[place]),
                    "reductions": int(row["reductions"]),
                    "message_queue_len": int(row["mailbox"]),
                    "memory_bytes": int(sizes.bytes[place]),
                    "heap_words": int(row["heap_words"]),
                    "stack_words": int(row["stack_words"]),
                    "minor_gcs": int(row["minor_gcs"]),
                    "parent": parents[place],
                    "group_leader": leaders[place],
                    **({} if sizes.exact[place] else {"memory_estimated": True}),
                }
            )
        return described

    def labels(self, rows: NDArray[np.void]) -> list[str | None]:
        """Read what ``proc_lib:set_label/1`` set (OTP 27), as text."""
        terms = self.names.dictionary(rows, "$process_label")
        return [self.terms.text(term) if term else None for term in terms.tolist()]

    def _pids(self, terms: NDArray[np.uint64]) -> list[str | None]:
        """Write pids; None for ``undefined`` and for processes of other nodes."""
        texts = self.pids.texts(terms)
        return [
            text if is_pid(term) else None for text, term in zip(texts, terms.tolist(), strict=True)
        ]


def document(target: Target, snapshot: Snapshot, processes: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the document of ``top --once --format json``."""
    return {
        "schema": 1,
        "target": target.as_json(),
        "processes_total": snapshot.total,
        "read": len(snapshot),
        "torn": snapshot.torn + snapshot.unreadable,
        "seconds": round(snapshot.seconds, 3),
        "processes": processes,
    }


def _text(mfa: Mfa | None) -> str | None:
    return str(mfa) if mfa is not None else None
