# SPDX-License-Identifier: Apache-2.0
"""
A capture as a timeline for Perfetto.

A track for each thread of the VM shows which process ran on it, with the kernel's
scheduling of the thread beneath; the busiest processes have tracks of their own. Records
come in the order of their causes, which is all that is needed: Perfetto sorts by time.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.sinks.perfetto import samples
from scope_ebpf.sinks.perfetto.calls import DrawnCalls
from scope_ebpf.sinks.perfetto.file import PerfettoFile
from scope_ebpf.sinks.perfetto.marked import DrawnMarks
from scope_ebpf.sinks.perfetto.messages import Messages
from scope_ebpf.sinks.perfetto.nodes import NodeFile, Packets
from scope_ebpf.sinks.perfetto.ports import Ports
from scope_ebpf.sinks.perfetto.processes import Processes
from scope_ebpf.sinks.perfetto.rows import BATCH, rows, survey
from scope_ebpf.sinks.perfetto.threads import Threads
from scope_ebpf.sinks.perfetto.tracks import Tracks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scope_ebpf.capture.flows import Flows
    from scope_ebpf.capture.legs import RemoteCall
    from scope_ebpf.capture.merging import Link, Node
    from scope_ebpf.capture.reader import Capture, Contents
    from scope_ebpf.sinks.perfetto.rows import Row


class Place(NamedTuple):
    """A node among others: links between all of them, and its calls of others by reference."""

    node: Node
    links: Sequence[Link]
    calls: Mapping[int, RemoteCall]


#: Processes that have a track of their own unless it is said otherwise.
BUSIEST = 64


class Timeline:
    """
    Writes the timeline of one capture to *output*; *busiest* processes have tracks.

    *place* is that of a node among others, with the links and calls between them.
    """

    def __init__(
        self,
        capture: Capture,
        contents: Contents,
        output: IO[bytes] | NodeFile,
        busiest: int = BUSIEST,
        place: Place | None = None,
    ) -> None:
        self._capture = capture
        self._contents = contents
        self._file = (
            output if isinstance(output, NodeFile) else PerfettoFile(output, contents.head.clocks)
        )
        tids, ranking = survey(capture)
        shown = ranking[:busiest]
        self._tracks = Tracks(self._file, contents, shown)
        self._marks = DrawnMarks(self._tracks)
        first = contents.first_ns + self._tracks.to_boot
        self._processes = Processes(self._tracks, shown, first)
        nodes = {term for term, text in contents.atoms.items() if "@" in text}
        self._messages = Messages(self._tracks, self._processes, nodes)
        self._ports = Ports(self._tracks)
        self._threads = Threads(self._tracks, tids)
        self._calls = DrawnCalls(self._tracks, place.calls if place else {})
        happened = self._processes.happened
        self._packets = (
            Packets(self._tracks, place.node, place.links, happened)
            if place
            else Packets(self._tracks, otherwise=happened)
        )

    @property
    def packets(self) -> int:
        """How many packets were written."""
        return self._file.packets

    @property
    def flows(self) -> Flows:
        """Which sends and receives belong together."""
        return self._messages.flows

    def write(self, moved: Callable[[int], object] = lambda _done: None) -> None:
        """Write everything; *moved* is called with the records written so far. Raises OSError."""
        self._tracks.describe()
        samples.counters(self._tracks, self._contents)
        samples.losses(self._tracks, self._contents)
        done = 0
        handlers = self._handlers()
        for batch in self._capture.batches(BATCH):
            self._threads.write(batch)
            self._calls.write(batch)
            self._marks.write(batch)
            for row in rows(batch, self._tracks.to_boot):
                handlers[row.kind](row)
            done += len(batch)
            moved(done)
        self._processes.finish()
        self._marks.finish()
        self._ports.finish()
        self._file.close()

    def _handlers(self) -> list[Callable[[Row], None]]:
        processes, messages = self._processes, self._messages
        special: dict[str, Callable[[Row], None]] = {
            "schedule": processes.schedule,
            "send": messages.send,
            "receive": messages.receive,
            "gc": processes.took_time,
            "long_call": processes.took_time,
            "spawn": processes.spawn,
            "exit": processes.exit,
            "port_busy": self._ports.busy,
            "thread": lambda _row: None,
            "mark_callback": lambda _row: None,
            "mark_function": lambda _row: None,
            "dist_out": self._packets.packet,
            "dist_in": self._packets.packet,
        }
        return [special.get(name, processes.happened) for name in events.KINDS]
