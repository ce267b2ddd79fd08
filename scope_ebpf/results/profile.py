# SPDX-License-Identifier: Apache-2.0
"""
A profile as plain data: stacks, and how much time each stands for.

Each sink makes its own document of it. A stack goes from the outermost frame,
which is a process or a thread, to the innermost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.results.documents import vms

#: Kinds of frames: the process or thread that ran, code, the reason why a process waited.
KINDS = ("process", "thread", "erlang", "native", "kernel", "wait")


class Frame(NamedTuple):
    """One frame."""

    #: M:F/A for Erlang code.
    name: str
    #: One of :data:`KINDS`.
    kind: str
    #: The source file, and the line that ran, where they are known.
    file: str | None = None
    line: int | None = None


class Sample(NamedTuple):
    """One sample."""

    #: CLOCK_MONOTONIC, ns.
    time_ns: int
    #: The name of the thread.
    thread: str
    #: From the outermost frame to the innermost.
    stack: tuple[Frame, ...]
    #: The time that the sample stands for.
    weight_ns: int


class Row(NamedTuple):
    """A row of a table: the time of one function, process or thread."""

    name: str
    #: One of :data:`KINDS`.
    kind: str
    #: Without the functions that it called.
    own_ns: int
    #: With the functions that it called.
    total_ns: int


class Waited(NamedTuple):
    """Processes that did not run at all, and are alike."""

    processes: int
    #: Name, callback module or first function.
    who: str
    #: ``calls`` for those that wait for a server's reply, or one of ``events.WAIT_REASONS``.
    why: str
    #: Where they wait, and which function called that; "" where it is not known.
    function: str
    caller: str
    #: The server; "" for what is no call.
    server: str


@dataclass(slots=True)
class Quality:
    """
    How good the samples of a profile are, as counts of samples.
    """

    #: All that were read.
    samples: int = 0
    #: Those that met a process on its scheduler.
    with_process: int = 0
    #: Those with an Erlang stack down to the first function of the process.
    complete: int = 0
    #: Those with every C frame.
    unwound: int = 0
    #: Those whose memory could not be read.
    failed: int = 0
    #: Those that found no room, or came when the target had ended.
    lost: int = 0


@dataclass(slots=True)
class Profile:
    """
    Samples of one target.
    """

    #: ``cpu`` or ``off-cpu``.
    kind: str
    #: The VM, as JSON.
    target: vms.Target
    #: Samples a second on each CPU; off the CPU, of one process's waiting.
    hz: int
    #: When the profile began, seconds since the epoch.
    started: float
    #: How long it took.
    seconds: float = 0.0
    #: CPU time of the target meanwhile, as the kernel counts it; None if that is not known.
    cpu_seconds: float | None = None
    #: Why it ended.
    stopped_because: str = ""
    samples: list[Sample] = field(default_factory=list)
    quality: Quality = field(default_factory=Quality)
    #: What a reader of the figures should know.
    notes: list[str] = field(default_factory=list)
    #: Off the CPU: those that waited all the time, which are in no sample, and servers among them
    #: that had nothing to do.
    waited: list[Waited] = field(default_factory=list)
    idle: int = 0

    @property
    def title(self) -> str:
        """One line that says what was profiled."""
        node = self.target["node"] or f"process {self.target['pid']}"
        what = "CPU" if self.kind == "cpu" else "waiting"
        return f"{node}: {what}, {self.seconds:.1f} s"

    @property
    def total_ns(self) -> int:
        """The time that all samples stand for."""
        return sum(sample.weight_ns for sample in self.samples)

    def stacks(self) -> Counter[tuple[Frame, ...]]:
        """Time by stack, ns."""
        found: Counter[tuple[Frame, ...]] = Counter()
        for sample in self.samples:
            found[sample.stack] += sample.weight_ns
        return found

    def owners(self) -> list[Row]:
        """The outermost frames, the most time first."""
        found: Counter[tuple[str, str]] = Counter()
        for stack, weight in self.stacks().items():
            found[stack[0].name, stack[0].kind] += weight
        return [Row(name, kind, ns, ns) for (name, kind), ns in found.most_common()]

    def functions(self) -> list[Row]:
        """
        Every Erlang function, the most time at its own first.

        The own time of a function has that of native code that it called: a BIF, a collection.
        """
        own: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for stack, weight in self.stacks().items():
            names = [frame.name for frame in stack if frame.kind == "erlang"]
            if names:
                own[names[-1]] += weight
            for name in set(names):
                total[name] += weight
        ordered = sorted(total, key=lambda name: (-own[name], -total[name], name))
        return [Row(name, "erlang", own[name], total[name]) for name in ordered]

    def innermost(self) -> list[Row]:
        """Innermost frames that are not Erlang code, the most time first."""
        found: Counter[tuple[str, str]] = Counter()
        for stack, weight in self.stacks().items():
            if stack[-1].kind in ("native", "kernel", "wait"):
                found[stack[-1].name, stack[-1].kind] += weight
        return [Row(name, kind, ns, ns) for (name, kind), ns in found.most_common()]


class Node:
    """A frame in the tree of all stacks; *weight* and *own* in ns."""

    __slots__ = ("children", "frame", "own", "weight")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.weight = 0
        self.own = 0
        self.children: dict[Frame, Node] = {}

    def walk(self, depth: int = 0, start: int = 0) -> Iterator[tuple[int, int, Node]]:
        """Every node as (depth, where it begins in ns, node), a parent before its children."""
        waiting = [(depth, start, self)]
        while waiting:
            depth, start, node = waiting.pop()
            yield depth, start, node
            for child in sorted(node.children.values(), key=lambda child: child.frame.name):
                waiting.append((depth + 1, start, child))
                start += child.weight


def tree(profile: Profile, *, lines: bool = False) -> Node:
    """Put all stacks into one tree; with *lines*, each line of a function is a frame of its own."""
    root = Node(Frame("all", "thread"))
    for stack, weight in profile.stacks().items():
        node = root
        node.weight += weight
        for frame in stack:
            key = frame if lines else frame._replace(line=None)
            node = node.children.setdefault(key, Node(key))
            node.weight += weight
        node.own += weight
    return root
