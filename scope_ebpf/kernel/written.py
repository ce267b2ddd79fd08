# SPDX-License-Identifier: Apache-2.0
"""
A user's compiled probe in one process, from load to detach.

Nothing is pinned: what is attached lives as long as the file descriptors of this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scope_ebpf.errors import HostError, NothingToAttachError
from scope_ebpf.kernel.perf_events import Attributes, perf_event_open
from scope_ebpf.kernel.ring import Ring
from scope_ebpf.kernel.stats import program_stats
from scope_ebpf.kernel.uprobes import TRACE_UPROBE_MULTI, Uprobes, has_multi

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from scope_ebpf.kernel.compiler import Compiled
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.plan import Attachment

#: include/uapi/linux/perf_event.h, PERF_EVENT_IOC_SET_BPF and _ENABLE.
_SET_BPF = 0x40042408
_ENABLE = 0x2400
_PMU = Path("/sys/bus/event_source/devices/uprobe/type")


class WrittenSession:
    """
    Loads the functions of *probe* and attaches each to its *places* in process *pid*.

    A context manager. What cannot be attached is an error: a probe of which a part is
    missing tells something else than its author wrote.
    """

    def __init__(
        self,
        probe: Compiled,
        places: Mapping[str, Sequence[Attachment]],
        pid: int,
        record: np.dtype[np.void],
        ring_bytes: int,
        *,
        multi: bool | None = None,
    ) -> None:
        self._probe = probe
        self._places = places
        self._pid = pid
        self._path = Path(f"/proc/{pid}/exe")
        self._multi = has_multi() if multi is None else multi
        self._uprobes = Uprobes(self._path, pid, multi=True, by_child=True)
        self._events: list[int] = []
        self._programs: dict[str, int] = {}
        self.ring = Ring(probe.map_fd("beam_ring"), ring_bytes, record)

    def __enter__(self) -> Self:
        try:
            for function in self._places:
                self._programs[function] = self._probe.load(
                    function, TRACE_UPROBE_MULTI if self._multi else None
                )
            self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach(self) -> None:
        if not self._multi:
            for function, places in self._places.items():
                for place in places:
                    self._events.append(self._open(self._programs[function], place))
            return
        wanted = [(0, self._programs[name], places) for name, places in self._places.items()]
        failed = [error for error in self._uprobes.attach_all(wanted) if error]
        if failed:
            raise NothingToAttachError(str(failed[0]))

    def _open(self, program: int, place: Attachment) -> int:
        """One perf event with the program on it: what there is before Linux 6.6."""
        path = ctypes.create_string_buffer(bytes(self._path))
        attributes = Attributes(
            type=int(_PMU.read_text()),
            config=int(place.returns),
            breakpoint_address=ctypes.addressof(path),
            breakpoint_length=place.offset,
        )
        fd = perf_event_open(attributes, pid=self._pid)
        try:
            fcntl.ioctl(fd, _SET_BPF, program)
            fcntl.ioctl(fd, _ENABLE, 0)
        except OSError as error:
            os.close(fd)
            raise HostError(f"cannot attach to {place.name}: {error.strerror}") from error
        return fd

    def hits(self) -> dict[str, int]:
        """How often each function ran, while the kernel measures (``stats.measuring``)."""
        return {name: program_stats(fd).runs for name, fd in self._programs.items()}

    def cost(self, price: HitCost) -> float:
        """Seconds of CPU that hits and runs took from the target until now."""
        total = 0.0
        for name, fd in self._programs.items():
            stats = program_stats(fd)
            returns = any(place.returns for place in self._places[name])
            total += stats.runs * (price.returns if returns else price.entry) + stats.seconds
        return total

    def troubles(self) -> list[int]:
        """Lost events, failed reads, and counts without room (``enum beam_trouble``)."""
        return self._probe.summed("beam_troubles")

    def detach(self) -> None:
        """Take every breakpoint out; the maps can still be read."""
        self._uprobes.detach()
        while self._events:
            os.close(self._events.pop())

    def close(self) -> None:
        """Detach, and give everything back."""
        self.detach()
        self.ring.close()
        self._probe.close()
