# SPDX-License-Identifier: Apache-2.0
"""Mailboxes, binaries and heaps of single processes, and supervisors that restart."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.terms import BOXED, LIST, POINTER_MASK, is_atom, small
from scope_ebpf.beam.processes.detail import detail
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.checks.scene import SHOWN, ps, subject, where, who
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.relations import of_allocators, of_use
from scope_ebpf.results.check import Finding, Name
from scope_ebpf.sandbox.proc import read_bounded, status_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.vm.allocators import Allocator
    from scope_ebpf.checks.scene import Scene
    from scope_ebpf.results.documents.checks import Evidence, Involved, Subject
    from scope_ebpf.results.kinds import Kind, Severity

#: Messages from which on a mailbox is a finding, and a critical one; the same of a log handler.
_LONG, _VERY_LONG, _LOGGER = 1000, 100_000, 500
#: Reductions a second of one that works; a scheduler has some ten million of Erlang code.
_WORKS = 1_000_000
#: Bytes and part of the VM's memory from which on what one process holds is a finding.
LARGE, SHARE = 64 << 20, 0.5
#: Bytes of carriers without blocks, and the part of the carriers that these are.
_EMPTY, _EMPTY_SHARE = 128 << 20, 0.6
#: Restarts within its period from which on a supervisor is a finding.
_RESTARTS = 5
#: Supervisors whose state is read, words of each stack, restarts of all together at one look.
_SUPERVISORS, _STACK, _CELLS = 2000, 32, 20_000
_WORD = 8
#: Bytes of a supervisor's state that are read, and the tag of a small integer.
_STATE, _SMALL = 9 * _WORD, 0xF
#: Words of the largest state: OTP 25 has 13 with its name, 29 has 16.
_STATE_WORDS = 24


class Mailboxes:
    """Processes with long mailboxes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def look(self) -> None:
        """The processes are read by the scene."""

    def findings(self) -> list[Finding]:
        """Mailboxes that were long at both readings, the longest first."""
        scene = self._scene
        rows = scene.last.rows
        before = scene.before(rows)
        long = (rows["mailbox"] >= _LOGGER) & (before["mailbox"] >= _LOGGER)
        rows, before = rows[long], before[long]
        order = np.argsort(-rows["mailbox"], kind="stable")
        rows, before = rows[order], before[order]
        made = []
        for index, one in enumerate(scene.involved(rows)):
            found = self._of(one, rows[index : index + 1], before[index : index + 1])
            made += [found] if found else []
        scene.more["mailbox"] += int((rows["mailbox"][SHOWN:] >= _LONG).sum())
        return made

    def _of(
        self, one: Involved, rows: NDArray[np.void], before: NDArray[np.void]
    ) -> Finding | None:
        now, then, seconds = rows[0], before[0], self._scene.seconds
        logger, messages = _logs(one), int(now["mailbox"])
        if messages < _LONG and not logger:
            return None
        kind: Kind = "logger" if logger else "mailbox"
        rate = (messages - int(then["mailbox"])) / seconds
        growth = f" ({rate:,.0f} more each second)" if rate >= 1 else ""
        evidence: Evidence = {"messages": messages, "messages_per_second": round(rate, 1)}
        works = (int(now["reductions"]) - int(then["reductions"])) / seconds
        evidence["reductions_per_second"] = round(works, 1)
        evidence["function"] = one["function"]
        tags = self._describe(rows, evidence)
        # What takes messages in order, however late, has another one first.
        leaves = works >= _WORKS and 0 != now["first_message"] == then["first_message"]
        passes = (
            f"; it leaves the first at {works / 1e6:.3g} million reductions a second: a receive "
            "passes over it, or it takes none"
        )
        text = (
            f"{messages:,} messages wait for ",
            who(one),
            growth,
            *where(one),
            *(("; the oldest are ", Name("shape", tags)) if tags else ()),
            *((passes,) if leaves else ()),
        )
        severity: Severity = "critical" if messages >= _VERY_LONG else "warning"
        return Finding(
            kind, severity, subject(one), text, evidence, "certain", (ps(one),), messages
        )

    def _describe(self, rows: NDArray[np.void], evidence: Evidence) -> str | None:
        """Add what can be read of one process; the tag that most of its oldest messages have."""
        try:
            found = detail(self._scene.viewer, rows)
        except ReadRefusedError:
            return None
        evidence["status"] = found["status"]
        if found["stack"]:
            evidence["location"] = found["stack"][0]["location"]
        if "messages" in found["moved"]:
            return None
        shapes = Counter(found["messages"]).most_common()
        evidence["shapes"] = [{"shape": shape, "count": count} for shape, count in shapes]
        return shapes[0][0] if shapes else None


def _logs(one: Involved) -> bool:
    """Whether a process writes logs: handlers of logger, and what they call (OTP-25 kernel)."""
    name, call = one["name"] or "", one["initial_call"] or ""
    return name.startswith("logger") or call.startswith(("logger_", "Elixir.Logger"))


