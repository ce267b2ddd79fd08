# SPDX-License-Identifier: Apache-2.0
"""What is read now and then of a VM's own memory, besides its processes."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from scope_ebpf.beam.allocators import AllocatorReader
from scope_ebpf.beam.connections import ConnectionReader
from scope_ebpf.beam.memory import Memory
from scope_ebpf.daemon.notify import say
from scope_ebpf.errors import NoSuchProcessError, ScopeError
from scope_ebpf.metrics.reading import MemoryReading

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.target import Target

_Result_co = TypeVar("_Result_co", covariant=True)
_Read = TypeVar("_Read")


class _Reader(Protocol[_Result_co]):
    def read(self) -> _Result_co: ...


class Readers:
    """
    Reads one target; each part may be refused, and the others go on.

    *seconds* is the CPU time that the last reading took, *due* when the next is.
    """

    def __init__(self, target: Target) -> None:
        # A memory of its own: looking for hidden tables tries addresses, and that is no failure.
        target = replace(target, memory=Memory(target.pid))
        self._pid = target.pid
        self._refused: dict[str, str] = {}
        self.seconds = self.due = 0.0
        self._allocators = self._made("allocators", lambda: AllocatorReader(target))
        self._connections = self._made("connections", lambda: ConnectionReader(target))

    def read(self) -> MemoryReading:
        """Read all that can be. NoSuchProcessError if the process has ended."""
        began = time.thread_time()
        reading = MemoryReading(
            allocators=self._part("allocators", self._allocators),
            connections=self._part("connections", self._connections),
            refused=self._refused,
        )
        self.seconds = time.thread_time() - began
        return reading

    def _made(self, part: str, make: Callable[[], _Read]) -> _Read | None:
        try:
            return make()
        except NoSuchProcessError:
            raise
        except ScopeError as error:
            self._refuse(part, error)
            return None

    def _part(self, part: str, reader: _Reader[_Read] | None) -> _Read | None:
        if reader is None:
            return None
        reading = self._made(part, reader.read)
        if reading is not None:
            self._refused.pop(part, None)
        return reading

    def _refuse(self, part: str, error: ScopeError) -> None:
        """Say once why *part* is not read; it is among what readings say is refused."""
        if part not in self._refused:
            say(logging.WARNING, "memory not read", pid=self._pid, part=part, why=error)
        self._refused[part] = str(error)
