# SPDX-License-Identifier: Apache-2.0
"""What is read now and then of a VM's own memory, besides its processes."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.beam.vm.connections import ConnectionReader
from scope_ebpf.daemon.notify import say
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
    """A part of the memory, and who reads it once it is found."""

    def __init__(self, name: str, make: Callable[[], _Reader[_Read]]) -> None:
        self.name = name
        self.refused = ""
        #: Seconds of CPU that finding it took in the last reading, if it need not be found again.
        self.found_in = 0.0
        self._make = make
        self._reader: _Reader[_Read] | None = None

    def read(self) -> _Read | None:
        """
        Read it; None where that is refused.

        NoSuchProcessError if the process has ended, NoAnswerError if its memory does not come.
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
    """Reads one target; each part may be refused, and the others go on."""

    def __init__(self, target: Target) -> None:
        # A memory of its own: looking for hidden tables tries addresses, and that is no failure.
        target = replace(target, memory=Memory(target.pid, target.identity.process))
        self._pid = target.pid
        self._allocators = _Part("allocators", lambda: AllocatorReader(target))
        self._connections = _Part("connections", lambda: ConnectionReader(target))
        self._told: set[str] = set()

    def read(self) -> MemoryReading:
        """Read all that can be. NoSuchProcessError and NoAnswerError."""
        taken, began = time.time(), cpu_seconds()
        allocators, connections = self._allocators.read(), self._connections.read()
        parts = (self._allocators, self._connections)
        refused = {part.name: part.refused for part in parts if part.refused}
        if allocators and allocators.why:
            refused["erlang_memory"] = allocators.why
        self._tell(refused)
        # Finding them has their files parsed once; it is no reason to read them rarely afterwards.
        seconds = cpu_seconds() - began - sum(part.found_in for part in parts)
        return MemoryReading(allocators, connections, refused, seconds, taken)

    def _tell(self, refused: dict[str, str]) -> None:
        """Say once why a part is not read."""
        for part in refused.keys() - self._told:
            say(logging.WARNING, "memory not read", pid=self._pid, part=part, why=refused[part])
        self._told = set(refused)