class Memory:
    """Who holds memory: binaries and heaps of single processes, empty carriers."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._allocators = AllocatorReader(scene.target)

    def look(self) -> None:
        """What is held is read at the end."""

    def findings(self) -> list[Finding]:
        """Processes that hold most of the memory, and memory that nobody holds."""
        found = self._allocators.read()
        wrong = of_allocators(found.allocators) or (found.memory and of_use(found.memory))
        if wrong:
            raise ReadRefusedError(f"the figures of its allocators do not agree: {wrong[0]}")
        # Where the VM hides what its total is made of, that of all blocks is as good.
        blocks = sum(one.blocks for one in found.allocators)
        total = (found.memory and found.memory.total) or blocks
        made = self._fragmented(found.allocators) + self._outside(found.allocators)
        if not total:
            return made
        binary = (found.memory and found.memory.binary) or 0
        return [*made, *self._binaries(total, binary), *self._heaps(total)]

    def _binaries(self, total: int, binary: int) -> list[Finding]:
        rows = self._scene.first.rows
        held = _WORD * (rows["off_heap_words"] + rows["old_binaries"]).astype(np.float64)
        # A binary that a process refers to many times counts as often.
        held = np.minimum(held, binary)
        return [
            Finding(
                "binaries",
                "warning",
                subject(one),
                (
                    who(one),
                    (
                        f" holds binaries of {size / 1e6:,.0f} MB, "
                        f"{100 * size / total:.0f} % of the VM's memory; they are freed when it "
                        "collects garbage and refers to them no more"
                    ),
                ),
                {"bytes": int(size), "share": round(size / total, 4)},
                "certain",
                (ps(one), "memory {pid}"),
                size,
            )
            for one, size in self._largest(rows, held, total)
        ]

    def _heaps(self, total: int) -> list[Finding]:
        rows = self._scene.first.rows
        sizes = self._scene.viewer.heaps(rows).astype(np.float64)
        # The mailbox of a process with a long one is a finding of its own.
        sizes[rows["mailbox"] >= _LONG] = 0
        return [
            Finding(
                "memory",
                "warning",
                subject(one),
                (
                    who(one),
                    (
                        f" has heaps of {size / 1e6:,.0f} MB, "
                        f"{100 * size / total:.0f} % of the VM's memory"
                    ),
                    *where(one),
                ),
                {"bytes": int(size), "share": round(size / total, 4)},
                "certain",
                (ps(one),),
                size,
            )
            for one, size in self._largest(rows, sizes, total)
        ]

    def _largest(
        self, rows: NDArray[np.void], sizes: NDArray[np.float64], total: int
    ) -> list[tuple[Involved, float]]:
        order = np.argsort(-sizes, kind="stable")[:SHOWN]
        order = order[(sizes[order] >= LARGE) & (sizes[order] >= SHARE * total)]
        return list(zip(self._scene.involved(rows[order]), sizes[order].tolist(), strict=True))

    def _fragmented(self, allocators: tuple[Allocator, ...]) -> list[Finding]:
        made = []
        for one in allocators:
            empty = one.carriers - one.blocks
            if empty < _EMPTY or empty < _EMPTY_SHARE * one.carriers:
                continue
            share = empty / one.carriers
            text = (
                (
                    f"the allocator {one.name} keeps {one.carriers / 1e6:,.0f} MB of carriers for "
                    f"{one.blocks / 1e6:,.0f} MB of blocks: {100 * share:.0f} % of them is empty"
                ),
            )
            evidence: Evidence = {"used": one.blocks, "limit": one.carriers}
            evidence |= {"bytes": empty, "share": round(share, 4)}
            about: Subject = {"what": one.name}
            following = ("memory {pid}",)
            made.append(
                Finding(
                    *("fragmentation", "warning", about, text, evidence, "certain"),
                    following,
                    empty,
                )
            )
        return made

    def _outside(self, allocators: tuple[Allocator, ...]) -> list[Finding]:
        status = read_bounded(f"/proc/{self._scene.target.pid}/status")
        resident = 1024 * (status_number(status, "RssAnon") or 0)
        carriers = sum(one.carriers for one in allocators)
        outside = resident - carriers
        if outside < 2 * _EMPTY or outside < SHARE * resident:
            return []
        text = (
            (
                f"{outside / 1e6:,.0f} of {resident / 1e6:,.0f} MB of anonymous resident memory "
                "are not of the VM's allocators: native libraries or the C library hold it"
            ),
        )
        evidence: Evidence = {"bytes": outside, "used": carriers, "limit": resident}
        about: Subject = {"what": "vm"}
        return [Finding("outside", "warning", about, text, evidence, "likely", ("memory {pid}",))]


class Supervisors:
    """
    Supervisors that restart their children again and again.

    A supervisor keeps the times of the restarts within its period in the field *restarts* of its
    state, ``{state,Name,Strategy,Children,Dynamics,Intensity,Period,Restarts,...}`` (OTP-25.2.3
    lib/stdlib/src/supervisor.erl). That lies on its stack while it idles.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        #: By pid term.
        self._found: dict[int, Restarts] = {}
        self._slots = self._supervisors()

    def look(self) -> None:
        """Read the states of supervisors that idle now; one that restarts seldom does."""
        scene = self._scene
        rows = scene.table.at(self._slots).rows
        for pid, found in restarts(scene.viewer, rows).items():
            if pid not in self._found or found.times > self._found[pid].times:
                self._found[pid] = found

    def _supervisors(self) -> NDArray[np.int64]:
        """Slots of the supervisors at the beginning; proc_lib notes what they run."""
        rows = self._scene.first.rows
        rows = rows[rows["dictionary"] != 0]
        calls = self._scene.viewer.names.initial_calls(rows)
        here = [call is not None and call[0] == "supervisor" for call in calls]
        slots: NDArray[np.int64] = rows["slot"][np.array(here, np.bool_)].astype(np.int64)
        return slots[:_SUPERVISORS]

    def findings(self) -> list[Finding]:
        """Supervisors with many restarts, those with most of them first."""
        many = [(pid, found) for pid, found in self._found.items() if found.times >= _RESTARTS]
        many.sort(key=lambda one: -one[1].times)
        self._scene.more["crash_loop"] += len(many[SHOWN:])
        return [one for pid, found in many[:SHOWN] if (one := self._of(pid, found))]

    def _of(self, pid: int, found: Restarts) -> Finding | None:
        scene, rows = self._scene, self._scene.rows_of([pid])
        if not len(rows):
            return None
        (one,) = scene.involved(rows)
        children = scene.last.rows[scene.last.rows["parent"] == pid]
        calls = Counter(map(str, filter(None, scene.viewer.names.initial_calls(children))))
        named = calls.most_common(1)
        text = (
            who(one),
            f" restarted children {found.times:,} times",
            " or more" if found.cut else "",
            f" within {found.period} s",
            *((", such as ", Name("initial_call", named[0][0])) if named else ()),
        )
        evidence: Evidence = {"count": found.times, "seconds": float(found.period)}
        evidence["per_second"] = round(found.times / max(1, found.period), 2)
        evidence["processes"] = scene.involved(children)
        following = ("trace {pid} --events exit --stream --duration 3",)
        about = subject(one)
        return Finding(
            "crash_loop", "warning", about, text, evidence, "certain", following, found.times
        )


