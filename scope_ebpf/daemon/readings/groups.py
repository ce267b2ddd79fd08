# SPDX-License-Identifier: Apache-2.0
"""What the programs have counted of one target by names that the VM itself gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.metrics.crashes import CrashSums, CrashTotal
from scope_ebpf.metrics.downs import DownSums, DownTotal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.governed import GovernedSession
    from scope_ebpf.metrics.columns import EventReading

    #: Two names, None for an unknown one, and how many were counted.
    Row = tuple[str | None, str | None, int]

_Total = TypeVar("_Total")


class NamedTotals(Generic[_Total]):
    """
    Totals of *target* by two names; *counted* returns keys with the atoms *fields*, and a count.

    *update* makes totals of all rows. Names are read once: the VM never gives an atom another text.
    """

    def __init__(
        self,
        target: Target,
        counted: Callable[[], list[tuple[NDArray[np.void], int]]],
        fields: tuple[str, str],
        update: Callable[[Iterable[Row]], tuple[_Total, ...]],
    ) -> None:
        self._target, self._counted = target, counted
        self._fields, self._update = fields, update
        self._texts: dict[int, str | None] = {}
        self._seen = 0
        self._last = update(())

    def read(self) -> tuple[_Total, ...]:
        """
        The totals now; those of the last call where names cannot be read.

        Raises NoSuchProcessError and TooMuchError: all that asks for them waits meanwhile, and the
        next reading would wait as long.
        """
        rows = self._counted()
        seen = sum(count for _, count in rows)
        if seen != self._seen and self._names([key for key, _ in rows]):
            self._seen = seen
            first, second = self._fields
            self._last = self._update(
                (self._texts[int(key[first])], self._texts[int(key[second])], count)
                for key, count in rows
            )
        return self._last

    def _names(self, keys: Sequence[NDArray[np.void]]) -> bool:
        """Read the names that are new; False if they cannot be read."""
        wanted = {int(key[field]) for key in keys for field in self._fields}
        missing = wanted - self._texts.keys() - {0}
        try:
            found = Atoms(self._target).texts(missing) if missing else {}
        except (ReadRefusedError, OSError):
            return False
        self._texts |= {0: None} | {index: found.get(index) for index in missing}
        return True


class GroupsReading(NamedTuple):
    """Totals by name; None where their event is not observed by symbol."""

    crashes: tuple[CrashTotal, ...] | None
    downs: tuple[DownTotal, ...] | None


class Groups:
    """Crashes and lost connections of *target*, which the programs of *session* count."""

    def __init__(self, target: Target, session: GovernedSession) -> None:
        self._crashes = NamedTotals(
            target, session.crashes, ("module", "reason"), CrashSums().update
        )
        self._downs = NamedTotals(target, session.downs, ("peer", "reason"), DownSums().update)

    def read(self, events: Mapping[str, EventReading]) -> GroupsReading:
        """Read those of *events*; raises as :meth:`NamedTotals.read` does."""
        return GroupsReading(
            self._crashes.read() if _is_seen(events.get("exit")) else None,
            self._downs.read() if _is_seen(events.get("dist_down")) else None,
        )


def _is_seen(event: EventReading | None) -> bool:
    return event is not None and event.via == "symbol" and event.mode != "off"
