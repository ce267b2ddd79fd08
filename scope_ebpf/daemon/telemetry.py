# SPDX-License-Identifier: Apache-2.0
"""
The hooks of one target's telemetry: attached and detached by the loop, within a part of its budget.

No memory but the VM's counters is read here. Where events are seen, what they are called and what
their labels are is found by the thread of ``readings/telemetry.py``, which gives an :class:`Offer`
and takes what was counted.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.telemetry.encoding import other_row
from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.kernel.observers.telemetry_watch import TelemetryWatch, Work
from scope_ebpf.metrics.telemetry import KINDS, REFUSED, Span, kind_of
from scope_ebpf.runs.telemetry_hooks import Armed, Lookups
from scope_ebpf.runs.telemetry_windows import Observation, Vm

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.budget.reference_counters import ReferenceCounters
    from scope_ebpf.budget.strata import Estimate
    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.observers.thread_watch import WorkClock
    from scope_ebpf.telemetry.specs import Spec

    #: A TELEMETRY_EVENT and its TELEMETRY_SPEC.
    Specified = tuple[NDArray[np.void], NDArray[np.void]]

#: The part of a target's budget that these hooks may take.
SHARE = 0.3
#: Rows that the kernel counts at a time; those that were idle go when more than half are used.
ROWS = 1024
#: Seconds until the first harvest, and between two, at least; between two looks at what hooks take.
_FIRST, _INTERVAL, _TURN = 1.0, 5.0, 0.1
#: The bytes of a row by which the counts of a kind are known; no row of the kernel has its size.
_KIND_KEYS = {kind: kind.encode() for kind in KINDS}
#: Works that are counted apart at a time; those that were idle go when more than half are used.
WORKS = events.MAX_WORK_ROWS - 2
#: What is before the number of one where samples of it are counted.
_WORK_KEY = b"work"
_NOTHING = np.zeros((), events.TELEMETRY_TOTALS)[()]


class Offer(NamedTuple):
    """What a target's hooks are made of."""

    #: One ``events.TELEMETRY_SETTINGS``.
    settings: NDArray[np.void]
    #: The functions at which events are seen; without one breakpoints are at *addresses*.
    hooks: Sequence[Attachment]
    #: Number N is ``specs[N - 1]``; 0 is all events without one.
    specs: Sequence[Spec]
    #: What is known of events now.
    specified: Sequence[Specified]
    addresses: Sequence[int] = ()


class Crop(NamedTuple):
    """What was counted in a span of time: by row its estimate, and the growth of its totals."""

    #: ``TELEMETRY_ROW`` and ``TELEMETRY_TOTALS``, shapes ``(rows,)``.
    rows: NDArray[np.void]
    growth: NDArray[np.void]
    estimates: Sequence[Estimate]
    span: Span
    #: Seconds of CPU, each with the TELEMETRY_ROW of what was worked on, or its number WORK_*.
    work: Sequence[tuple[np.void | int, float]] = ()


class _Counting:
    """What an Observation counts with: rows of the kernel, sums of them by kind, and samples."""

    def __init__(
        self, watch: TelemetryWatch, specs: Sequence[Spec], *, samples: bool = False
    ) -> None:
        self._watch, self._has_samples = watch, samples
        self.start, self.release, self.counts = watch.start, watch.release, watch.counts
        kinds = [kind_of(""), *(kind_of(spec.name) for spec in specs)]
        self._kinds = np.array([KINDS.index(kind) for kind in kinds])
        #: Events of rows that were removed, by kind: its sum never falls.
        self._removed = np.zeros(len(KINDS))
        self.rows, self.totals = watch.table()
        #: Samples by the number of what was worked on.
        self.samples: dict[int, int] = {}

    def by_row(self) -> dict[bytes, int]:
        """Read all rows: events by row, and by kind."""
        self.rows, self.totals = self._watch.table()
        counts = self.totals["count"].tolist()
        found = {row.tobytes(): n for row, n in zip(self.rows, counts, strict=True)}
        sums = self._removed + self._by_kind(self.rows, self.totals)
        found |= {_KIND_KEYS[kind]: int(n) for kind, n in zip(KINDS, sums, strict=True)}
        self.samples = self._watch.work_samples() if self._has_samples else {}
        return found | {_work_key(number): n for number, n in self.samples.items()}

    def remove(self, rows: NDArray[np.void], totals: NDArray[np.void]) -> None:
        """Remove rows that had these totals when they were read."""
        self._removed += self._by_kind(rows, totals)
        for row in rows:
            self._watch.forget(row.tobytes())

    def _by_kind(self, rows: NDArray[np.void], totals: NDArray[np.void]) -> NDArray[np.float64]:
        numbers, counts = self._kinds[rows["spec"]], totals["count"].astype(np.float64)
        return np.bincount(numbers, counts, len(KINDS)).astype(np.float64)


def _work_key(number: int) -> bytes:
    return _WORK_KEY + number.to_bytes(8)


