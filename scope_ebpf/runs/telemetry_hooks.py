# SPDX-License-Identifier: Apache-2.0
"""Where events of telemetry can be seen in a VM, and what a hit there costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from scope_ebpf.beam.code.follow import Follow
from scope_ebpf.beam.telemetry.library import execute
from scope_ebpf.beam.vm.threads import number_of_threads, threads
from scope_ebpf.errors import NothingToAttachError, ScopeError
from scope_ebpf.events import Hook, Variant
from scope_ebpf.kernel.observers.call_watch import BREAKPOINT_SECONDS
from scope_ebpf.planning.planner import symbol_attachments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.telemetry.library import Library
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch

#: What the program takes beside the trap, as a part of what a trap takes: at another lookup, and
#: at an event, whose name, labels and measurements are read (bench/telemetry.py).
_LOOKUP, _EVENT = 0.15, 2.6
#: Seconds between two looks at where the VM's code is, while there are breakpoints, and otherwise.
CODE_TURN, TURN = 0.004, 0.01
#: Looks after code was loaded, until breakpoints stand before the last one.
_CODE_LOOKS = 3
#: Breakpoints that the daemon sets in a VM, at most: each takes two of its files. Threads of a VM
#: that it looks for schedulers among; one with 1,024 of these has 2,200.
_MOST_BREAKPOINTS, _MOST_THREADS = 512, 4096


class Place(Protocol):
    """A way to see every event."""

    #: The function at which events are seen.
    via: str
    #: Seconds between two calls of :meth:`follow`, at most.
    turn: float

    def cost(self, other: float, own: float, entry: float) -> float:
        """
        Seconds of the VM's CPU for *own* events and *other* lookups.

        *entry* is what the trap at a function takes.
        """

    def attach(self) -> None:
        """Attach the hooks; NothingToAttachError, HostError, ReadRefusedError."""

    def follow(self) -> None:
        """Attach to what has come since, such as code that was loaded anew; raises the same."""

    def missed(self) -> float:
        """Seconds in which new code may have run before it was followed."""


class Lookups:
    """The functions by which ``telemetry:execute/3`` looks handlers up, and whatever else does."""

    turn = TURN

    def __init__(self, watch: TelemetryWatch, hooks: Sequence[Attachment]) -> None:
        self._watch = watch
        self.via = " + ".join(hook.name for hook in hooks)

    def cost(self, other: float, own: float, entry: float) -> float:
        """See :class:`Place`."""
        return entry * ((1 + _LOOKUP) * other + (1 + _EVENT) * own)

    def attach(self) -> None:
        """See :class:`Place`."""
        self._watch.attach()

    def follow(self) -> None:
        """Do nothing: these functions stay where they are."""

    def missed(self) -> float:
        """Return 0: as :meth:`follow`."""
        return 0.0


class Breakpoint:
    """
    A hardware breakpoint on ``telemetry:execute/3`` in code that the JIT made.

    NothingToAttachError where there is none, ReadRefusedError where code cannot be read.
    """

    via = "telemetry:execute/3"
    turn = CODE_TURN

    def __init__(self, watch: TelemetryWatch, target: Target, atoms: Atoms) -> None:
        self._watch, self._target = watch, target
        functions, modules, function = execute(target, atoms)
        self._follow = Follow(functions, modules, [function])

    def cost(self, other: float, own: float, entry: float) -> float:
        """See :class:`Place`; other lookups cost nothing, and the stop of the thread most."""
        del other, entry
        return own * BREAKPOINT_SECONDS

    def attach(self) -> None:
        """See :class:`Place`."""
        self._follow.look()
        self._set()

    def follow(self) -> None:
        """Follow code that was loaded: set breakpoints first, then look whether there is more."""
        for _ in range(1 + _CODE_LOOKS):
            if not self._follow.look():
                return
            self._set()

    def missed(self) -> float:
        """See :class:`Place`."""
        return sum(version.gap_ns or 0 for version in self._follow.all) / 1e9

    def _set(self) -> None:
        versions = self._follow.wanted
        tids = [one.tid for one in threads(self._target.pid) if one.role == "normal"]
        self._watch.arm([version.function.address for version in versions], tids)
        self._follow.watch(versions)


class Armed:
    """
    Hardware breakpoints on ``telemetry:execute/3`` at *addresses* that others know.

    They say when there are others, by :meth:`move`, so no memory of process *pid* is read. How many
    threads it has is its own choice: NothingToAttachError for too many.
    """

    via, turn = Breakpoint.via, TURN

    def __init__(self, watch: TelemetryWatch, pid: int, addresses: Sequence[int]) -> None:
        self._watch, self._pid, self._addresses = watch, pid, addresses
        self._has_moved = False

    def move(self, addresses: Sequence[int]) -> None:
        """Others are used from the next call of :meth:`attach` or :meth:`follow` on."""
        self._addresses, self._has_moved = addresses, True

    def cost(self, other: float, own: float, entry: float) -> float:
        """See :class:`Place`; as of :class:`Breakpoint`."""
        del other, entry
        return own * BREAKPOINT_SECONDS

    def attach(self) -> None:
        """See :class:`Place`."""
        self._has_moved = False
        if (there := number_of_threads(self._pid)) > _MOST_THREADS:
            raise NothingToAttachError(f"no breakpoint is set in a VM of {there:,} threads")
        tids = [one.tid for one in threads(self._pid) if one.role == "normal"]
        wanted = len(tids) * len(self._addresses)
        if wanted > _MOST_BREAKPOINTS:
            raise NothingToAttachError(
                f"{wanted:,} breakpoints would be needed, for {len(tids):,} schedulers; "
                f"{_MOST_BREAKPOINTS} may be set"
            )
        self._watch.arm(self._addresses, tids)

    def follow(self) -> None:
        """See :class:`Place`; after :meth:`move`."""
        if self._has_moved:
            self.attach()

    def missed(self) -> float:
        """Return 0: what is missed is not known here."""
        return 0.0


def hooks_of(target: Target, library: Library) -> list[Attachment]:
    """Find where the program of *library* is attached in *target*; none if it hides them."""
    found: list[Attachment] = []
    for name in library.functions:
        hook = Hook(library.program, name)
        variant = Variant("telemetry", "symbol", "telemetry", (hook,))
        found += symbol_attachments(target.binary, variant, hook)
    return found


def places_of(
    target: Target,
    atoms: Atoms,
    watch: TelemetryWatch,
    hooks: Sequence[Attachment],
    via: str | None = None,
) -> list[Place]:
    """
    Every way to see the events of *target*, that by *hooks* first; or that of *via* alone.

    NothingToAttachError where there is none.
    """
    found: list[Place] = [Lookups(watch, hooks)] if hooks else []
    hidden = (
        f"the program of process {target.pid} does not show the functions by which handlers are "
        f"looked up (OTP {target.otp_release} hides its functions)"
    )
    if via == "lookups":
        if not found:
            raise NothingToAttachError(f"telemetry cannot be seen: {hidden}")
        return found
    try:
        found.append(Breakpoint(watch, target, atoms))
    except ScopeError as error:
        if not found:
            raise NothingToAttachError(
                "telemetry cannot be seen: no breakpoint can be set on telemetry:execute/3: "
                f"{error}" + ("" if via else f"; and {hidden}")
            ) from None
    return found
