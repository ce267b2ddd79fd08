# SPDX-License-Identifier: Apache-2.0
"""The sink of a recording: names processes, samples the VM, and writes blocks."""

from __future__ import annotations

import functools
import os
import platform
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.marks.names import MarkNames
from scope_ebpf.beam.memory.terms import ATOM_TAG, PidCodec, PortCodec, is_atom, is_pid
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.called import CalledNames
from scope_ebpf.beam.processes.labels import Labels
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.capture.facts import Clocks, Head
from scope_ebpf.capture.writer import Names, Writer
from scope_ebpf.errors import ReadRefusedError, ScopeError
from scope_ebpf.sinks.columns import atoms_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.capture.store import Store
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.runs.trace import Trace

#: Records of one block, and seconds after which a block is written with fewer.
BLOCK, FLUSH = 8192, 0.25
#: Seconds between two samples of the run queues, of mailboxes, and of the maps.
_QUEUES, _MAILBOXES, _MAPS = 0.1, 0.25, 1.0
#: Processes whose mailboxes are sampled: those scheduled most often since the last sample.
_BUSIEST = 64
#: Processes that are named before the trace: more would delay it.
_NAMED_FIRST = 5000
#: Processes that are looked up for one batch, as in a stream.
_LOOKUPS = 64
#: Terms that are remembered as named; none of them is looked up again.
_SEEN = 1 << 18


class Namer:
    """Names the processes, atoms and addresses of records; without the VM's tables, nothing."""

    def __init__(self, target: Target, names: Names) -> None:
        self._target, self._names = target, names
        self._seen: set[int] = set()
        self._atoms: Atoms | None = None
        self._labels: Labels | None = None
        self._table: ProcessTable | None = None
        self._code: CodeMap | None = None
        #: Addresses that are named, for the code of this generation.
        self._addresses: set[int] = set()
        self._generation = 0
        self._marks: MarkNames | None = None
        #: Ids of marked functions that are named.
        self._marked: set[int] = set()
        with suppress(ReadRefusedError):
            self._atoms = Atoms(target)
            self._code = CodeMap(target, self._atoms)
            self._labels = Labels(target, self._atoms, self._code)
            self._table = ProcessTable(target, IDENTITY)
            self._pids = PidCodec.of(target)
            self._marks = MarkNames(target, self._atoms)

    def name_all(self) -> None:
        """Name all processes, unless they are too many."""
        with suppress(ScopeError):
            if self._table is not None and self._table.count() <= _NAMED_FIRST:
                self.look(self._table.snapshot().rows["id"].tolist())

    def records(self, records: NDArray[np.void]) -> None:
        """Name the new processes, atoms and addresses of a batch."""
        terms = (_terms(records) | _peers(records)) - self._seen
        if len(self._seen) > _SEEN:
            self._seen.clear()
        pids = [term for term in terms if is_pid(term)][:_LOOKUPS]
        self.look(pids)
        self._seen.update(pids)
        atoms = [term for term in terms if is_atom(term)]
        if atoms and self._atoms is not None:
            with suppress(ScopeError):
                texts = self._atoms.texts(term >> 6 for term in atoms)
                for term in atoms:
                    if (text := texts.get(term >> 6)) is not None:
                        self._names.atom(term, text)
                        self._seen.add(term)
        self._name_calls(records)
        self._name_marks(records)

    @functools.cached_property
    def _called(self) -> CalledNames | None:
        """Names of code at addresses, made when a recording has the first."""
        if self._atoms is None or self._code is None:
            return None
        return CalledNames(self._target, self._atoms, self._code)

    def _name_calls(self, records: NDArray[np.void]) -> None:
        """Name the Erlang and the native functions whose addresses are in a batch."""
        if self._called is None or not np.isin(records["kind"], _WITH_ADDRESSES).any():
            return
        generation = self._code.generation if self._code else 0
        if len(self._addresses) > _SEEN or generation != self._generation:
            self._addresses.clear()
            self._generation = generation
        for kind, field, is_native in _ADDRESSES:
            rows = records[records["kind"] == events.KINDS[kind].id]
            name = self._called.symbol if is_native else self._called.function
            found = set(rows.view(events.RECORDS[kind])[field].tolist())
            for address in found - self._addresses:
                if text := name(address):
                    self._names.address(address, text)
                    self._addresses.add(address)

    def _name_marks(self, records: NDArray[np.void]) -> None:
        """Name the functions whose markers are in a batch."""
        found = set()
        for kind in _OF_MARKS:
            rows = records[records["kind"] == events.KINDS[kind].id]
            found.update(rows.view(events.RECORDS[kind])["function"].tolist())
        for number in found - self._marked if self._marks else ():
            if self._marks and (text := self._marks.name(number)):
                self._names.marked(number, text)
                self._marked.add(number)

    def look(self, pids: Iterable[int]) -> None:
        """Name these processes, or note their new names."""
        if self._labels is not None:
            with suppress(ScopeError):
                for pid, label in self._labels.labels(pids).items():
                    self._names.process(pid, label)

    def mailboxes(self, pids: list[int]) -> list[tuple[int, int]]:
        """The mailbox length of each of *pids* that is alive."""
        if self._table is None or not pids:
            return []
        with suppress(ScopeError):
            slots = self._pids.slot(np.array(pids, np.uint64))
            rows = self._table.at(np.unique(slots[slots < self._table.slots]).astype(np.int64)).rows
            rows = rows[np.isin(rows["id"], np.array(pids, np.uint64))]
            return list(zip(rows["id"].tolist(), rows["mailbox"].tolist(), strict=True))
        return []


