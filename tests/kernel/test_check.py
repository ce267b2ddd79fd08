# SPDX-License-Identifier: Apache-2.0
"""
Nodes that ail in ways that public reports describe, one after the other: the first finding names
cause and culprit. Healthy nodes, stopped ones, names that must not be shown.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import beam_fixtures  # noqa: F401 - puts tests/ on the path
import beams_run
import documents
import pytest
from beams_run import PATIENCE
from tracing import require_root, scope_trace

from scope_ebpf.cli import check, main

if TYPE_CHECKING:
    from collections.abc import Callable

#: Processes with a mailbox of their own, messages of each, and what else ailing.erl plants.
MESSAGES = ALIKE = 12345
#: Bytes of 200 binaries.
BINARIES = 200 * 2**20
#: Seconds of one check.
SECONDS, LONGER = "1s", "2s"
FLAGS = ("+S", "2:2", "+SDcpu", "2:2", "+P", "16384", "+t", "60000")
FLAGS += ("-kernel", "logger_level", "none")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """
    A VM that ails on command, and knows native functions.
    """
    require_root()
    env = beams_run.native_functions(tmp_path_factory.mktemp("nif"))
    with beams_run.start_beam("stock25", *FLAGS, "-s", "ailing", env=env) as beam:
        beam.expect("ready")
        yield beam


@pytest.fixture(scope="module", params=["trixie27", "sid29"])
def newer(request):
    """
    The same of other releases, without native functions.
    """
    require_root()
    with beams_run.start_beam(request.param, *FLAGS, "-s", "ailing") as beam:
        beam.expect("ready")
        yield beam


@pytest.fixture
def looked(capsys) -> Callable[..., dict[str, Any]]:
    """
    Checks a VM and gives the document, and the exit code as its field ``code``.
    """

    def look(beam: beams_run.Beam, *words: str, seconds: str = SECONDS) -> dict[str, Any]:
        line = ["check", str(beam.pid), "--duration", seconds, "--format", "json", *words]
        code = check.run(main.parsed(line))
        document = documents.load(capsys.readouterr().out)
        return document | {"code": code}

    return look


def sick(beam, look, case: str, seconds: str = SECONDS) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The first finding of a planted case, and the document.
    """
    assert beam.ask(f"plant {case}") == f"done {case}"
    try:
        document = look(beam, seconds=seconds)
    finally:
        assert beam.ask("cure") == "done cure"
    assert document["findings"], document
    return document["findings"][0], document


