# SPDX-License-Identifier: Apache-2.0
"""Looks at the links of a VM: rates between two of them, and since when something is so."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.links.carriers import CarrierPorts
from scope_ebpf.beam.links.entries import LinkReader
from scope_ebpf.beam.links.ticks import TickReader
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.links import MOST_NAMED, Links, Pair, Row, Sender
from scope_ebpf.sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from scope_ebpf.beam.links.entries import Link
    from scope_ebpf.beam.links.ticks import Ticks
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.sockets import TcpSocket

#: One connection: where its entry lies, and its number.
_Key = tuple[int, int]
#: Senders that are named in one look.
_MOST_SENDERS = 1000
#: Modules of the processes that carry a link by TLS (lib/ssl, OTP-25.2.3 to OTP-29.1.1).
_TLS = ("tls_sender", "tls_client_connection", "tls_server_connection", "ssl_gen_statem")


@dataclass(frozen=True, slots=True)
class _Process:
    """What a process is called, and the function that it began with; None where not read."""

    name: str | None
    initial: str | None


_Processes = dict[int, _Process]


class Looking:
    """Looks at the links of one VM, again and again. To be used by one thread."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer, target = viewer, viewer.target
        self._reader = LinkReader(target, viewer.atoms)
        ports = self._reader.ports
        self._carriers = CarrierPorts(target, viewer.table, ports) if ports else None
        self._ticks = TickReader(target.memory, viewer.table, viewer.atoms)
        self._sockets = Sockets(target.pid, target.identity.check)
        self._before: dict[_Key, Link] = {}
        self._taken: float | None = None
        #: When a link was seen full first, and a process waiting for a link.
        self._full: dict[_Key, float] = {}
        self._waiting: dict[tuple[_Key, int], float] = {}
        #: Packets that came in, and when they changed last.
        self._heard: dict[_Key, tuple[int, float]] = {}

    def close(self) -> None:
        """Release what is open."""
        self._sockets.close()

    def look(self) -> Links:
        """Look once more. Raises ReadRefusedError, and errors of a target that ended."""
        began, now = cpu_seconds(), time.monotonic()
        reading = self._reader.read()
        refused = dict(reading.refused)
        links = {(one.entry, one.connection): one for one in self._carried(reading.links, refused)}
        sockets, ticks = self._tcp(links, refused), self._missed(links.values(), refused)
        self._remember(links, now)
        processes = self._processes(links.values(), refused)
        interval = None if self._taken is None else now - self._taken
        rows = [
            self._row(key, link, now, (sockets.get(key), ticks.get(_owner(link) or 0)), processes)
            for key, link in links.items()
        ]
        self._before, self._taken = links, now
        self._viewer.target.identity.check()
        rows.sort(key=_weight)
        spent = cpu_seconds() - began
        return Links(self._viewer.target.as_json(), interval, rows, refused, spent)

    def _carried(self, links: Collection[Link], refused: dict[str, str]) -> list[Link]:
        """Give links that a process carries the port behind it, where that is found."""
        carriers = [one.process for one in links if one.process is not None]
        if not carriers or self._carriers is None:
            return [*links]
        try:
            found = self._carriers.of(carriers)
        except ReadRefusedError as error:
            refused["carriers"] = str(error)
            return [*links]
        return [
            replace(one, port=found.get(one.process)) if one.process is not None else one
            for one in links
        ]

    def _tcp(self, links: Mapping[_Key, Link], refused: dict[str, str]) -> dict[_Key, TcpSocket]:
        ports = {key: one.port for key, one in links.items() if one.port}
        fds = {key: port.socket for key, port in ports.items() if port.socket is not None}
        keys = dict(enumerate(fds))
        try:
            found = self._sockets.of({number: fds[key] for number, key in keys.items()})
        except ReadRefusedError as error:
            refused["tcp"] = str(error)
            return {}
        return {keys[number]: one for number, one in found.items()}

    def _missed(self, links: Iterable[Link], refused: dict[str, str]) -> dict[int, Ticks]:
        """Ticks by the process of each link that has one of its own."""
        peers = {owner: one.peer for one in links if (owner := _owner(one)) is not None}
        try:
            return self._ticks.of(peers)
        except ReadRefusedError as error:
            refused["ticks"] = str(error)
            return {}

    def _remember(self, links: Mapping[_Key, Link], now: float) -> None:
        """Keep since when things are so, and forget what is not so any more."""
        self._full = {key: self._full.get(key, now) for key, one in links.items() if one.busy}
        waits = [(key, pid) for key, one in links.items() for pid in one.suspended or ()]
        self._waiting = {wait: self._waiting.get(wait, now) for wait in waits}
        heard = {}
        for key, one in links.items():
            count, when = self._heard.get(key, (one.packets_in, now))
            heard[key] = (count, when) if count == one.packets_in else (one.packets_in, now)
        self._heard = heard

    def _processes(self, links: Iterable[Link], refused: dict[str, str]) -> _Processes:
        """Names of the processes that wait for links or carry them."""
        terms: dict[int, None] = {}
        for one in links:
            if one.process is not None:
                terms[one.process] = None
            terms |= dict.fromkeys((one.suspended or ())[:MOST_NAMED])
        wanted = list(terms)[:_MOST_SENDERS]
        if not wanted:
            return {}
        try:
            return dict(_named(self._viewer, np.array(wanted, np.uint64)))
        except ReadRefusedError as error:
            refused["names"] = str(error)
            return {}

    def _row(
        self,
        key: _Key,
        link: Link,
        now: float,
        seen: tuple[TcpSocket | None, Ticks | None],
        processes: _Processes,
    ) -> Row:
        tcp, ticks = seen
        before = self._before.get(key)
        seconds = now - self._taken if before and self._taken is not None else None
        octets, packets = _counts(link)
        old_octets, old_packets = _counts(before) if before else (None, packets)
        silent = _silence(tcp)
        if silent is None and before:
            silent = now - self._heard[key][1]
        return Row(
            peer=link.peer,
            state=link.state,
            kind=link.kind,
            carrier=_carrier(link),
            tls=_is_tls(link, processes),
            creation=link.creation or None,
            octets=octets,
            packets=packets,
            octet_rate=_rate(old_octets, octets, seconds),
            packet_rate=_rate(old_packets, packets, seconds),
            queued=link.queued,
            queued_rate=(link.queued - before.queued) / seconds if before and seconds else None,
            driver_queued=link.port.queued if link.port else None,
            busy=link.busy,
            full_seconds=now - self._full[key] if link.busy else None,
            silent_seconds=silent,
            ticks_missed=ticks.missed if ticks else None,
            ticks_limit=ticks.limit if ticks else None,
            suspended_total=None if link.suspended is None else len(link.suspended),
            suspended=self._senders(key, link, now, processes),
            tcp=_socket(tcp) if tcp else None,
        )

    def _senders(
        self, key: _Key, link: Link, now: float, processes: _Processes
    ) -> tuple[Sender, ...]:
        text = self._viewer.pids.text
        return tuple(
            Sender(text(term), _name(processes.get(term)), now - self._waiting[key, term])
            for term in (link.suspended or ())[:MOST_NAMED]
        )


