# SPDX-License-Identifier: Apache-2.0
"""Parts of a VM's memory that are read now and then, besides its process table."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from scope_ebpf.beam.links.entries import LinkReader
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.peers import Peers
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ScopeError
from scope_ebpf.metrics.reading import MemoryReading

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target

_Result_co = TypeVar("_Result_co", covariant=True)
_Read = TypeVar("_Read")


class _Reader(Protocol[_Result_co]):
    def read(self) -> _Result_co: ...


class _Part(Generic[_Read]):
    """
    A part of the memory, with its reader, which *make* returns once it has found the part.

    Attributes:
        name: the name of the part.
        refused: why it could not be read the last time; "" if it was.
        found_in: seconds of CPU that finding it took in the last reading.
    """

    def __init__(self, name: str, make: Callable[[], _Reader[_Read]]) -> None:
        self.name = name
        self.refused = ""
        self.found_in = 0.0
        self._make = make
        self._reader: _Reader[_Read] | None = None

    def read(self) -> _Read | None:
        """
        Read it; None where that fails.

        Raises NoSuchProcessError if the process has ended, NoAnswerError if its memory hangs.
        """
        self.found_in = 0.0
        try:
            if self._reader is None:
                began = cpu_seconds()
                self._reader = self._make()
                self.found_in = cpu_seconds() - began
            reading = self._reader.read()
        except (NoSuchProcessError, NoAnswerError):
            raise
        except ScopeError as error:
            self.refused = str(error)
            return None
        self.refused = ""
        return reading


class Readers:
    """Reads all parts of one target, each independently of the others."""

    def __init__(self, target: Target) -> None:
        # A separate Memory: searching for tables tries addresses, which are not failed reads.
        target = replace(target, memory=Memory(target.pid, target.identity.process))
        self._pid = target.pid
        self._allocators = _Part("allocators", lambda: AllocatorReader(target))
        self._connections = _Part("connections", lambda: LinkReader(target))
        self._peers = Peers()
        self._logged: set[str] = set()

    def read(self) -> MemoryReading:
        """Read all parts. Raises NoSuchProcessError and NoAnswerError."""
        taken, began = time.time(), cpu_seconds()
        allocators, links = self._allocators.read(), self._connections.read()
        peers = self._peers.update(links.links, time.monotonic()) if links else ()
        parts = (self._allocators, self._connections)
        refused = {part.name: part.refused for part in parts if part.refused}
        if allocators and allocators.why:
            refused["erlang_memory"] = allocators.why
        self._log(refused)
        # Finding parts parses files once; that must not make later readings rarer.
        seconds = cpu_seconds() - began - sum(part.found_in for part in parts)
        connections = links.connections if links else None
        return MemoryReading(allocators, connections, peers, refused, seconds, taken)

    def _log(self, refused: dict[str, str]) -> None:
        """Log once why a part is not read."""
        for part in refused.keys() - self._logged:
            say(logging.WARNING, "memory not read", pid=self._pid, part=part, why=refused[part])
        self._logged = set(refused)
