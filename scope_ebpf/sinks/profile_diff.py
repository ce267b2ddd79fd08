# SPDX-License-Identifier: Apache-2.0
"""Two recorded profiles side by side: as tables, collapsed stacks, or both in one viewer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf.results.profile import Sample
from scope_ebpf.results.profile_diff import functions, innermost, processes
from scope_ebpf.sinks.folded import folded_stack
from scope_ebpf.sinks.plain import plain
from scope_ebpf.sinks.speedscope import document, page

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from scope_ebpf.results.profile_diff import Difference, Recorded

#: Rows of the table of functions, and of each other one.
FUNCTIONS = 20
OTHERS = 10
_LEAST = 0.001
#: Letters of a name that are printed.
_LONGEST = 300


def print_difference(before: Recorded, after: Recorded, output: TextIO) -> None:
    """Print what is compared, the tables, and what P stands on."""
    for label, recorded in (("before:", before), ("after: ", after)):
        name, seconds = plain(recorded.name), recorded.total / 1e9
        output.write(f"{label} {name}; {_samples_of(recorded)} stand for {seconds:.2f} s\n")
    outside = "WHY" if before.waits else "OUTSIDE ERLANG CODE"
    _table("PROCESS", processes(before, after), OTHERS, output, total=False)
    _table("ERLANG FUNCTION", functions(before, after), FUNCTIONS, output, total=True)
    _table(outside, innermost(before, after), OTHERS, output, total=False)
    output.write("\n" + _note(before, after) + "\n")


def _samples_of(recorded: Recorded) -> str:
    return "samples" if recorded.samples is None else f"{recorded.samples:,} samples"


def _note(before: Recorded, after: Recorded) -> str:
    if before.equal_samples is None or after.equal_samples is None:
        return "P is not known: collapsed stacks do not say how many samples they are of"
    return (
        "P: how likely chance alone makes a difference as large in any row of its table, by the\n"
        "   number of samples; below 0.05 something has changed"
    )


def _table(heading: str, rows: list[Difference], most: int, output: TextIO, *, total: bool) -> None:
    more = f" {'TOTAL':>7}" if total else ""
    output.write(f"\n{'BEFORE%':>7} {'AFTER%':>7} {'DIFF':>7}{more} {'P':>6}  {heading}\n")
    for row in rows[:most]:
        numbers = f"{100 * row.before:7.1f} {100 * row.after:7.1f} {100 * row.change:+7.1f}"
        if total:
            numbers += f" {100 * (row.total_change or 0):+7.1f}"
        name = row.name if len(row.name) <= _LONGEST else f"{row.name[:_LONGEST]}.."
        text = f"{numbers} {_probability(row.probability):>6}  {plain(name)}"
        text += f" [{row.kind}]" if row.kind in ("native", "kernel") else ""
        output.write(text + "\n")
    if len(rows) > most:
        output.write(f"({len(rows) - most} more)\n")


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    return f"<{_LEAST}" if value < _LEAST else f"{value:.3f}"


def folded(before: Recorded, after: Recorded) -> bytes:
    """
    Give ``stack 1200 900``, microseconds before and after, as tools for differences read it.

    The times are of profiles that may differ in length.
    """
    times: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for found, recorded in zip(times, (before, after), strict=True):
        for stack, weight, _ in recorded.stacks:
            found[folded_stack(stack)] += round(weight / 1000)
    return "".join(
        f"{stack} {times[0][stack]} {times[1][stack]}\n" for stack in sorted(times[0] | times[1])
    ).encode()


def speedscope(before: Recorded, after: Recorded) -> bytes:
    """Give both profiles in one document; the viewer changes between them."""
    return document(
        _title(before, after),
        [(f"before: {before.name}", _samples(before)), (f"after: {after.name}", _samples(after))],
    )


def html(before: Recorded, after: Recorded) -> bytes:
    """Give both profiles in one page; MissingPackageError if there is no viewer."""
    return page(_title(before, after), speedscope(before, after))


def _title(before: Recorded, after: Recorded) -> str:
    return f"{before.name} and {after.name}"


def _samples(recorded: Recorded) -> list[Sample]:
    return [Sample(0, "", stack, round(weight)) for stack, weight, _ in recorded.stacks]


#: By the ending of a file's name.
WRITERS: dict[str, Callable[[Recorded, Recorded], bytes]] = {
    ".json": speedscope,
    ".html": html,
    ".folded": folded,
}
