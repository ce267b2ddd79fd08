# SPDX-License-Identifier: Apache-2.0
"""Rows that breakpoints have left in the ring, read as calls and returns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.beam.code.captured_words import ShapeFormatter
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.beam.processes.labels import Labels
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.results.calls import Call, Return

if TYPE_CHECKING:
    import numpy as np

    from scope_ebpf.beam.code.follow import Version
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Arguments whose terms the kernel side keeps.
_ARGUMENTS = 8


class CallReader:
    """Names the processes, arguments and callers of *target*, and counts where calls return to."""

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._code = CodeMap(target, atoms)
        self._labels = Labels(target, atoms, self._code)
        self._pids = PidCodec.of(target)
        self._shaper = ShapeFormatter(target, atoms)
        self._exit = _normal_exit(target)
        #: Function and line of each address that calls return to.
        self._callers: dict[int, tuple[str, str]] = {}
        #: Calls by the address that they return to.
        self._returns: Counter[int] = Counter()

    def refresh(self) -> None:
        """Read the code that was loaded since."""
        self._code.refresh()
        self._callers.clear()

    def returned_to(self, most: int) -> list[int]:
        """The addresses that most calls return to, *most* at most."""
        return [address for address, _ in self._returns.most_common(most)]

    def who(self, rows: np.ndarray[tuple[int], np.dtype[np.void]]) -> dict[int, str | None]:
        """Names of the processes in *rows*, by pid term; those that cannot be read are left out."""
        try:
            labels = self._labels.labels(set(rows["process"].tolist()))
        except (ReadRefusedError, NoSuchProcessError):
            return {}
        return {pid: label.who for pid, label in labels.items()}

    def read(self, row: np.void, version: Version, who: dict[int, str | None]) -> Call | Return:
        """*row*, an ``events.CALL`` of *version*, with the names *who*."""
        pid = int(row["process"])
        head = (int(row["time_ns"]), self._pids.text(pid) if pid else "?", who.get(pid))
        name = (str(version.function), version.number)
        if row["since_ns"]:
            return Return(*head, *name, int(row["time_ns"]) - int(row["since_ns"]))
        address = int(row["caller"])
        self._returns[address] += 1
        arity = int(row["arity"])
        shapes = self._shaper.shapes(
            row["x"].tolist()[:arity], row["captures"].reshape(-1, events.CAPTURE_WORDS)
        ) + ["..."] * (arity > _ARGUMENTS)
        return Call(*head, *name, tuple(shapes), *self._caller(address), int(row["tid"]))

    def _caller(self, address: int) -> tuple[str, str]:
        """The function that a call returns to, and its line."""
        if address not in self._callers:
            mfa = self._code.location(address)
            if mfa is not None:
                self._callers[address] = str(mfa), mfa.location
            else:
                start = address == self._exit
                self._callers[address] = ("(start of the process)" if start else "(the VM)", "")
        return self._callers[address]


def _normal_exit(target: Target) -> int:
    """The address that the first function of a process returns to; 0 if the VM hides it."""
    try:
        return target.memory.u64(target.address("beam_normal_exit"))
    except ReadRefusedError:
        return 0
