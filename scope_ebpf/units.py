# SPDX-License-Identifier: Apache-2.0
"""Times as a person writes them, on a command line and in the daemon's config."""

from __future__ import annotations

import re

#: Maximum seconds of a time: clocks do not accept numbers of any size.
MAX_SECONDS = 7 * 24 * 3600.0
_TIME = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|m|h)?\s*", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NAMES = {"ms": "milliseconds", "s": "seconds"}


def seconds(text: str, *, unit: str = "s", least: float = 0.0) -> float:
    """
    Seconds of ``10s``, ``500ms``, ``1m``, ``2h``; a number alone counts in *unit*, ``s`` or ``ms``.

    ValueError, with the reason as its text, for anything else, for less than *least* seconds, and
    for more than a week.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(
            f'a time is written like "10s", "500ms", "1m" or "2h"; a number alone is {_NAMES[unit]}'
        )
    # Times, not divisions: 500ms is 0.5 exactly.
    found = float(match[1]) * _SECONDS[match[2] or unit]
    if found < least:
        raise ValueError(f"it must be {least:g} s at least")
    if found > MAX_SECONDS:
        raise ValueError("it must be a week at most")
    return found
