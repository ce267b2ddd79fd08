# SPDX-License-Identifier: Apache-2.0
"""
The links of a VM: the entry of each peer, and the port or process that carries its bytes.

Sources: OTP-25.2.3 and OTP-27.3.4.1 erts/emulator/beam/erl_node_tables.h (struct dist_entry_) and
dist.c (which list holds an entry in which state). An entry may change its list while the lists
are read; it counts once, as it was seen first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.beam.links.ports import PortReader
from scope_ebpf.beam.memory.terms import is_pid, is_port
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.vm.connections import (
    BUSY,
    CLOSING,
    CONNECTED,
    MOST,
    PENDING,
    TYPES,
    Connections,
    EntryLists,
    waiters,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.links.ports import Port
    from scope_ebpf.beam.vm.target import Target

_FIELDS = ("creation", "cid", "connection_id", "in", "out")
#: Names of the states that are shown; an entry in another state has no connection.
STATES = {PENDING: "pending", CONNECTED: "connected", CLOSING: "closing"}


@dataclass(frozen=True, slots=True)
class Link:
    """One link at one moment."""

    #: Where its entry lies, and the number of this connection: together they are one connection.
    entry: int
    connection: int
    #: Name of the other node, and its incarnation; 0 while that is not known.
    peer: str
    creation: int
    #: One of STATES.
    state: str
    #: ``visible`` or ``hidden``; None until it is connected.
    kind: str | None
    busy: bool
    #: Bytes that wait in the VM, those of senders with ``async_dist`` included.
    queued: int
    #: Packets that were taken from and given to the carrier; ticks count among the former.
    packets_in: int
    packets_out: int
    #: The port that carries it; None where a process does, or nothing yet.
    port: Port | None
    #: The pid term of the process that carries it.
    process: int | None
    #: Pid terms of the senders that wait for it; None where they could not be read.
    suspended: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class LinksReading:
    """All links of a VM at one moment, and why parts of them are missing."""

    links: tuple[Link, ...]
    refused: dict[str, str]

    @property
    def connections(self) -> Connections:
        """The same summed up; a link that is closing is none."""
        there = [one for one in self.links if one.state != STATES[CLOSING]]
        pending = sum(one.state == STATES[PENDING] for one in there)
        kinds = [one.kind for one in there if one.state == STATES[CONNECTED]]
        return Connections(
            tuple(kinds.count(kind) for kind in TYPES),
            sum(one.queued for one in there),
            sum(one.busy for one in there),
            pending,
        )


class LinkReader:
    """Reads the links of one VM. ReadRefusedError where the lists of connections are hidden."""

    def __init__(self, target: Target, atoms: Atoms | None = None) -> None:
        self._memory = target.memory
        self._atoms = atoms or Atoms(target)
        self._lists = EntryLists(target, _FIELDS)
        self._ports, self._no_ports = _port_reader(target)

    def read(self) -> LinksReading:
        """Follow the lists, then read the ports. Raises ReadRefusedError."""
        entries: dict[int, tuple[str | None, dict[str, int]]] = {}
        for head, kind in zip(self._lists.heads, (*TYPES, None), strict=True):
            for entry, value in self._lists.follow(head):
                if value["state"] in STATES:
                    entries.setdefault(entry, (kind, value))
            if len(entries) > MOST:
                raise ReadRefusedError(f"there are more than {MOST} links")
        refused = {"ports": self._no_ports} if self._no_ports else {}
        ports = self._read_ports([value["cid"] for _, value in entries.values()], refused)
        names = self._atoms.texts([value["sysname"] >> 6 for _, value in entries.values()])
        left, links = MOST, []
        for entry, (kind, value) in entries.items():
            suspended = self._suspended(value["suspended"], left, refused)
            left -= len(suspended or ())
            peer = names.get(value["sysname"] >> 6) or f"atom {value['sysname'] >> 6}"
            port = ports.get(value["cid"])
            links.append(_link((entry, kind, peer), value, port, suspended))
        return LinksReading(tuple(links), refused)

    def _read_ports(self, carriers: list[int], refused: dict[str, str]) -> dict[int, Port]:
        if self._ports is None:
            return {}
        try:
            return self._ports.read([one for one in carriers if is_port(one)])
        except ReadRefusedError as error:
            refused["ports"] = str(error)
            return {}

    def _suspended(self, ring: int, left: int, refused: dict[str, str]) -> tuple[int, ...] | None:
        try:
            return tuple(pid for pid in waiters(self._memory, ring, left) if is_pid(pid))
        except ReadRefusedError as error:
            refused["suspended"] = str(error)
            return None


def _port_reader(target: Target) -> tuple[PortReader | None, str]:
    """Make the reader of ports, or say why there is none."""
    try:
        return PortReader(target), ""
    except ReadRefusedError as error:
        return None, str(error)


def _link(
    who: tuple[int, str | None, str],
    value: dict[str, int],
    port: Port | None,
    suspended: tuple[int, ...] | None,
) -> Link:
    """Make a link of *who*, which is address, kind and name, and of its fields."""
    entry, kind, peer = who
    return Link(
        entry=entry,
        connection=value["connection_id"],
        peer=peer,
        creation=value["creation"],
        state=STATES[value["state"]],
        kind=kind,
        busy=bool(value["qflgs"] & BUSY),
        queued=value["queued"],
        packets_in=value["in"],
        packets_out=value["out"],
        port=port,
        process=value["cid"] if is_pid(value["cid"]) else None,
        suspended=suspended,
    )
