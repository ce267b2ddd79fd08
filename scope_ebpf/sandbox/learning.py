# SPDX-License-Identifier: Apache-2.0
"""
What a build with symbols teaches of the functions around some wanted ones. Runs confined.

A reference has the wanted functions, those that they call and are called by, and what these call
and are called by; each with its marks. ``matching`` finds the same functions in another build.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf.sandbox import limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    from scope_ebpf.sandbox.marks import Marks

    #: Name or "", size, instructions, texts, calls, constants, fields. A call is the index of a
    #: row, -1 for a function that has none, or -2 minus the index of the name of another file's.
    Row: TypeAlias = tuple[str, int, int, list[int], list[int], list[list[int]], list[list[int]]]

#: Calls away from a wanted function; functions with more callers are not followed to them.
_STEPS, _HUB = 2, 48
#: The function that has no row.
ELSEWHERE = -1


def learn(marks: Marks, names: Mapping[int, str], wanted: Mapping[str, int]) -> dict[str, object]:
    """
    The reference for the functions *wanted*, names and starts; *names* are of all functions.

    ``rows`` as above, ``called`` names of other files' functions, ``unique`` texts that one
    function only names.
    """
    starts = _near(marks, [start for start in wanted.values() if start in marks.functions])
    index = {start: number for number, start in enumerate(starts)}
    known = {start: name for name, start in wanted.items()}
    called: dict[str, int] = {}
    counts = Counter(t for f in marks.functions.values() for t in set(f.texts))
    rows: list[Row] = []
    unique: set[int] = set()
    for start in starts:
        function, body = marks.functions[start], marks.body(start)
        calls = [
            index.get(call, ELSEWHERE)
            if isinstance(call, int)
            else -2 - called.setdefault(call, len(called))
            for call in function.calls[: limits.LEARNED_CALLS]
        ]
        unique |= {text for text in function.texts if counts[text] == 1}
        name = known.get(start) or names.get(start, "")
        rows.append(
            (
                name[: limits.CALLED],
                marks.starts.sizes[start],
                body.instructions,
                sorted(function.texts)[: limits.LEARNED_MARKS],
                calls,
                _pairs(body.constants),
                _pairs(body.fields),
            )
        )
    return {"rows": rows, "called": list(called), "unique": sorted(unique)}


def _pairs(marks: Counter[int]) -> list[list[int]]:
    """The most frequent marks, each with its number."""
    return [list(pair) for pair in sorted(marks.most_common(limits.LEARNED_MARKS))]


def _near(marks: Marks, wanted: list[int]) -> list[int]:
    """The *wanted* functions and those around them, the nearest first."""
    found = dict.fromkeys(wanted)
    edge = list(found)
    for _ in range(_STEPS):
        following = [near for start in edge for near in _around(marks, start) if near not in found]
        edge = list(dict.fromkeys(following))
        found.update(dict.fromkeys(edge))
        if len(found) > limits.ROWS_LEARNED:
            break
    return list(found)[: limits.ROWS_LEARNED]


def _around(marks: Marks, start: int) -> Iterator[int]:
    for call in dict.fromkeys(marks.functions[start].calls):
        if isinstance(call, int):
            yield call
    callers = marks.callers.get(start, [])
    if len(callers) <= _HUB:
        yield from callers
