# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest
from rich.console import Console

from scope_ebpf.attach.plan import Attachment, Item
from scope_ebpf.beam.vm.state import Mailbox, VmState
from scope_ebpf.cli.top_cells import cells
from scope_ebpf.results.summary import Cost, EventSummary, Histogram, Summary
from scope_ebpf.screen.cells import cut
from scope_ebpf.sinks import turns
from scope_ebpf.sinks.plain import duration
from scope_ebpf.sinks.report import print_histogram, print_report

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


def crash(seen: int, **changed) -> dict:
    given = {"kind": "error", "module": "crash", "function": "boom", "line": 5}
    return {**given, "exit_reason": "badarith", "name": None, "seen": seen, **changed}


def test_crashes_are_shown_as_they_are_written():
    """
    Crashes are a table of ten groups at most, and their names are taken for no markup.
    """
    rows = [crash(9), crash(8, line=None, kind="killed", name="[red]shop", exit_reason=None)]
    shown = text(crashes=[*rows, *[crash(1)] * 12])
    assert "crash:boom:5                     9   error    badarith   -" in shown
    assert "crash:boom                       8   killed   -          [red]shop" in shown
    assert "and 4 other groups of crashes" in shown
    assert "crashed in" not in text(crashes=[])


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


COUNTED = {"reductions": 312_345_678, "context_switches": 5, "spawned": 0, "exited": 0}
STATE = VmState(
    {"normal": 0.43, "dirty_cpu": 0.0, "dirty_io": 0.021},
    *(0.412, 17, 1234, 262_144, 45_200_000, 98_100_000),
    Mailbox("<0.97.0>", "rabbit_event", 14_210, 1234),
    COUNTED,
)
BUDGETED = {
    "send": seen(
        *("send",),
        count=3_104_211,
        by_class={"local": 3_100_000, "remote": 4211},
        error_ratio=0.041,
        sampling_ratio=0.02,
    ),
    "receive": seen("receive", count=12, error_ratio=1.0, sampling_ratio=0.0),
    "schedule": seen(
        "schedule",
        count=3_215_000,
        by_class={"in": 3_215_000},
        sampling_ratio=0.02,
        counted_by="vm",
    ),
    "spawn": seen("spawn", count=12),
    "exit": seen("exit", count=0, by_class={"normal": 0}),
    "hibernate": seen("hibernate"),
}


def test_a_budgeted_report_begins_with_the_vm_and_ends_what_did_not_happen_in_a_line():
    """
    The state of the VM comes first; estimates have their error beside them; what did not happen
    takes one line.
    """
    whole = text(events=BUDGETED, state=STATE, notes=())
    assert BUDGETED_TEXT.strip("\n") == whole
    assert max(len(line) for line in whole.splitlines()) <= 80


BUDGETED_TEXT = """
shop@web1 (pid 4711): OTP 25, erts 13.1.5, jit, 2 schedulers

utilization      43% (dirty io 2%), without busy waiting
run queues       0.4 waiting on average, 17 at most
reductions       31.2 M a second
processes        1,234 of 262,144 at most
memory           45.2 MB, resident 98.1 MB
longest mailbox  14,210: <0.97.0> rabbit_event

event              total   per second   lost   of which
───────────────────────────────────────────────────────────────────────────
send       ~ 3.1 M ± 4 %      ~ 310 k      0   local ~3.1 M, remote ~4.21 k
receive         ~ 12 ± ?        ~ 1.2      0
schedule       3,215,000    321,500.0      0   in ~3.21 M
spawn                 12          1.2      0

did not happen: exit, hibernate

~ comes from moments with hooks in; the truth is within ± in 95 of 100 cases.
Their parts and durations are estimates, too. --exact counts everything.
stopped: duration, after 10.0 s
lost: 0 records
cost: 1,234,567 hits, 0.013 s of CPU, 3.1% of the target's
"""


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (VmState(processes=5), "longest mailbox  no message waits"),
        (VmState(), "longest mailbox  not known"),
        (
            VmState(processes=900_000, mailbox=Mailbox("<0.1.0>", None, 3, 225_000)),
            "longest mailbox  3: <0.1.0> (of 225,000 processes that were looked at)",
        ),
    ],
)
def test_what_is_not_known_of_a_vm_is_not_made_up(state: VmState, line: str):
    """
    A mailbox that could not be looked for is not called empty, and one of a part is shown as such.
    """
    assert line in text(state=state).splitlines()