def _owner(link: Link) -> int | None:
    """The process that counts the ticks of a link; None where that does not own its port."""
    port = link.port
    owns = port is not None and port.socket is not None and link.process is None
    return port.owner if port and owns and link.state == "connected" else None


def _silence(tcp: TcpSocket | None) -> float | None:
    """Seconds since data came; None before the kernel has a connection."""
    if tcp is None or tcp.state == "syn-sent":
        return None
    return tcp.info["last_received_seconds"]


def _weight(row: Row) -> tuple[object, ...]:
    """Full links and long queues first, then by name."""
    return (not row.busy, -(row.queued + (row.driver_queued or 0)), row.peer)


def _counts(link: Link) -> tuple[Pair | None, Pair]:
    """Bytes and packets of a link."""
    traffic = link.port.traffic if link.port else None
    own = Pair(link.packets_in, link.packets_out)
    if traffic is None:
        return None, own
    octets = Pair(traffic.bytes_in, traffic.bytes_out)
    # What TLS makes of packets is not what the peer counts.
    return octets, own if link.process else Pair(traffic.packets_in, traffic.packets_out)


def _rate(before: Pair | None, after: Pair | None, seconds: float | None) -> Pair | None:
    """Per second; None where a count went back, which those of one socket never do."""
    if before is None or after is None or not seconds:
        return None
    if after.received < before.received or after.sent < before.sent:
        return None
    return Pair((after.received - before.received) / seconds, (after.sent - before.sent) / seconds)


def _carrier(link: Link) -> str | None:
    if link.process is not None:
        return "process"
    if link.port is None:
        return None
    return "port" if link.port.socket is None else "tcp"


def _is_tls(link: Link, processes: _Processes) -> bool | None:
    """False for a TCP port, which carries plain text; None where nothing shows it."""
    if link.process is None:
        return False if link.port and link.port.socket is not None else None
    process = processes.get(link.process)
    if process is None or process.initial is None:
        return None
    return process.initial.partition(":")[0] in _TLS


def _name(process: _Process | None) -> str | None:
    return (process.name or process.initial) if process else None


def _named(viewer: Viewer, terms: NDArray[np.uint64]) -> Iterator[tuple[int, _Process]]:
    """Read names and initial calls of the processes that are still there."""
    snapshot = viewer.table.at(viewer.table.slots_of(terms))
    rows = snapshot.rows[np.isin(snapshot.rows["id"], terms)]
    names = viewer.names.registered(rows)
    calls = viewer.names.initial_calls(rows)
    there, _ = viewer.table.still(rows)
    found = zip(rows["id"].tolist(), names, calls, there.tolist(), strict=True)
    for term, name, call, still in found:
        if still:
            yield term, _Process(name, str(call) if call else None)


def _socket(tcp: TcpSocket) -> dict[str, Any]:
    """The fields of LinkSocket."""
    return {
        "state": tcp.state,
        "local": tcp.local,
        "remote": tcp.remote,
        "receive_queue_bytes": tcp.receive_queue_bytes,
        "send_queue_bytes": tcp.send_queue_bytes,
        **{name: value for name, value in tcp.info.items() if name != "last_received_seconds"},
    }
