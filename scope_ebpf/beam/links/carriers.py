# SPDX-License-Identifier: Apache-2.0
"""
The socket behind a link that a process carries: with TLS, the process that sends has none itself.

Source: OTP-25.2.3 lib/ssl/src/tls_dyn_connection_sup.erl: one supervisor for each connection starts
the sender, which carries the link, and the process that owns the socket. A port whose owner has
the same parent as the carrier, and which is the only one, is the socket. OTP 24 has no such
supervisor, and no socket is found there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.layouts.checks import port_addresses
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import is_pid
from scope_ebpf.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from scope_ebpf.beam.links.ports import Port, PortReader
    from scope_ebpf.beam.processes.table import ProcessTable
    from scope_ebpf.beam.vm.target import Target

#: Slots of the port table that are looked through.
_MOST = 1 << 17


class CarrierPorts:
    """
    Finds the ports of processes that carry links. To be used by one thread.

    *table* has the column ``parent``.
    """

    def __init__(self, target: Target, table: ProcessTable, ports: PortReader) -> None:
        self._target, self._table, self._ports = target, table, ports
        self._terms: dict[int, int] = {}
        self._retries = Retries()

    def of(self, carriers: Collection[int]) -> dict[int, Port]:
        """Find the TCP port of each of these pid terms that has one. Raises ReadRefusedError."""
        self._terms = {pid: term for pid, term in self._terms.items() if pid in carriers}
        if missing := self._retries.due(set(carriers) - self._terms.keys()):
            self._search(missing)
        found = self._ports.read(list(self._terms.values()))
        there = {pid: found.get(term) for pid, term in self._terms.items()}
        self._terms = {pid: self._terms[pid] for pid, port in there.items() if port}
        return {pid: port for pid, port in there.items() if port and port.socket is not None}

    def _search(self, carriers: set[int]) -> None:
        """Look through all ports for those of *carriers*."""
        parents = self._parents(np.array(sorted(carriers), np.uint64))
        owned = self._owned()
        owners = self._parents(np.array(sorted(owned), np.uint64))
        below: dict[int, list[int]] = {}
        for owner, parent in owners.items():
            below.setdefault(parent, []).extend(owned[owner])
        for pid, parent in parents.items():
            if len(terms := below.get(parent, [])) == 1:
                self._terms[pid] = terms[0]

    def _owned(self) -> dict[int, list[int]]:
        """Terms of all TCP ports by the pid terms of their owners."""
        target, layout = self._target, self._target.layout
        addresses = port_addresses(target, _MOST)
        raw, read = target.memory.gather(addresses, layout.size("Port"))
        rows = raw[read]
        rows = rows[self._ports.are_tcp(rows)]
        terms, owners = (
            column(rows, layout.offset("Port", name), np.uint64).tolist()
            for name in ("common.id", "connected")
        )
        found: dict[int, list[int]] = {}
        for term, owner in zip(terms, owners, strict=True):
            found.setdefault(owner, []).append(term)
        return found

    def _parents(self, pids: NDArray[np.uint64]) -> dict[int, int]:
        """Pid term of the parent of each process that is there and has one."""
        rows = self._table.at(self._table.slots_of(pids)).rows
        rows = rows[np.isin(rows["id"], pids)]
        found = zip(rows["id"].tolist(), rows["parent"].tolist(), strict=True)
        return {pid: parent for pid, parent in found if is_pid(parent)}