class TelemetryHooks:
    """
    Counts telemetry events of *target* as *offer* says, for the share *budget* of its CPU.

    *entry* is what a hit takes, seconds; *clock* samples what processes work on. Raises HostError,
    NothingToAttachError and NoSuchProcessError, and is closed then.

    Attributes:
        crop: what was counted, until it is taken; until then nothing more is harvested.
        next_due: when :meth:`run` is due, monotonic seconds.
    """

    def __init__(
        self,
        target: Target,
        offer: Offer,
        counters: ReferenceCounters,
        *,
        attacher: Attacher,
        entry: float,
        budget: float,
        clock: WorkClock | None = None,
    ) -> None:
        self._counters, self._pid = counters, target.pid
        self.crop: Crop | None = None
        #: Totals at the last harvest, and rows that were removed at it.
        self._before: dict[bytes, np.void] = {}
        self._samples_before: dict[int, int] = {}
        self._gone: set[bytes] = set()
        self.next_due = time.monotonic()
        self._due = self.next_due + _FIRST
        self._watch = TelemetryWatch(
            *(target.identity, offer.settings, offer.hooks, ROWS),
            attacher=attacher,
            work=Work(WORKS, events.MAX_OPEN_WORKS, clock) if clock else None,
        )
        self._watch.__enter__()
        try:
            self._counting = _Counting(self._watch, offer.specs, samples=clock is not None)
            self.specify(offer.specified)
            self._armed = Armed(self._watch, target.pid, offer.addresses)
            place = Lookups(self._watch, offer.hooks) if offer.hooks else self._armed
            place.turn = _TURN
            vm = Vm(self._cpu, self._work)
            self._observation = Observation(
                self._counting, [place], vm, entry, min(1.0, SHARE * budget)
            )
            self._observation.begin()
        except BaseException:
            self._watch.close()
            raise

    def specify(self, specified: Sequence[Specified]) -> None:
        """Count events as these specifications say, from now on."""
        for event, spec in specified:
            self._watch.specify(event, spec, other_row(int(spec["number"])))

    def move(self, addresses: Sequence[int]) -> None:
        """Set breakpoints at *addresses* instead, where they see events, at the next run."""
        self._armed.move(addresses)

    def run(self) -> None:
        """Attach and detach what is due; raises as the constructor, and ReadRefusedError."""
        self._observation.look()
        now = time.monotonic()
        if now >= self._due and self.crop is None and self._observation.is_ripe:
            self._harvest()
            self._due = now + _INTERVAL
        self.next_due = time.monotonic() + self._observation.pause

    @property
    def spent(self) -> float:
        """Seconds of the target's CPU that hits took."""
        return self._observation.paid

    def _cpu(self) -> float | None:
        with suppress(OSError):
            return cpu_clock(self._pid)
        return None

    def _work(self) -> int | None:
        with suppress(ReadRefusedError, NoSuchProcessError, OSError):
            return self._counters.now().get("reductions")
        return None

    def _harvest(self) -> None:
        harvest = self._observation.harvest(self._forget_idle)
        rows, totals = self._counting.rows, self._counting.totals
        growth, keys = totals.copy(), [row.tobytes() for row in rows]
        for n, key in enumerate(keys):
            growth[n] = self._before.get(key, _NOTHING)
        for name in _NOTHING.dtype.names or ():
            growth[name] = totals[name] - growth[name]
        grown = np.flatnonzero(growth["count"])
        sums = {kind: harvest.estimates[key] for kind, key in _KIND_KEYS.items()}
        errors = {kind: (found.number, found.error) for kind, found in sums.items()}
        counts = self._watch.counts()
        self.crop = Crop(
            rows[grown],
            growth[grown],
            [harvest.estimates[keys[n]] for n in grown.tolist()],
            Span(harvest.seconds, harvest.ratio, errors, {name: counts[name] for name in REFUSED}),
            [*self._worked(harvest.estimates)],
        )
        pairs = zip(keys, totals, strict=True)
        self._before = {key: total for key, total in pairs if key not in self._gone}
        self._samples_before = self._counting.samples

    def _worked(self, estimates: Mapping[bytes, Estimate]) -> Iterator[tuple[np.void | int, float]]:
        """Seconds of CPU of each work, as :class:`Crop` has them."""
        for key, found in estimates.items():
            if key.startswith(_WORK_KEY) and len(key) == len(_WORK_KEY) + 8 and found.number:
                number = int.from_bytes(key[len(_WORK_KEY) :])
                row = self._watch.work_row(number)
                yield (number if row is None else row), found.number / events.SAMPLE_HZ

    def _forget_idle(self) -> Collection[bytes]:
        """
        Remove rows and works without news since the last harvest, of each if there are many.

        News of one at this very moment may be missing.
        """
        rows, totals = self._counting.rows, self._counting.totals
        self._gone = set()
        if len(rows) > ROWS // 2:
            idle = [
                n
                for n, (row, total) in enumerate(zip(rows, totals, strict=True))
                if row["label"][0] != events.LABEL_OTHER and self._is_idle(row.tobytes(), total)
            ]
            self._counting.remove(rows[idle], totals[idle])
            self._gone |= {row.tobytes() for row in rows[idle]}
        samples = self._counting.samples
        if len(samples) > WORKS // 2:
            for number in samples.keys() - {events.WORK_OUTSIDE, events.WORK_OTHER}:
                if self._samples_before.get(number) == samples[number]:
                    self._watch.forget_work(number)
                    self._gone.add(_work_key(number))
        return self._gone

    def _is_idle(self, key: bytes, total: np.void) -> bool:
        before = self._before.get(key)
        return before is not None and before["count"] == total["count"]

    def close(self) -> None:
        """Detach everything."""
        self._watch.close()
