# SPDX-License-Identifier: Apache-2.0
"""Looks at what a VM holds: once, or twice to see what grows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.runs.loop import target_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target

_Reading = TypeVar("_Reading")


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
