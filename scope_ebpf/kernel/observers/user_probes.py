# SPDX-License-Identifier: Apache-2.0
"""
A user's compiled probe in one process, from load to detach.

Nothing is pinned: its hooks live as long as the file descriptors of this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
    wait_gone,
)
from scope_ebpf.kernel.bpf.ring import Ring
from scope_ebpf.kernel.bpf.stats import program_stats
from scope_ebpf.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity
    from scope_ebpf.kernel.bpf.compiler import Compiled
    from scope_ebpf.kernel.cost import HitCost


class UserProbeSession(Closing):
    """
    Loads the functions of *probe* and attaches each in the process of *identity*.

    A context manager. NothingToAttachError if any cannot be attached: the results of an incomplete
    probe would be wrong. The *counted* functions count their hits themselves, in the order of
    ``beam_hits``.

    *attachments* are those of each function, by its name. ``ring`` is the ring of its events, of
    type *record*, *ring_bytes* large.
    """

    def __init__(
        self,
        probe: Compiled,
        attachments: Mapping[str, Sequence[Attachment]],
        identity: Identity,
        record: np.dtype[np.void],
        ring_bytes: int,
        *,
        counted: Sequence[str] = (),
        multi: bool | None = None,
    ) -> None:
        self._probe = probe
        self._counted = counted
        self._attachments = attachments
        self._multi = has_multi() if multi is None else multi
        self._attacher = Attacher()
        self._uprobes = Uprobes(identity, self._attacher, multi=self._multi)
        self._programs: dict[str, int] = {}
        self.ring = Ring(probe.map_fd("beam_ring"), ring_bytes, record)

    def _open(self) -> None:
        for function in self._attachments:
            self._programs[function] = self._probe.load(
                function, TRACE_UPROBE_MULTI if self._multi else None
            )
        self._attach()

    def _attach(self) -> None:
        wanted = [(self._programs[name], group) for name, group in self._attachments.items()]
        failed = [error for error in self._uprobes.attach(wanted) if error]
        if failed:
            raise NothingToAttachError(str(failed[0]))

    def hits(self, *, measured: bool) -> dict[str, int] | None:
        """
        Runs of each function: *measured* by the kernel (``stats.measuring``), or its own count.

        None if some function counts no hits.
        """
        if measured:
            return {name: program_stats(fd).runs for name, fd in self._programs.items()}
        if not self._programs.keys() <= set(self._counted):
            return None
        own = dict(zip(self._counted, self._probe.summed("beam_hits"), strict=False))
        return {name: own[name] for name in self._programs}

    def cost(self, hit_cost: HitCost, *, measured: bool) -> float | None:
        """
        Seconds of the target's CPU that hits, and runs if they are *measured*, took until now.

        None if hits are not known.
        """
        hits = self.hits(measured=measured)
        if hits is None:
            return None
        total = 0.0
        for name, fd in self._programs.items():
            returns = any(hook.returns for hook in self._attachments[name])
            total += hits[name] * (hit_cost.returns if returns else hit_cost.entry)
            total += program_stats(fd).seconds if measured else 0.0
        return total

    def error_counters(self) -> list[int]:
        """Numbers of lost events, failed reads, and counts without room (``enum beam_trouble``)."""
        return self._probe.summed("beam_troubles")

    def detach(self) -> None:
        """Remove every breakpoint; returns when the last is out. The maps can still be read."""
        wait_gone(self._uprobes.detach())

    def close(self) -> None:
        """Detach, and give everything back."""
        self.detach()
        self._attacher.close()
        self.ring.close()
        self._probe.close()