class Restarts(NamedTuple):
    """Restarts of a supervisor's children within its period."""

    times: int
    #: Seconds.
    period: int
    #: Whether there may be more than were counted.
    cut: bool


def restarts(viewer: Viewer, rows: NDArray[np.void]) -> dict[int, Restarts]:
    """
    How often the supervisors of *rows* restarted children, by pid term, of those that show it now.

    Bounded however many supervisors and restarts there are: _STACK words of each stack, _CELLS
    restarts of all together.
    """
    memory = viewer.target.memory
    sizes = np.minimum(rows["stack_words"], _STACK) * np.uint64(_WORD)
    stacks, _ = memory.gather_ragged(rows["stop"], sizes)
    counts = [len(one) // _WORD for one in stacks]
    owners = np.repeat(np.arange(len(rows)), counts)
    words = np.frombuffer(b"".join(stacks), np.uint64)
    boxed = words & np.uint64(3) == BOXED
    owners, words = owners[boxed], words[boxed]
    raw, read = memory.gather(words & np.uint64(POINTER_MASK), _STATE)
    fields = raw.view(np.uint64)
    header = fields[:, 0]
    read &= (header & np.uint64(0x3F) == 0) & (header >= 9 << 6) & (header <= _STATE_WORDS << 6)
    read &= (fields[:, 6] & np.uint64(_SMALL) == _SMALL) & (fields[:, 7] & _SMALL == _SMALL)
    tags = {tag: is_atom(tag) and viewer.atoms.text(tag) for tag in set(fields[read, 1].tolist())}
    read[read] = [tags[tag] == "state" for tag in fields[read, 1].tolist()]
    # Of one process the innermost, which is the first.
    found, first = np.unique(owners[read], return_index=True)
    lists, periods = fields[read, 8][first], fields[read, 7][first]
    lengths, cut = _lengths(viewer, lists)
    return {
        int(rows["id"][owner]): Restarts(count, small(period), is_cut)
        for owner, count, period, is_cut in zip(
            found.tolist(), lengths.tolist(), periods.tolist(), cut.tolist(), strict=True
        )
    }


def _lengths(
    viewer: Viewer, terms: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The lengths of lists of small integers, _CELLS of all together, and which may be longer."""
    lengths, left = np.zeros(len(terms), np.int64), _CELLS
    going = np.arange(len(terms))
    while left > 0:
        going = going[terms & np.uint64(3) == LIST]
        terms = terms[terms & np.uint64(3) == LIST]
        if not len(going):
            break
        cells, read = viewer.target.memory.gather(terms & np.uint64(POINTER_MASK), 2 * _WORD)
        heads, tails = cells.view(np.uint64).T
        read &= heads & np.uint64(_SMALL) == _SMALL
        going, terms = going[read], tails[read]
        lengths[going] += 1
        left -= len(read)
    cut = np.zeros(len(lengths), np.bool_)
    cut[going] = terms & np.uint64(3) == LIST
    return lengths, cut