def test_a_mailbox_of_a_hostile_name_colours_nothing():
    """
    Markup and control characters in the name of a process are text.
    """
    box = Mailbox("<0.1.0>", "[red]x[/red]\x1b]0;y\x07", 3, 1)
    whole = text(state=VmState(processes=1, mailbox=box))
    assert "[red]x[/red]" in whole
    assert "\x1b" not in whole


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
    Where the target's CPU time is not known the cost is shown without a share of it.
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


def test_a_name_that_is_cut_shows_it():
    """
    In a table of fixed columns two long names that begin alike are seen to be cut.
    """
    name = "Elixir.Demo.Accounts.UserSessionCacheServer"
    assert "Elixir.Demo.Account\u2026" == cut(name, 20)
    assert "Elixir.Demo.Accounts" == cut(name[:20], 20)


@pytest.mark.parametrize(("name", "shown"), [("", "''"), (None, "demo:run/0"), ("shop", "shop")])
def test_a_process_that_is_registered_as_nothing_has_a_name(name: str | None, shown: str):
    """
    The empty atom is a name, in the table as in the text of one process.
    """
    process = dict.fromkeys(
        ("module", "behaviour", "label", "current_function", "status", "pid"), "x"
    )
    process |= {"name": name, "label": None, "behaviour": None, "initial_call": "demo:run/0"}
    process |= {"memory_bytes": 0, "message_queue_len": 0}
    assert shown == cells(process, 0.0)[1]


TURNS = """
TIME     UTIL%  RUNQ PROCS   MEM  MAIL SPAWN/S  SEND/S SCHED/S   GC/S COST%
12:00:00    43   0.4  1.2k   45M   14k       1   ~310k    322k      -   3.1
12:00:00     -     -     -     -     -       ?       -       -      -     -
"""


def test_summaries_that_follow_each_other_are_a_line_each(monkeypatch: pytest.MonkeyPatch):
    """
    An estimate is marked, what is not known is no number, and a line fits 80 columns.
    """
    monkeypatch.setattr(turns.time, "strftime", lambda _: "12:00:00")
    output = io.StringIO()
    lines = turns.TurnLines(output)
    first = Summary(TARGET, 10.0, "duration", BUDGETED, Cost(1234567, 0.0125, 0.0314), (), STATE)
    unknown = {"spawn": seen("spawn", count=3, error_ratio=1.0)}
    lines.write(first)
    lines.write(Summary(TARGET, 10.0, "duration", unknown, Cost(0, None, None)))
    assert TURNS.strip("\n") == output.getvalue().rstrip("\n")
    assert max(map(len, TURNS.splitlines())) <= 80


def test_the_heading_comes_again_after_twenty_lines():
    """
    A reader who has scrolled still sees what the columns are.
    """
    output = io.StringIO()
    lines = turns.TurnLines(output)
    for _ in range(41):
        lines.write(Summary(TARGET, 1.0, "duration", {}, Cost(0, None, None)))
    found = [n for n, line in enumerate(output.getvalue().splitlines()) if line.startswith("TIME")]
    assert [0, 21, 42] == found


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_histogram_fits_the_terminal(width: int):
    """
    In a narrow terminal bars are shorter, and no line is broken.
    """
    output = io.StringIO()
    console = Console(file=output, width=width, highlight=False)
    print_histogram(console, "gc minor", Histogram(2.5e-05, slots(s10=3, s12=4)))
    lines = output.getvalue().splitlines()[2:]
    assert [True] * 3 == [line.startswith("  ") and line.endswith("|") for line in lines]
    assert max(map(len, lines)) == min(width, 70)