def _terms(records: NDArray[np.void]) -> set[int]:
    """The terms in a batch; records of USDT probes have none."""
    found: list[NDArray[Any]] = []
    plain = records[records["flags"] & events.FLAG_TEXT_PID == 0]
    for number in np.unique(plain["kind"]).tolist():
        kind = _KINDS[number]
        rows = plain[plain["kind"] == number]
        found.append(np.unique(rows["process"]))
        found += [np.unique(rows["body"][:, word]) for word in _TERM_WORDS[kind.name]]
        own = rows.view(events.RECORDS[kind.name])
        found += [np.unique(atoms_of(own[field])) for field in _ATOM_FIELDS[kind.name]]
    return set(np.concatenate(found).tolist()) if found else set()


def _peers(records: NDArray[np.void]) -> set[int]:
    """The atoms in a batch that name other nodes, and processes of them."""
    found: set[int] = set()
    for name in _OF_PEERS:
        rows = records[records["kind"] == events.KINDS[name].id].view(events.RECORDS[name])
        found.update(np.unique(rows["peer"]).tolist())
        if name == "dist_out" and len(rows):
            receivers = np.unique(rows["receiver"]).tolist()
            found.update(
                (word & _INDEX) << 6 | ATOM_TAG
                for word in receivers
                if word >> _REMOTE_SHIFT == events.REMOTE_NAME
            )
    return found


#: Fields that are addresses of code, by kind, and whether it is native.
_ADDRESSES = (
    ("long_call", "code", False),
    ("long_call", "native", True),
    ("mark_callback", "caller", False),
    ("mark_function", "caller", False),
)
_WITH_ADDRESSES = [events.KINDS[kind].id for kind in {kind for kind, _, _ in _ADDRESSES}]
_OF_MARKS = ("mark_callback", "mark_function")
#: Events with a peer; of a receiver on another node, where it says what it is, and an atom's index.
_OF_PEERS = ("dist_out", "dist_in", "dist_down")
_REMOTE_SHIFT, _INDEX = 62, 0xFFFFFFFF
_KINDS = tuple(events.KINDS.values())
_HEADER = events.RECORD.fields["body"][1] if events.RECORD.fields else 0
#: Indices of the words of the body that are terms, by kind.
_TERM_WORDS = {
    name: [
        (dtype.fields[field][1] - _HEADER) // 8
        for field, unit in events.KINDS[name].units.items()
        if unit in ("eterm", "loss") and dtype.fields
    ]
    for name, dtype in events.RECORDS.items()
}
#: Fields that are indices of atoms, by kind.
_ATOM_FIELDS = {
    name: [field for field, unit in kind.units.items() if unit == "atom_index"]
    for name, kind in events.KINDS.items()
}


class Schedules:
    """The schedules among the records of a trace."""

    def __init__(self) -> None:
        #: Time of the last schedule, CLOCK_MONOTONIC, ns.
        self.last_ns = time.monotonic_ns()
        #: The process on each thread, by tid; 0 for none.
        self.running: dict[int, int] = {}
        self._scheduled = np.zeros(0, np.uint64)

    def follow(self, records: NDArray[np.void]) -> None:
        """Note which processes were scheduled, and which one is on each thread."""
        rows = records[records["kind"] == events.KINDS["schedule"].id]
        if not len(rows):
            return
        self.last_ns = int(rows["time_ns"].max())
        self._scheduled = np.concatenate([self._scheduled[-BLOCK:], rows["process"]])
        # The last schedule of each thread says which process is on it.
        tids, last = np.unique(rows["tid"][::-1], return_index=True)
        ends = rows[::-1][last]
        for tid, process, out in zip(
            tids.tolist(), ends["process"].tolist(), ends["class"].tolist(), strict=True
        ):
            self.running[tid] = 0 if out else process

    def take_busiest(self) -> list[int]:
        """The processes that were scheduled most often since the last call."""
        if not len(self._scheduled):
            return []
        pids, counts = np.unique(self._scheduled, return_counts=True)
        self._scheduled = self._scheduled[:0]
        busiest: list[int] = pids[np.argsort(-counts)[:_BUSIEST]].tolist()
        return busiest


