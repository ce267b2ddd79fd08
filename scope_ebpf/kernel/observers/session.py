# SPDX-License-Identifier: Apache-2.0
"""
A plan attached to a target, from load to detach.

Nothing is pinned: programs, maps, links and breakpoints live as long as the file descriptors of
this process, so they also go when it is killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf.attach import allowlist
from scope_ebpf.errors import HostError, NothingToAttachError
from scope_ebpf.kernel.attach.tracepoints import attach_tracepoint
from scope_ebpf.kernel.attach.uprobes import Attacher, wait_gone
from scope_ebpf.kernel.bpf.libbpf import library
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.observers.loaded_plan import Failure, LoadedPlan, by_program

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment, Plan
    from scope_ebpf.kernel.attach.uprobes import Identity, Uprobes
    from scope_ebpf.kernel.bpf.maps import Map
    from scope_ebpf.kernel.bpf.ring import Ring

#: Room for 260,000 records: a quarter of a second of the fastest stream a two-core VM can make.
DEFAULT_RING_BYTES = 16 << 20
#: A ring that no record is written to.
_EMPTY_RING_BYTES = 4096


class Session(Closing):
    """
    Loads what *plan* needs, attaches it to the process of *identity*, and reads its maps.

    A context manager. Hooks that cannot be attached are in ``failures``; if none can,
    entering it raises NothingToAttachError.

    *base* is the load address of the target, *settings* one ``events.SETTINGS`` with ``streamed``
    set, *atoms* one ``events.TARGET`` with the target's atoms, *addresses* the value of
    each symbol that USDT arguments name. *flavor* is the target's; the function probes are
    attached to an interpreter only. *names* are what may be attached to, if not the list of
    ``allowlist``; *multi* forces or forbids uprobe_multi links; *attacher* may be one that others
    use too; *attaching* is called when all is loaded and no hook is attached.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        base: int,
        settings: NDArray[np.void],
        *,
        atoms: NDArray[np.void] | None = None,
        addresses: dict[str, int] | None = None,
        flavor: str = "jit",
        ring_bytes: int = DEFAULT_RING_BYTES,
        names: Collection[str] | None = None,
        multi: bool | None = None,
        attacher: Attacher | None = None,
        attaching: Callable[[], None] | None = None,
    ) -> None:
        self._loaded = LoadedPlan(
            plan,
            identity,
            base,
            settings,
            names=allowlist.names(flavor) if names is None else names,
            atoms=atoms,
            addresses=addresses,
            ring_bytes=ring_bytes if int(settings["streamed"]) else _EMPTY_RING_BYTES,
            multi=multi,
        )
        self.failures: list[Failure] = []
        self._attacher, self._own_attacher = attacher, attacher is None
        self._attaching = attaching
        self._links: list[int] = []
        self._uprobes: Uprobes | None = None
        #: The attacher's number of each program that is attached by breakpoints.
        self._numbers: dict[str, int] = {}

    def _open(self) -> None:
        self._attacher = self._attacher or Attacher()  # starts while the programs are loaded
        self._loaded.load()
        if self._attaching:
            self._attaching()
        self._attach(self._attacher)

    def _attach(self, attacher: Attacher) -> None:
        ready: list[tuple[int, list[Attachment]]] = []
        for program, group in by_program(self._loaded.plan.attachments).items():
            try:
                if group[0].tracepoint:
                    owner = self._loaded.programs.objects[group[0].family]
                    self._links.append(attach_tracepoint(owner.programs[program], group[0].name))
                    continue
                for attachment in group:
                    self._loaded.describe(attachment)
                ready.append(self._loaded.ready(group))
            except (HostError, KeyError) as error:
                self.failures += [Failure(attachment, str(error)) for attachment in group]
        self._uprobes = self._loaded.uprobes(attacher)
        results = self._uprobes.attach(ready)
        for (_, group), failed in zip(ready, results, strict=True):
            if failed:
                self.failures += [Failure(attachment, str(failed)) for attachment in group]
        programs = [
            g[0].program for (_, g), failed in zip(ready, results, strict=True) if not failed
        ]
        self._numbers = dict(zip(programs, self._uprobes.numbers, strict=True))
        if not self._uprobes and not self._links:
            raise NothingToAttachError(f"no hook could be attached: {self.failures[0].reason}")

    @property
    def ring(self) -> Ring:
        """The ring of records."""
        return self._loaded.programs.ring

    def map(self, name: str, key: np.dtype[Any], value: np.dtype[Any]) -> Map:
        """A map of the plan's first family, with its types."""
        return self._loaded.programs.map(name, key, value)

    def tallies(self) -> NDArray[np.void]:
        """Counts from the start, shape ``(kinds, classes, cpus)`` of ``events.COUNTERS``."""
        return self._loaded.by_kind("counters")

    def durations(self) -> NDArray[np.void]:
        """Histograms from the start, shape ``(kinds, classes, cpus)`` of ``events.HISTOGRAM``."""
        return self._loaded.by_kind("histograms")

    def crashes(self) -> list[tuple[NDArray[np.void], int]]:
        """Each group of crashes, an ``events.CRASH``, and how many were seen of it."""
        return self._loaded.crashes()

    def hits(self) -> dict[str, int]:
        """Number of runs of each program on the target, by its name."""
        return self._loaded.hits()

    def count(self, *, on: bool) -> None:
        """Count events from now on, or no longer: for all hooks at one moment."""
        self._loaded.count(on=on)

    def release(self, names: Collection[str]) -> None:
        """Remove the hooks of the events *names*; returns when they are out."""
        if self._uprobes is None:
            return
        items = [item for item in self._loaded.plan.items if item.event in names]
        programs = {a.program for item in items for a in item.attachments}
        numbers = [self._numbers.pop(p) for p in programs if p in self._numbers]
        wait_gone(self._uprobes.remove(numbers))

    def detach(self) -> None:
        """Remove every hook; the maps can still be read."""
        while self._links:
            library().bpf_link__destroy(self._links.pop())
        if self._uprobes:
            wait_gone(self._uprobes.detach())

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self.detach()
        self._loaded.close()
        if self._attacher and self._own_attacher:
            self._attacher.close()
            self._attacher = None
