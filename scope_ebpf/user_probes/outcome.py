# SPDX-License-Identifier: Apache-2.0
"""The results of a run of a user's probe."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """
    What a probe has seen, lost and cost.
    """

    #: Why the run ended.
    stopped: str = ""
    #: How long it took.
    seconds: float = 0.0
    #: Events that were written.
    events: int = 0
    #: Events that found no room in the ring.
    lost: int = 0
    #: Reads of the VM's memory that failed.
    unread: int = 0
    #: Counts that found no room in their table.
    full: int = 0
    #: Hits of all functions; None if they are not counted.
    hits: int | None = 0
    #: CPU seconds of the VM that the probe took; None if hits are not counted.
    cost_seconds: float | None = 0.0
    #: The part that this is of the CPU that the VM used; None if that is not known.
    cost_share: float | None = None
    #: Whether the kernel measured the programs. If not, the time that the probe itself ran is not
    #: in *cost_seconds*.
    measured: bool = True
    #: The keys, ctypes structures, and counts of each ``BEAM_COUNT``.
    counts: dict[str, list[tuple[object, int]]] = field(default_factory=dict)
    #: Total seconds and slots (see ``summary.Histogram``) of each ``BEAM_HISTOGRAM``.
    histograms: dict[str, tuple[float, tuple[int, ...]]] = field(default_factory=dict)
