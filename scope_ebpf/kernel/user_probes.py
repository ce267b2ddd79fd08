# SPDX-License-Identifier: Apache-2.0
"""
A user's compiled probe in one process, from load to detach.

Nothing is pinned: what is attached lives as long as the file descriptors of this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.ring import Ring
from scope_ebpf.kernel.stats import program_stats
from scope_ebpf.kernel.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
    wait_gone,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from scope_ebpf.kernel.compiler import Compiled
    from scope_ebpf.kernel.cost import HitCost
    from scope_ebpf.kernel.uprobes import Identity
    from scope_ebpf.plan import Attachment


class UserProbeSession:
    """
    Loads the functions of *probe* and attaches each to its *places* in the process of *identity*.

    A context manager. What cannot be attached is an error: a probe of which a part is
    missing tells something else than its author wrote.
    """

    def __init__(
        self,
        probe: Compiled,
        places: Mapping[str, Sequence[Attachment]],
        identity: Identity,
        record: np.dtype[np.void],
        ring_bytes: int,
        *,
        multi: bool | None = None,
    ) -> None:
        self._probe = probe
        self._places = places
        self._multi = has_multi() if multi is None else multi
        self._attacher = Attacher()
        self._uprobes = Uprobes(identity, self._attacher, multi=self._multi)
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
        wanted = [(self._programs[name], places) for name, places in self._places.items()]
        failed = [error for error in self._uprobes.attach(wanted) if error]
        if failed:
            raise NothingToAttachError(str(failed[0]))

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
        """Take every breakpoint out; when the last is gone the maps can still be read."""
        wait_gone(self._uprobes.detach())

    def close(self) -> None:
        """Detach, and give everything back."""
        self.detach()
        self._attacher.close()
        self.ring.close()
        self._probe.close()