class Recorder:
    """
    A sink that writes a capture of *trace* to *store*.

    With *flight*, *store* is the ring of a flight recorder. The plan is taken from the trace when
    it begins: then it is known which hooks could be attached.
    """

    def __init__(
        self, target: Target, trace: Trace, store: Store, names: Names, *, flight: bool = False
    ) -> None:
        self._target = target
        self._trace = trace
        self._flight = flight
        self.writer = Writer(store, names)
        self._namer = Namer(target, names)
        self._namer.name_all()
        self.head: Head | None = None
        self._waiting: list[NDArray[np.void]] = []
        self._count = 0
        self._queues: list[Any] = []
        self._mailboxes: list[Any] = []
        self._busiest: list[int] = []
        self._threads: dict[int, list[Any]] = {}
        self._due = dict.fromkeys((FLUSH, _QUEUES, _MAILBOXES, _MAPS), 0.0)
        self.counters: CounterReader | None = None
        with suppress(ReadRefusedError):
            self.counters = CounterReader(target)
        self.schedules = Schedules()

    def begin(self) -> None:
        """Write the head of the capture, unless it is written."""
        if self.head is not None:
            return
        target = self._target
        self.head = Head(
            target=target.as_json(),
            host={
                "name": platform.node(),
                "kernel": platform.release(),
                "cpus": os.cpu_count(),
                "time_zone": time.strftime("%z"),
            },
            clocks=Clocks.now(),
            plan=self._trace.plan,
            pids=_codec(PidCodec, target),
            ports=_codec(PortCodec, target),
            notes=tuple(self._trace.notes),
            flight=self._flight,
        )
        self.writer.head(self.head)

    def write(self, records: NDArray[np.void]) -> None:
        """Take a batch; raises OSError where the store does."""
        self.begin()
        if not len(records):
            return
        self.schedules.follow(records)
        self._namer.records(records)
        self._waiting.append(records.copy())
        self._count += len(records)
        if self._count >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write the records that wait for a block."""
        if self._waiting:
            self.writer.records(np.concatenate(self._waiting))
            self._waiting, self._count = [], 0

    def beat(self, session: Session) -> None:
        """Take the samples and write the blocks that are due."""
        self.begin()
        now = time.monotonic()
        if self._is_due(_QUEUES, now) and self.counters:
            with suppress(ScopeError):  # a target that has ended, too
                lengths = [int(n) for n in self.counters.read().run_queues]
                self._queues.append([time.monotonic_ns(), lengths])
        if self._is_due(_MAILBOXES, now):
            self._look_at_mailboxes()
        if self._is_due(FLUSH, now):
            self.flush()
        if self._is_due(_MAPS, now):
            self.settle(session)

    def settle(self, session: Session) -> None:
        """Write all records, samples and maps of this moment."""
        self._namer.look(self._busiest)
        self.flush()
        self.samples()
        hits = sum(session.hits().values())
        self.writer.maps(time.monotonic_ns(), hits, session.tallies(), session.durations())

    def samples(self) -> None:
        """Write the samples since the last call."""
        found = {t.tid: [t.tid, t.role, t.number] for t in threads(self._target.pid)}
        fresh = [thread for tid, thread in found.items() if tid not in self._threads]
        self._threads |= found
        samples = {
            "threads": fresh,
            "run_queues": self._queues,
            "mailboxes": self._mailboxes,
        }
        self._queues, self._mailboxes = [], []
        if any(samples.values()):
            self.writer.samples(samples)

    def threads(self) -> dict[str, Any]:
        """Every thread that was seen, as a sample."""
        return {"threads": list(self._threads.values())}

    def _is_due(self, period: float, now: float) -> bool:
        if now < self._due[period]:
            return False
        self._due[period] = now + period
        return True

    def _look_at_mailboxes(self) -> None:
        self._busiest = self.schedules.take_busiest() or self._busiest
        found = self._namer.mailboxes(self._busiest)
        if found:
            self._mailboxes.append([time.monotonic_ns(), found])


def _codec(kind: Any, target: Target) -> Any:
    """The codec of a VM's identifiers; that of OTP 25 if its tables are not found."""
    try:
        return kind.of(target)
    except ReadRefusedError:
        return kind()
