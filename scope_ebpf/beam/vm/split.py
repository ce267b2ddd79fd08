# SPDX-License-Identifier: Apache-2.0
"""
What the schedulers of a VM spend their time on, from samples: the states of ``msacc``.

Five words of each scheduler are read at random times. Where a BIF, an operation on an ETS table,
or the poll for I/O begins and ends is not in them: the former two count as Erlang code, the latter
as other work.

Sources: as ``schedulers.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.layouts.checks import fields, schedulers
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.processes.table import COLLECTING
from scope_ebpf.beam.vm.schedulers import SLEEP_FLAGS, SLEEPING, SUSPENDED, WAITING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: What a scheduler can be at. ``sleep`` is also that of one that is not online.
STATES = ("erlang", "gc", "nif", "port", "other", "busy_wait", "sleep")
#: Standard deviations of a 95 % interval.
_SIGMAS = 1.96


class Shares(NamedTuple):
    """The states of one scheduler."""

    samples: int
    #: By state, for each of STATES; the sum is 1.
    shares: dict[str, float]
    #: By how much a share may be off, at 95 %: that of the state with the largest error.
    error: float


class Split:
    """Samples the schedulers of *target*. ReadRefusedError where they are not found."""

    def __init__(self, target: Target) -> None:
        self._target = target
        found = schedulers(target)
        self._keys = [(role, n + 1) for role, one in found.items() for n in range(len(one))]
        self._addresses = np.concatenate([*found.values()])
        self._state = np.uint64(target.layout.offset("Process", "state"))
        self._counts = np.zeros((len(self._keys), len(STATES)), np.int64)
        self._rows = np.arange(len(self._keys))

    def sample(self) -> None:
        """Look once at all of them."""
        names = ("ssi", "current_process", "current_port", "current_nif")
        wanted = [(name, np.uint64) for name in names]
        ssi, process, port, nif = fields(
            self._target, self._addresses, "ErtsSchedulerData", *wanted
        )
        flags = self._words(ssi + np.uint64(SLEEP_FLAGS))
        state = np.zeros(len(process), np.uint32)
        state[process != 0] = self._words(process[process != 0] + self._state)
        free = (process == 0) & (port == 0)
        conditions = {
            "port": port != 0,
            "gc": ~free & (state & np.uint32(COLLECTING) != 0),
            "nif": ~free & (nif != 0),
            "erlang": ~free,
            "sleep": flags & np.uint32(SLEEPING | SUSPENDED) != 0,
            "busy_wait": flags & np.uint32(WAITING) != 0,
        }
        numbers = [STATES.index(name) for name in conditions]
        at = np.select([*conditions.values()], numbers, STATES.index("other"))
        self._counts[self._rows, at] += 1

    def take(self) -> dict[tuple[str, int], Shares]:
        """What was sampled since the last time, by kind and number of the scheduler."""
        made = {}
        for key, counts in zip(self._keys, self._counts.tolist(), strict=True):
            samples = sum(counts)
            if samples:
                shares = [count / samples for count in counts]
                # No share is known better than one sample that might have been.
                worst = max(1 / samples, *(share * (1 - share) for share in shares))
                error = min(1.0, _SIGMAS * math.sqrt(worst / samples))
                made[key] = Shares(samples, dict(zip(STATES, shares, strict=True)), error)
        self._counts[:] = 0
        return made

    def _words(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Half a word at each address; 0 where nothing is any more."""
        raw, _ = self._target.memory.gather(addresses, 4)
        return column(raw, 0, np.uint32)
