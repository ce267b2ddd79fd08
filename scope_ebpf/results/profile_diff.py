# SPDX-License-Identifier: Apache-2.0
"""
Two recorded profiles compared: shares of time, their differences, and what chance could do.

Differences are of shares, in parts of 1, so profiles of different length can be compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scope_ebpf.results.profile import Frame

#: Samples of a function above which the normal distribution stands in for the exact test.
_MANY = 1000
#: A row whose most unequal split of its samples is more likely than this shows nothing.
_LIKELY = 0.05


class Weighted(NamedTuple):
    """One stack of a recorded profile, with all samples that met it."""

    #: From the outermost frame to the innermost.
    stack: tuple[Frame, ...]
    #: The time that it stands for, ns.
    weight: float
    #: Samples that met it; None where the format does not say.
    samples: int | None


class Recorded(NamedTuple):
    """A profile that was read from a file."""

    name: str
    stacks: list[Weighted]
    #: Sum over the samples of the squares of their weights, ns².
    squares: float

    @property
    def total(self) -> float:
        """The time of all stacks, ns."""
        return math.fsum(each.weight for each in self.stacks)

    @property
    def samples(self) -> int | None:
        """How many samples there are; None where the format does not say."""
        counts = [each.samples for each in self.stacks]
        return None if None in counts else sum(filter(None, counts))

    @property
    def equal_samples(self) -> float | None:
        """
        How many samples of equal weight say as much as these do (Kish's effective size).

        None where the number of samples is not known.
        """
        if self.samples is None:
            return None
        return self.total**2 / self.squares if self.squares else 0.0

    @property
    def waits(self) -> bool:
        """Whether it is of waiting, as against CPU time."""
        return any(stack[-1].kind == "wait" for stack, _, _ in self.stacks)


class Difference(NamedTuple):
    """A function or process in both profiles. Shares are parts of 1."""

    name: str
    kind: str
    before: float
    after: float
    #: Change of the share with all that was called; None for processes and native functions.
    total_change: float | None
    #: How likely chance alone makes such a difference in one of the rows; None if unknown.
    probability: float | None

    @property
    def change(self) -> float:
        """How much the share grew."""
        return self.after - self.before


def processes(before: Recorded, after: Recorded) -> list[Difference]:
    """The outermost frames, the largest change first."""
    return _compare(before, after, lambda stack: stack[0])


def functions(before: Recorded, after: Recorded) -> list[Difference]:
    """
    Every Erlang function by the time at its own, the largest change first.

    Its own time has that of native code that it called.
    """
    rows = _compare(before, after, _innermost_erlang)
    left, right = _shares(before, _erlang), _shares(after, _erlang)
    change = {key: right[key] - left[key] for key in left.keys() | right.keys()}
    found = {row.name for row in rows}
    own = [row._replace(total_change=change[row.name, "erlang"]) for row in rows]
    # Those that only call others have no time at their own.
    rest = [
        Difference(name, kind, 0.0, 0.0, value, None)
        for (name, kind), value in change.items()
        if name not in found
    ]
    return own + sorted(rest, key=lambda row: (_falling(row.total_change or 0), row.name))


def innermost(before: Recorded, after: Recorded) -> list[Difference]:
    """Innermost frames that are not Erlang code, the largest change first."""
    kinds = ("native", "kernel", "wait")
    return _compare(before, after, lambda stack: stack[-1] if stack[-1].kind in kinds else None)


def _innermost_erlang(stack: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in reversed(stack) if frame.kind == "erlang"), None)


def _erlang(stack: Sequence[Frame]) -> Iterable[tuple[str, str]]:
    return {(frame.name, frame.kind) for frame in stack if frame.kind == "erlang"}


def _shares(
    recorded: Recorded, of: Callable[[Sequence[Frame]], Iterable[tuple[str, str]]]
) -> defaultdict[tuple[str, str], float]:
    """The share of each name and kind that *of* gives of a stack."""
    total = recorded.total or 1.0
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for stack, weight, _ in recorded.stacks:
        for key in of(stack):
            found[key] += weight
    for key in found:
        found[key] /= total
    return found


def _compare(
    before: Recorded, after: Recorded, chosen: Callable[[Sequence[Frame]], Frame | None]
) -> list[Difference]:
    """Compare the frames that *chosen* gives, one or none for each stack."""

    def of(stack: Sequence[Frame]) -> Iterable[tuple[str, str]]:
        frame = chosen(stack)
        return () if frame is None else ((frame.name, frame.kind),)

    left, right = _shares(before, of), _shares(after, of)
    rows = [
        Difference(name, kind, left[name, kind], right[name, kind], None, None)
        for name, kind in left.keys() | right.keys()
    ]
    sizes = before.equal_samples, after.equal_samples
    if sizes[0] is not None and sizes[1] is not None:
        rows = _with_probabilities(rows, (sizes[0], sizes[1]))
    return sorted(rows, key=lambda row: (_falling(row.change), row.name, row.kind))


def _falling(change: float) -> float:
    """The key that puts large changes first, and equal ones together whatever their rounding."""
    return -round(abs(change), 9)


def _with_probabilities(rows: list[Difference], sizes: tuple[float, float]) -> list[Difference]:
    """Corrected (Bonferroni, Tarone) for the rows that have samples enough to show anything."""
    smaller = min(sizes) / (sum(sizes) or 1.0)
    hits = [row.before * sizes[0] + row.after * sizes[1] for row in rows]
    enough = [smaller**count <= _LIKELY for count in hits]
    tests = sum(enough)
    return [
        row._replace(
            probability=min(1.0, tests * chance((row.before, row.after), sizes)) if tested else 1.0
        )
        for row, tested in zip(rows, enough, strict=True)
    ]


def chance(shares: tuple[float, float], sizes: tuple[float, float]) -> float:
    """
    The probability of a difference as unlikely as this one, or more, if both shares were equal.

    *shares* are parts of 1 of *sizes* samples. Fisher's exact test; of many samples its normal
    approximation.
    """
    first, second = round(sizes[0]), round(sizes[1])
    # A share is a sum of floats: it may be a little below 0 or above 1.
    hits = [
        min(size, max(0, round(share * size)))
        for share, size in zip(shares, (first, second), strict=True)
    ]
    if sum(hits) > (first + second) / 2:
        hits = [first - hits[0], second - hits[1]]
    if not first or not second or not sum(hits):
        return 1.0
    return _normal(hits, (first, second)) if sum(hits) > _MANY else _exact(hits, (first, second))


def _exact(hits: Sequence[int], sizes: tuple[int, int]) -> float:
    both = sum(hits)
    low, high = max(0, both - sizes[1]), min(both, sizes[0])
    logs = {
        k: _log_choose(sizes[0], k) + _log_choose(sizes[1], both - k) for k in range(low, high + 1)
    }
    whole = _log_choose(sum(sizes), both)
    limit = logs[hits[0]] + 1e-7
    return min(1.0, math.fsum(math.exp(log - whole) for log in logs.values() if log <= limit))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _normal(hits: Sequence[int], sizes: tuple[int, int]) -> float:
    pooled = sum(hits) / sum(sizes)
    error = math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
    return math.erfc(abs(hits[0] / sizes[0] - hits[1] / sizes[1]) / error / math.sqrt(2))
