# SPDX-License-Identifier: Apache-2.0
"""
A capture as a timeline for Perfetto.

A track for each thread of the VM shows which process ran on it, with the kernel's
scheduling of the thread beneath; the busiest processes have tracks of their own. Records
come in the order of their causes, which is all that is needed: Perfetto sorts by time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.flows import Flows
from scope_ebpf.capture.terms import CapturedTerms
from scope_ebpf.sinks.perfetto_file import PerfettoFile
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.capture.reader import Capture, Contents

#: Processes that have a track of their own unless it is said otherwise.
BUSIEST = 64
#: Records that are worked on at once.
_BATCH = 1 << 16
#: Processes of which it is remembered how busy they were.
_MOST = 1 << 20
#: Ports that have a track of their own.
_PORTS = 64
_UNKNOWN = 0xFFFFFFFFFFFFFFFF
_TEXT_PID = 1 << 64

_VM, _PROCESSES, _MAILBOXES, _QUEUES, _LOST, _BUSY = range(1, 7)
_THREAD, _PROCESS, _MAILBOX, _QUEUE, _PORT = (n << 40 for n in range(1, 6))
_ROLES = {
    "normal": "scheduler",
    "dirty_cpu": "dirty CPU scheduler",
    "dirty_io": "dirty IO scheduler",
}
#: The kernel's states of a thread that all kernels have alike (include/linux/sched.h).
_STATES = 0x7F
#: That of a thread with nice 0, in the kernel's numbers; which one it has is not recorded.
_PRIORITY = 120


class Row(NamedTuple):
    """One record, with its time since boot."""

    time: int
    kind: int
    cls: int
    tid: int
    process: int
    words: list[int]


class _State:
    """What a process with a track of its own does, and since when."""

    __slots__ = ("facts", "name", "rank", "since")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.name = ""
        self.since = 0
        self.facts: dict[str, Any] | None = None


class Timeline:
    """Writes the timeline of one capture to *output*; *busiest* processes have tracks."""

    def __init__(
        self, capture: Capture, contents: Contents, output: IO[bytes], busiest: int = BUSIEST
    ) -> None:
        self._capture = capture
        self._contents = contents
        self._terms = CapturedTerms(contents)
        self._to_boot = contents.head.clocks.to_boot
        self._file = PerfettoFile(output, contents.head.clocks)
        self._tids, ranking = _survey(capture)
        self._states = {pid: _State(rank) for rank, pid in enumerate(ranking[:busiest], 1)}
        self._texts: dict[int, tuple[str, str]] = {}
        self._threads: set[int] = set()
        self._on: dict[int, tuple[int, int]] = {}
        self._cpus: dict[int, int] = {}
        self._ports: dict[int, int] = {}
        self.flows = Flows()
        self._handlers = self._table()

    @property
    def packets(self) -> int:
        """How many packets were written."""
        return self._file.packets

    def write(self, moved: Callable[[int], object] = lambda _done: None) -> None:
        """Write everything; *moved* is told how many records are done. Raises OSError."""
        self._describe()
        self._counters()
        self._losses()
        done = 0
        for batch in self._capture.batches(_BATCH):
            self._scheduling(batch)
            handlers = self._handlers
            for row in _rows(batch, self._to_boot):
                handlers[row.kind](row)
            done += len(batch)
            moved(done)
        self._finish()
        self._file.close()

    def _table(self) -> list[Callable[[Row], None]]:
        special: dict[str, Callable[[Row], None]] = {
            "schedule": self._schedule,
            "send": self._send,
            "receive": self._receive,
            "gc": self._took_time,
            "long_call": self._took_time,
            "spawn": self._spawn,
            "exit": self._exit,
            "port_busy": self._port_busy,
            "thread": lambda _row: None,
        }
        return [special.get(name, self._happened) for name in events.KINDS]

    # Tracks

    def _describe(self) -> None:
        file, target = self._file, self._contents.head.target
        vm = file.track(_VM)
        vm.process.pid = int(target["pid"])
        vm.process.process_name = plain(str(target["node"] or "a node without a name"))
        file.describe(vm)
        for tid in sorted(self._contents.threads, key=self._rank):
            self._thread(tid)
        if self._states:
            group = file.track(_PROCESSES, _VM, "Erlang processes")
            group.child_ordering = file.pb.TrackDescriptor.EXPLICIT
            file.describe(group)
        for pid, state in self._states.items():
            who, text = self._name(pid)
            name = f"{who} {text}" if who != text else text
            file.describe(file.track(_PROCESS + state.rank, _PROCESSES, name, state.rank))

    def _rank(self, tid: int) -> tuple[int, int]:
        role, number = self._contents.threads[tid]
        return (list(_ROLES).index(role) if role in _ROLES else len(_ROLES), number)

    def _thread_name(self, tid: int) -> str:
        if tid not in self._contents.threads:
            return "a thread of the VM"
        role, number = self._contents.threads[tid]
        return f"{_ROLES.get(role, role)} {number}"

    def _thread(self, tid: int) -> int:
        """The track of a thread of the VM."""
        if tid not in self._threads:
            self._threads.add(tid)
            track = self._file.track(_THREAD + tid, _VM)
            track.thread.pid = int(self._contents.head.target["pid"])
            track.thread.tid = tid
            track.thread.thread_name = self._thread_name(tid)
            self._file.describe(track)
        return _THREAD + tid

    def _name(self, process: int) -> tuple[str, str]:
        """Who a process is, and its pid; for one without a name both are the pid."""
        known = self._texts.get(process)
        if known is None:
            text_pid = process >= _TEXT_PID
            word = process & _UNKNOWN
            text = plain(str(self._terms.texts([word], text_pids=text_pid)[0] or "-"))
            who = None if text_pid else self._terms.who([word]).get(word)
            known = (plain(who) if who else text, text)
            if len(self._texts) < _MOST:
                self._texts[process] = known
        return known

    def _place(self, row: Row) -> int:
        """Where an event of a process is shown: its own track, else that of its thread."""
        state = self._states.get(row.process)
        return _PROCESS + state.rank if state else self._thread(row.tid)

    # Records

    def _schedule(self, row: Row) -> None:
        state = self._states.get(row.process)
        if row.cls == _IN:
            self._on[row.tid] = (row.time, row.process)
            if state:
                self._becomes(state, row.time, "running", {"on": self._thread_name(row.tid)})
            return
        begin, process = self._on.pop(row.tid, (0, row.process))
        if process != row.process:
            begin = 0
        duration, reductions, runnable = row.words[:3]
        who, pid = self._name(row.process)
        facts: dict[str, Any] = {"pid": pid}
        if reductions != _UNKNOWN:
            facts["reductions"] = reductions
        if not begin:  # it was in before the capture began, or its beginning was lost
            begin = row.time - duration if duration != _UNKNOWN else self._since(row)
        self._file.slice(self._thread(row.tid), begin, row.time, who, facts=facts)
        if state:
            if state.name != "running":
                state.name, state.since, state.facts = "running", begin, None
            if state.facts and reductions != _UNKNOWN:
                state.facts["reductions"] = reductions
            self._becomes(state, row.time, _NEXT.get(runnable, "out"))

    def _since(self, row: Row) -> int:
        return min(row.time, self._contents.first_ns + self._to_boot)

    def _becomes(
        self, state: _State, time: int, name: str, facts: dict[str, Any] | None = None
    ) -> None:
        """End what a process did until now, and begin another thing; nothing at all with ''."""
        if state.name and time > state.since:
            self._file.slice(
                _PROCESS + state.rank, state.since, time, state.name, facts=state.facts
            )
        state.name, state.since, state.facts = name, time, facts

    def _send(self, row: Row) -> None:
        receiver, message = row.words[0], row.words[2]
        number = self.flows.send(row.process, receiver, message)
        facts = {"to": self._name(receiver)[1]} if receiver else None
        self._file.instant(self._place(row), row.time, "send", facts=facts, begins=number)
        state = self._states.get(receiver)
        if state and state.name == "waiting":
            self._becomes(state, row.time, "runnable")

    def _receive(self, row: Row) -> None:
        message, _, sender = row.words[:3]
        number = self.flows.receive(row.process, message, sender)
        facts = {"from": self._name(sender)[1]} if sender else None
        self._file.instant(self._place(row), row.time, "receive", facts=facts, ends=number)

    def _took_time(self, row: Row) -> None:
        kind = _KINDS[row.kind]
        name = f"{kind.name} {kind.classes[row.cls % len(kind.classes)]}"
        duration = row.words[0]
        begin = row.time if duration == _UNKNOWN else row.time - duration
        facts: dict[str, Any] = {"pid": self._name(row.process)[1]} if row.process else {}
        if kind.name == "gc" and row.words[1] != _UNKNOWN:
            facts["reclaimed_bytes"] = row.words[1] * 8
        self._file.slice(self._thread(row.tid), begin, row.time, name, facts=facts)
        state = self._states.get(row.process)
        if state and state.name == "running" and begin >= state.since:
            self._file.slice(_PROCESS + state.rank, begin, row.time, name, facts=facts)

    def _spawn(self, row: Row) -> None:
        state = self._states.get(row.process)
        if state and not state.name:
            self._becomes(state, row.time, "runnable")
        self._happened(row)

    def _exit(self, row: Row) -> None:
        self._happened(row)
        state = self._states.get(row.process)
        if state and state.name != "running":
            self._becomes(state, row.time, "")

    def _happened(self, row: Row) -> None:
        kind = _KINDS[row.kind]
        name = kind.name
        if len(kind.classes) > 1:
            name += f" {kind.classes[row.cls % len(kind.classes)]}"
        facts = {
            field: plain(text)
            for field, place in _ATOMS.get(kind.name, ())
            if (text := self._terms.texts([row.words[place]], text_pids=False)[0]) is not None
        }
        self._file.instant(self._place(row), row.time, name, facts=facts or None)

    def _port_busy(self, row: Row) -> None:
        port = row.words[0]
        if port not in self._ports:
            if len(self._ports) >= _PORTS or row.cls != _PORT_BUSY:
                return
            if not self._ports:
                self._file.describe(self._file.track(_BUSY, _VM, "busy ports"))
            name = plain(str(self._terms.texts([port], text_pids=False)[0]))
            track = self._file.track(_PORT + len(self._ports), _BUSY, name)
            self._file.describe(track)
            self._ports[port] = 0
        begin, track_of = self._ports[port], _PORT + list(self._ports).index(port)
        if row.cls == _PORT_BUSY:
            self._ports[port] = begin or row.time
        elif begin:
            owner = {"owner": self._name(row.process)[1]}
            self._file.slice(track_of, begin, row.time, "busy", facts=owner)
            self._ports[port] = 0

    def _finish(self) -> None:
        """What had not ended when the capture did."""
        for tid, (begin, process) in self._on.items():
            who, pid = self._name(process)
            self._file.slice(self._thread(tid), begin, None, who, facts={"pid": pid})
        for state in self._states.values():
            if state.name:
                track = _PROCESS + state.rank
                self._file.slice(track, state.since, None, state.name, facts=state.facts)
        for place, (port, begin) in enumerate(self._ports.items()):
            if begin:
                self._file.slice(_PORT + place, begin, None, "busy")
                self._ports[port] = 0

    # What was sampled and lost

    def _counters(self) -> None:
        file, boot = self._file, self._to_boot
        queues = self._contents.run_queues
        names = _queue_names(max((len(lengths) for _, lengths in queues), default=0))
        for place, name in enumerate(names):
            self._counter(_QUEUE + place, _VM, f"run queue {name}")
        for time, lengths in queues:
            for place, length in enumerate(lengths):
                file.counter(_QUEUE + place, time + boot, length)
        shown: set[int] = set()
        for time, mailboxes in self._contents.mailboxes:
            for pid, messages in mailboxes.items():
                state = self._states.get(pid)
                if state is None:
                    continue
                if pid not in shown:
                    shown.add(pid)
                    self._counter(
                        _MAILBOX + state.rank, _VM, f"mailbox of {' '.join(self._name(pid))}"
                    )
                file.counter(_MAILBOX + state.rank, time + boot, messages)

    def _counter(self, uuid: int, parent: int, name: str) -> None:
        track = self._file.track(uuid, parent, name)
        track.counter.unit = self._file.pb.CounterDescriptor.UNIT_COUNT
        self._file.describe(track)

    def _losses(self) -> None:
        before, since = 0, self._contents.head.clocks.monotonic
        for time, by_kind in self._contents.losses:
            total = sum(by_kind.values())
            if total > before:
                if not before:
                    self._file.describe(self._file.track(_LOST, _VM, "LOST RECORDS"))
                name = f"{total - before:,} records lost"
                self._file.slice(
                    _LOST, since + self._to_boot, time + self._to_boot, name, facts=by_kind
                )
            before, since = total, time

    # The kernel's scheduler

    def _scheduling(self, batch: NDArray[np.void]) -> None:
        rows = batch[batch["kind"] == events.KINDS["thread"].id].view(events.RECORDS["thread"])
        by_cpu: dict[int, list[tuple[int, int, str, Any]]] = defaultdict(list)
        columns = [rows[n].tolist() for n in ("time_ns", "class", "tid", "cpu", "other", "state")]
        for time, cls, tid, cpu, other, state in zip(*columns, strict=True):
            if cls == _WOKEN:
                woken = self._file.pb.SchedWakeupFtraceEvent(
                    comm=self._comm(tid), pid=tid, prio=_PRIORITY, success=1
                )
                by_cpu[cpu].append((time + self._to_boot, tid, "sched_wakeup", woken))
                continue
            # What else runs on a CPU is not known, so it is all one: Perfetto's idle thread.
            before, after = (tid, other) if cls == _OFF else (self._cpus.get(cpu, 0), tid)
            after = after if after in self._tids else 0
            self._cpus[cpu] = after
            if before != after:  # else the record of the thread that left has said it
                event = self._switch(before, after, state)
                by_cpu[cpu].append((time + self._to_boot, before, "sched_switch", event))
        for cpu, found in by_cpu.items():
            self._file.scheduling(cpu, found)

    def _switch(self, before: int, after: int, state: int) -> Any:
        return self._file.pb.SchedSwitchFtraceEvent(
            prev_comm=self._comm(before),
            prev_pid=before,
            prev_prio=_PRIORITY,
            prev_state=state & _STATES,
            next_comm=self._comm(after),
            next_pid=after,
            next_prio=_PRIORITY,
        )

    def _comm(self, tid: int) -> str:
        return self._thread_name(tid) if tid else "swapper"


_KINDS = tuple(events.KINDS.values())
_IN = events.KINDS["schedule"].classes.index("in")
_OFF, _WOKEN = (events.KINDS["thread"].classes.index(name) for name in ("off", "woken"))
_PORT_BUSY = events.KINDS["port_busy"].classes.index("busy")
_NEXT = {0: "waiting", 1: "runnable"}
#: Words that are shown beside an event.
_ATOMS = {
    "spawn": (("module", 1), ("function", 2)),
    "exit": (("reason", 0), ("tag", 1)),
    "code_load": (("module", 0),),
    "port_open": (("port", 0),),
    "port_close": (("port", 0), ("reason", 1)),
}


def _rows(batch: NDArray[np.void], to_boot: int) -> Iterator[Row]:
    # A pid of a USDT probe is no term, and must not be taken for one.
    flagged = (batch["flags"] & events.FLAG_TEXT_PID) != 0
    processes = batch["process"].tolist()
    if flagged.any():
        processes = [
            p | _TEXT_PID if text and p else p for p, text in zip(processes, flagged, strict=True)
        ]
    columns = (
        (batch["time_ns"].astype(np.int64) + to_boot).tolist(),
        *(batch[name].tolist() for name in ("kind", "class", "tid")),
        processes,
        batch["body"].tolist(),
    )
    return map(Row._make, zip(*columns, strict=True))


def _survey(capture: Capture) -> tuple[set[int], list[int]]:
    """The threads that the kernel scheduled, and all processes, the busiest first."""
    tids: set[int] = set()
    busy: dict[int, int] = defaultdict(int)
    schedule, thread = (events.KINDS[name].id for name in ("schedule", "thread"))
    for batch in capture.batches(_BATCH):
        tids.update(np.unique(batch["tid"][batch["kind"] == thread]).tolist())
        rows = batch[(batch["kind"] != thread) & (batch["process"] != 0)]
        spent = np.ones(len(rows), np.int64)
        out = (rows["kind"] == schedule) & (rows["class"] != _IN)
        durations = rows["body"][:, 0]
        timed = out & (durations != _UNKNOWN)
        spent[timed] += durations[timed].astype(np.int64)
        text = (rows["flags"] & events.FLAG_TEXT_PID) != 0
        for flag in np.unique(text):
            pids, where = np.unique(rows["process"][text == flag], return_inverse=True)
            sums = np.bincount(where, spent[text == flag])
            for pid, total in zip(pids.tolist(), sums.tolist(), strict=True):
                busy[pid | _TEXT_PID if flag else pid] += int(total)
        if len(busy) > _MOST:
            kept = sorted(busy, key=busy.__getitem__, reverse=True)[: _MOST // 2]
            busy = defaultdict(int, {pid: busy[pid] for pid in kept})
    return tids, sorted(busy, key=busy.__getitem__, reverse=True)


def _queue_names(count: int) -> list[str]:
    """One for each normal scheduler, then those of the dirty ones."""
    normal = [str(number) for number in range(1, count - 1)]
    return [*normal, "dirty CPU", "dirty IO"] if count > 2 else [str(n + 1) for n in range(count)]
