# SPDX-License-Identifier: Apache-2.0
"""
What a trace of one process, or of long durations, leaves out.
"""

from __future__ import annotations

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.cli import main
from scope_ebpf.cli.trace import run
from scope_ebpf.errors import NothingToAttachError, UsageError
from scope_ebpf.kernel import host
from scope_ebpf.runs.filters import Filter


def plan(*items: tuple[str, str]) -> Plan:
    """
    A plan with one hook for each event and kind of hook.
    """
    hook = Attachment("program", "family", "name", 0, 0)
    return Plan(tuple(Item(event, via, "name", (hook,), "") for event, via in items))


def test_events_without_a_process_are_refused_where_one_is_named():
    """
    A thread is none, and a USDT probe of a spawn names the child alone; the others stay.
    """
    kinds = ("gc", "symbol"), ("spawn", "usdt"), ("exit", "usdt"), ("thread", "tracepoint")
    planned = plan(*kinds)
    kept = Filter("init").plan(planned)
    assert [True, False, True, False] == [bool(item.attachments) for item in kept.items]
    assert "does not name the process" in kept.items[1].reason
    assert planned == Filter(shortest_ms=1).plan(planned)
    with pytest.raises(NothingToAttachError, match="belongs to no Erlang process"):
        Filter("init").plan(plan(("thread", "tracepoint")))


def test_settings_say_what_programs_leave_out():
    """
    Half a millisecond is 500,000 ns; without a filter both settings are 0.
    """
    for only, expected in (
        (Filter(), (0, 0)),
        (Filter("init", 0.5), (1, 500_000)),
        (Filter(shortest_ms=0), (0, 0)),
    ):
        settings = np.zeros((), events.SETTINGS)
        only.set(settings)
        assert expected == (int(settings["filtered"]), int(settings["shortest_ns"]))
        assert bool(only) == any(expected)


def test_sends_without_a_known_sender_are_noted():
    """
    OTP 28 and later give no sender to what goes to other nodes; a USDT probe names it.
    """
    unknown, known = np.zeros((2,), events.SETTINGS)
    known["dsig_from"] = 32
    sends = plan(("send", "symbol"))
    (note,) = Filter("init").notes(sends, unknown)
    assert "sender is not known" in note
    for only, planned, settings in (
        (Filter("init"), sends, known),
        (Filter("init"), plan(("send", "usdt")), unknown),
        (Filter("init"), plan(("gc", "symbol")), unknown),
        (Filter(shortest_ms=1), sends, unknown),
    ):
        assert not only.notes(planned, settings)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--process", "init", "--budget", "1%"), "keep no --budget"),
        (("--process", "init", "--interval", "1s"), "leave --interval out"),
        (("--min-duration", "1ms", "--events", "send"), "is of gc and schedule"),
    ],
)
def test_what_cannot_be_filtered_is_an_error_of_use(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
):
    """
    Said before any VM is looked at.
    """
    monkeypatch.setattr(host, "require", lambda: None)
    with pytest.raises(UsageError, match=said):
        run(main.parsed(["--pid", "1", *words]))
