# SPDX-License-Identifier: Apache-2.0
"""
Ports that carry links: what waits in the driver, and what the TCP driver counts.

Sources: OTP-25.2.3 and OTP-27.3.4.1 erts/emulator/beam/erl_port.h (struct _erl_drv_port, its
*ioq*) and erts/emulator/drivers/common/inet_drv.c (inet_descriptor). No debug information of an
emulator says where the driver keeps its counters, and builds differ. They are found by what must
hold of them, and used only if that holds in one place of all descriptors.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.layouts.checks import check_ports
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import PortCodec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: The driver of TCP sockets, and bytes of a driver's name that are read.
_TCP, _NAME = b"tcp_inet", 16
#: inet_descriptor: its first field is the descriptor of the socket; the term of its port follows.
_DESCRIPTOR, _SOCKET, _TERM = 720, 0, 32
#: Where the counters may begin in it (576 by OTP-27.3.4.1, 568 by OTP-25.2.3 there for packets).
_FIRST, _LAST = 384, 632
#: Received bytes, packets, largest, mean, deviation; sent bytes; the line delimiter, packets,
#: largest, mean.
_COUNTERS = struct.Struct("<QQQddQB7xQQd")
#: Times that descriptors are read until the offset of their counters is found.
_ATTEMPTS = 3
#: A mean is rounded.
_ROUNDED = 1.001


class Traffic(NamedTuple):
    """What ``inet:getstat/1`` answers for a socket."""

    bytes_in: int
    packets_in: int
    bytes_out: int
    packets_out: int


@dataclass(frozen=True, slots=True)
class Port:
    """One port at one moment."""

    #: Its term.
    term: int
    #: Bytes that wait in the driver's queue.
    queued: int
    #: Term of its owner, a process.
    owner: int
    #: Descriptor of its socket in the VM; None if it is no TCP socket.
    socket: int | None
    #: None where the counters were not found.
    traffic: Traffic | None


class PortReader:
    """Reads ports of one VM by their terms. ReadRefusedError where the table does not fit."""

    def __init__(self, target: Target) -> None:
        self._memory, self._layout = target.memory, target.layout
        check_ports(target)
        self._codec = PortCodec.of(target)
        table = target.address("erts_port")
        self._slots = self._memory.u32(table + self._layout.offset("ErtsPTab", "r.o.max"))
        self._first = self._memory.u64(table + self._layout.offset("ErtsPTab", "r.o.tab"))
        self._at: int | None = None

    def read(self, terms: Sequence[int]) -> dict[int, Port]:
        """Read those of the ports that are there. Raises ReadRefusedError."""
        for _ in range(_ATTEMPTS):
            found, descriptors = self._ports(terms)
            if self._at is not None or not descriptors:
                break
            self._at = counters_at(list(descriptors.values()))
        return {
            term: Port(term, queued, owner, *self._socket(descriptors.get(term)))
            for term, (queued, owner) in found.items()
        }

    def _socket(self, descriptor: bytes | None) -> tuple[int | None, Traffic | None]:
        if descriptor is None:
            return None, None
        socket = int.from_bytes(descriptor[_SOCKET : _SOCKET + 4], "little", signed=True)
        if self._at is None:
            return socket, None
        numbers = _COUNTERS.unpack_from(descriptor, self._at)
        return socket, Traffic(numbers[0], numbers[1], numbers[5], numbers[7])

    def _ports(self, terms: Sequence[int]) -> tuple[dict[int, tuple[int, int]], dict[int, bytes]]:
        """Bytes queued and owner of each port, and the descriptors of TCP sockets."""
        words = np.array(terms, np.uint64)
        slots = self._codec.slot(words)
        words, slots = words[slots < self._slots], slots[slots < self._slots]
        raw, read = self._memory.gather(np.uint64(self._first) + slots * np.uint64(8), 8)
        pointers = column(raw, 0, np.uint64)
        words, pointers = words[read], pointers[read]
        ports, read = self._memory.gather(pointers, self._layout.size("Port"))
        there = read & (self._field(ports, "common.id") == words)
        words, ports = words[there], ports[there]
        both = (self._field(ports, name).tolist() for name in ("ioq.size", "connected"))
        found = dict(zip(words.tolist(), zip(*both, strict=True), strict=True))
        tcp = self.are_tcp(ports)
        words, ports = words[tcp], ports[tcp]
        data, read = self._memory.gather(self._field(ports, "drv_data"), _DESCRIPTOR)
        own = read & (column(data, _TERM, np.uint64) == words)
        descriptors = zip(words[own].tolist(), data[own], strict=True)
        return found, {term: one.tobytes() for term, one in descriptors}

    def _field(self, ports: NDArray[np.uint8], name: str) -> NDArray[np.uint64]:
        return column(ports, self._layout.offset("Port", name), np.uint64)

    def are_tcp(self, ports: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of these Port structs, shape ``(n, size)``, are of the TCP driver."""
        name = np.uint64(self._layout.offset("erts_driver_t", "name"))
        raw, read = self._memory.gather(self._field(ports, "drv_ptr") + name, 8)
        names, named = self._memory.gather(column(raw, 0, np.uint64), _NAME)
        texts = [bytes(one).partition(b"\0")[0] == _TCP for one in names]
        found: NDArray[np.bool_] = read & named & np.array(texts, np.bool_)
        return found


def counters_at(descriptors: Sequence[bytes]) -> int | None:
    """
    Find where the counters lie in descriptors of connected sockets; None if not at one offset only.

    A link has received and sent packets when it is there: those of its handshake.
    """
    fits = [
        at
        for at in range(_FIRST, _LAST, 8)
        if all(_are_counters(_COUNTERS.unpack_from(one, at)) for one in descriptors)
    ]
    return fits[0] if len(fits) == 1 else None


def _are_counters(numbers: tuple[float, ...]) -> bool:
    bytes_in, packets_in, largest_in, mean_in, deviation, *sent = numbers
    bytes_out, delimiter, packets_out, largest_out, mean_out = sent
    return (
        delimiter == ord("\n")
        and not math.isnan(deviation)
        and _agree(bytes_in, packets_in, largest_in, mean_in)
        and _agree(bytes_out, packets_out, largest_out, mean_out)
    )


def _agree(size: float, packets: float, largest: float, mean: float) -> bool:
    """Whether the largest packet and the mean can be those of so many packets of this size."""
    return (
        0 < packets <= size
        and largest <= size <= largest * packets
        and 0 < mean <= largest * _ROUNDED
    )
