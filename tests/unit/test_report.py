# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest

from scope_ebpf.plan import Attachment, Item
from scope_ebpf.sinks.report import duration, print_report
from scope_ebpf.summary import Cost, EventSummary, Histogram, Summary

TARGET = {
    "pid": 4711,
    "exe": "/usr/lib/erlang/erts-13.1.5/bin/beam.smp",
    "node": "shop@web1",
    "otp_release": "25",
    "erts_version": "13.1.5",
    "flavor": "jit",
    "schedulers": 2,
}


def seen(event: str, **counts) -> EventSummary:
    return EventSummary(
        Item(event, "symbol", "f", (Attachment("p", "f", "f", 1, 1),), ""), **counts
    )


def slots(**counts: int) -> tuple[int, ...]:
    return tuple(counts.get(f"s{n}", 0) for n in range(40))


def text(**changed) -> str:
    given = {
        "target": TARGET,
        "duration_seconds": 10.0,
        "stopped_because": "duration",
        "events": {
            "spawn": seen("spawn", count=200_000),
            "exit": seen("exit", count=12, by_class={"normal": 7, "shutdown": 0, "killed": 5}),
            "gc": seen(
                "gc",
                count=7,
                lost=3,
                refused=1,
                by_class={"minor": 7, "major": 0},
                histograms={"minor": Histogram(2.5e-05, slots(s10=3, s12=4))},
            ),
            "dist_busy": EventSummary(
                Item("dist_busy", "unavailable", "", (), "erts_suspend is [not] there")
            ),
        },
        "cost": Cost(1234567, 0.0125, 0.0314),
        "notes": ("a second trace",),
    }
    output = io.StringIO()
    print_report(Summary(**{**given, **changed}), output)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def test_the_report_is_this_text():
    """
    The whole report: the target, the table, the histograms, what is not available, the last words.
    """
    assert WHOLE.strip("\n") == text()


WHOLE = """
shop@web1 (pid 4711): OTP 25, erts 13.1.5, jit, 2 schedulers

event     total   per second   lost   of which
────────────────────────────────────────────────────────
spawn   200,000     20,000.0      0
exit         12          1.2      0   normal 7, killed 5
gc            7          0.7      3   minor 7, unread 1

gc minor: 7, mean 3.57 us, in all 25 us
   1.02 us .. 2.05 us             3 |########################        |
   2.05 us .. 4.1 us              0 |                                |
    4.1 us .. 8.19 us             4 |################################|

not available
  dist_busy: erts_suspend is [not] there

note: a second trace
stopped: duration, after 10.0 s
lost: 3 records
cost: 1,234,567 hits, 0.013 s of CPU, 3.1% of the target's
"""


def test_the_report_fits_80_columns():
    """
    No line of a report in a file or a pipe is wider than 80 columns.
    """
    assert max(len(line) for line in text().splitlines()) <= 80


def test_a_report_in_a_file_has_no_colours():
    """
    Where the output is no terminal there is no escape sequence in it.
    """
    assert "\x1b" not in text()


def test_markup_in_a_node_name_is_text():
    """
    A node that calls itself like markup is shown by its name, and colours nothing.
    """
    line = text(target={**TARGET, "node": "[red]x[/red]@host"}).splitlines()[0]
    assert "[red]x[/red]@host (pid 4711): OTP 25, erts 13.1.5, jit, 2 schedulers" == line


def test_control_characters_of_a_node_name_do_not_reach_the_terminal():
    """
    An escape sequence in the name of a node is not printed as one.
    """
    assert "\x1b" not in text(target={**TARGET, "node": "\x1b]0;x\x07@host"})


def test_a_node_without_a_name_is_called_that():
    """
    A VM whose node has no name that we could read is named so.
    """
    line = text(target={**TARGET, "node": None}).splitlines()[0]
    assert line.startswith("a node without a name (pid 4711)")


def test_an_unknown_share_is_not_shown():
    """
    Where the target's CPU time is not known the cost is told without a share of it.
    """
    last = text(cost=Cost(5, 0.001, None)).splitlines()[-1]
    assert "cost: 5 hits, 0.001 s of CPU" == last


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 ns"),
        (1e-9, "1 ns"),
        (1.024e-06, "1.02 us"),
        (0.0012, "1.2 ms"),
        (1.0, "1 s"),
        (61, "61 s"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, expected: str):
    """
    Durations have three digits and the unit in which they are a number of 1 or more.
    """
    assert expected == duration(seconds)