#: Cases: kind, severity, what the subject has, words of the summary, figures.
CASES: dict[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    "mailbox": (
        *("mailbox", "warning", {"name": "slow_writer"}),
        *("the oldest are {cast, _, _}", {"messages": MESSAGES}),
    ),
    "logger": (
        *("logger", "warning", {"name": "logger_std_h_planted"}),
        *("777 messages wait", {"messages": 777}),
    ),
    "deadlock": (
        *("deadlock", "critical", {"name": "orders"}),
        *("orders -> stock -> billing -> orders", {"waiting": 0}),
    ),
    "crowd": (
        *("waits_for", "warning", {"name": "checkout"}),
        *("processes or more wait for checkout in ailing:slow/0", {"waiting": 23}),
    ),
    "suspended": (
        *("suspended", "warning", {"name": "debugger_of_it"}),
        *("1 process has been suspended", {"count": 1}),
    ),
    "alike": (
        *("limit", "warning", {"what": "processes", "initial_call": "ailing:hold/0"}),
        *(f"{ALIKE:,} of them run ailing:hold/0", {"limit": 16384}),
    ),
    "binaries": ("binaries", "warning", {"name": "session_cache"}, "session_cache holds", {}),
    "port": ("blocked_port", "critical", {}, "is busy", {"count": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_finding_names_cause_and_culprit(node, looked, case):
    """
    Kind, severity, culprit and the planted figures; the exit code says that something was found.
    """
    assert_case(*sick(node, looked, case), case)


@pytest.mark.parametrize("case", ["mailbox", "crowd", "binaries", "suspended"])
def test_the_same_on_other_releases(newer, looked, case):
    """
    On OTP 27 and 29 as distributions build them.
    """
    assert_case(*sick(newer, looked, case), case)


def assert_case(first: dict[str, Any], document: dict[str, Any], case: str) -> None:
    kind, severity, subject, words, figures = CASES[case]
    assert (kind, severity) == (first["kind"], first["severity"]), document["findings"]
    assert subject.items() <= first["subject"].items()
    assert words in first["summary"]
    assert figures.items() <= first["evidence"].items()
    if case == "binaries":
        assert abs(first["evidence"]["bytes"] - BINARIES) < 0.02 * BINARIES
    assert 1 == document["code"]
    assert document["verdict"]["summary"].startswith(f"{severity}: ")


#: Cases that need time to pass: kind, severity, and the culprit.
BUSY = {
    "wedged": ("wedged", "critical", "hasher"),
    "dirty": ("dirty_pool", "critical", "names_nif:dirty_spin/1"),
    "starved": ("starved", "critical", "ailing:spinner/0"),
    "gc": ("gc", "warning", "heavy_collector"),
    "crash": ("crash_loop", "warning", "worker_sup"),
    "code": ("code_loading", "warning", "code_server"),
}


@pytest.mark.parametrize("case", BUSY)
def test_what_takes_time_names_who_takes_it(node, looked, case):
    """
    A scheduler in a native function, a full dirty pool, high priority, collections, restarts.
    """
    first, document = sick(node, looked, case, LONGER)
    kind, severity, culprit = BUSY[case]
    assert (kind, severity) == (first["kind"], first["severity"]), document["findings"]
    assert culprit in json.dumps(first)


def test_a_healthy_node_has_no_finding(node, looked):
    """
    After all that, and with the exit code 0; what was looked at is named.
    """
    document = looked(node)
    assert [] == document["findings"]
    assert (0, "good") == (document["code"], document["verdict"]["severity"])
    assert {"schedulers", "calls", "memory"} <= set(document["checked"])
    assert "complete" == document["outcome"]


def test_a_stopped_vm_is_said_to_be_stopped_and_what_it_holds_is_named(node, looked):
    """
    What needs no time to pass is found, and what does is said to be unknown.
    """
    node.ask("plant deadlock")
    node.freeze()
    try:
        document = looked(node)
    finally:
        node.thaw()
        node.ask("cure")
    assert ["stopped", "deadlock"] == [one["kind"] for one in document["findings"][:2]]
    assert "growth and rates" in [one["what"] for one in document["not_checked"]]


#: Cases whose findings are shown together, and names and texts of the application in them.
SHOWING = ("mailbox", "logger", "deadlock", "crowd", "suspended", "binaries", "port", "crash")
PLANTED = (
    *("slow_writer", "{cast, _, _}", "orders", "stock", "billing", "gs_circle", "checkout"),
    *("debugged", "debugger_of_it", "logger_std_h_planted", "{log, _}", "session_cache", "printer"),
    *("while kill", "worker_sup", "crash/0", "ailing", "hold/0", "slow/0", "caller/0"),
)


def test_no_planted_name_leaks_where_names_are_redacted(node):
    """
    Of twenty that are shown otherwise, neither in JSON nor in text.
    """
    for case in SHOWING:
        node.ask(f"plant {case}")
    command = ("check", str(node.pid), "--duration", LONGER)
    try:
        until = time.monotonic() + PATIENCE
        missing = [*PLANTED]
        while missing and time.monotonic() < until:  # what crashes has to crash often enough
            shown = scope_trace(*command, "--format", "json").output
            missing = [name for name in PLANTED if name not in shown]
        redacted = [
            scope_trace(*command, "--redact", "--format", form).output for form in ("json", "text")
        ]
    finally:
        node.ask("cure")
    assert 20 == len(PLANTED)
    assert [] == missing
    for text in redacted:
        assert [] == [name for name in PLANTED if name in text]
        assert "deadlock" in text
        assert "12,345 messages wait" in text


def test_a_thousand_findings_are_ten_and_a_count(node, looked):
    """
    The first ten are shown, the rest is counted by kind.
    """
    _, document = sick(node, looked, "many_mailboxes")
    assert 10 == len(document["findings"])
    assert 1000 == document["findings_total"]
    assert {"mailbox": 990} == document["left_out"]


def test_a_critical_limit_fails_only_what_was_asked(node, looked):
    """
    A warning does not fail ``--fail-on critical``.
    """
    node.ask("plant crowd")
    try:
        assert (0, 1) == tuple(
            looked(node, "--fail-on", severity)["code"] for severity in ("critical", "warning")
        )
    finally:
        node.ask("cure")


def test_a_node_that_does_not_stop_names_whom_it_waits_for(node, looked):
    """
    Atoms first, which stay; then init:stop with a child that ignores its shutdown. Comes last.
    """
    first, _ = sick(node, looked, "atoms")
    assert ("limit", "critical", "atoms") == (
        first["kind"],
        first["severity"],
        first["subject"]["what"],
    )
    assert first["evidence"]["newest"][0].startswith("ctl-")
    node.ask("plant stopping")
    first = looked(node)["findings"][0]
    assert ("stopping", "queue_writer") == (first["kind"], first["subject"]["name"])
    assert "shop_sup" in first["summary"]
