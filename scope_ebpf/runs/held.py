# SPDX-License-Identifier: Apache-2.0
"""Looks at what a VM holds: once, or twice to see what changes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.runs.loop import target_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

_Reading = TypeVar("_Reading")


class Rows(Protocol):
    """What one look has read."""

    @property
    def rows(self) -> NDArray[np.void]:
        """A row for each thing that is held."""

    @property
    def seconds(self) -> float:
        """CPU seconds that the look took."""


_Rows = TypeVar("_Rows", bound=Rows)


@dataclass(frozen=True, slots=True)
class Change(Generic[_Rows]):
    """What is held at the last look, and how fast two figures of each row changed before it."""

    reading: _Rows
    #: Seconds between the looks; 0 for one look.
    seconds: float
    #: Per second, shape ``(n,)``; NaN for what the first look did not see.
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    cpu_seconds: float


def looks(
    target: Target, read: Callable[[], _Reading], duration: float
) -> tuple[_Reading, _Reading | None, float]:
    """
    What *read* reads now and after *duration* seconds, and the seconds between.

    Only one reading, None and 0 where *duration* is 0. Raises what *read* raises, and
    TargetEndedError where the VM ends.
    """
    try:
        before, began = read(), time.monotonic()
        after = None
        seconds = 0.0
        if duration:
            target.identity.wait(duration)
            after = read()
            seconds = time.monotonic() - began
        target.identity.check()
    except NoSuchProcessError as error:
        raise target_ended(target.pid, error, "watched") from error
    return before, after, seconds


def change(
    target: Target,
    read: Callable[[], _Rows],
    duration: float,
    differences: Callable[[NDArray[np.void], NDArray[np.void]], Sequence[NDArray[np.float64]]],
) -> Change[_Rows]:
    """
    What is held after *duration* seconds, by *differences* of the rows of two looks.

    Nothing is known of changes where *duration* is 0. Raises as :func:`looks`.
    """
    before, after, seconds = looks(target, read, duration)
    if after is None:
        unknown = np.full(len(before.rows), np.nan)
        return Change(before, 0.0, unknown, unknown, before.seconds)
    first, second = differences(before.rows, after.rows)
    return Change(after, seconds, first / seconds, second / seconds, before.seconds + after.seconds)
