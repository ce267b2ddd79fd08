# SPDX-License-Identifier: Apache-2.0
"""
Servers of real VMs and who waits for them: planted callers, a crowd, a circle, a stopped VM.
"""

from __future__ import annotations

import os
import signal

import pytest
from beams_run import start_beam
from tracing import SCOPE_TRACE, Run, scope_trace, wait_until

CROWD = 200
#: Without a hook, and with hooks within the budget (OTP 29 has none).
WAYS = (("--no-hooks",), ())


@pytest.fixture(scope="module", params=["stock25", "trixie27", "sid29"])
def beam(request):
    """
    A VM with planted servers and their callers.
    """
    with start_beam(request.param, "-s", "gs_main") as running:
        running.expect("ready")
        yield running


def genservers(beam, *words: str) -> dict:
    """
    The document of one view of *beam*.
    """
    return view(beam, "--no-hooks", *words)


def view(beam, *words: str) -> dict:
    """
    The same with hooks, if they are not forbidden.
    """
    return scope_trace("genservers", "--pid", str(beam.pid), "--format", "json", *words).document


def edges(document: dict) -> dict[tuple[str, str], float]:
    return {
        (edge["caller"], edge["callee"]): edge["blocked_seconds_per_second"]
        for edge in document["edges"]
    }


def test_servers_and_their_callers_are_named_without_a_hook(beam):
    """
    Each planted caller is found to wait for its server, with a timeout and without one.
    """
    expected = {
        ("gs_main", "gs_slow"),
        ("gs_main", "gs_chain"),
        ("gs_main", "gs_state"),
        ("gs_chain", "gs_backend"),
    }
    found: set[tuple[str, str]] = set()

    def all_seen() -> bool:
        nonlocal document
        document = genservers(beam, "--duration", "2")
        found.update(edges(document))
        return found >= expected

    document: dict = {}
    wait_until(all_seen, "a caller is not seen to wait")
    assert expected == found
    modules = {one["module"]: one for one in document["modules"]}
    assert 3 == modules["gs_circle"]["processes"]
    assert "gen_statem" == modules["gs_state"]["behaviour"]
    # The server that calls another one within its calls is busy as long as that one, or longer;
    # what a look sees of the two is not of one moment.
    busy = {name: one["utilization"]["mean"] for name, one in modules.items()}
    assert 0 == busy["gs_circle"] == busy["kernel"]
    assert 0.1 < busy["gs_backend"] <= busy["gs_chain"] + 0.15 <= 1.15
    assert modules["gs_chain"]["busy_in"][0]["function"] == "gen:do_call/4"
    assert modules["gs_slow"]["busy_in"][0]["function"] == "timer:sleep/1"
    # What hooks alone could know is not guessed.
    assert modules["gs_slow"]["calls"] is modules["gs_slow"]["service_seconds"] is None


def test_a_vm_without_hooks_is_looked_at_and_says_why(beam):
    """
    OTP 29 hides the functions: figures of hooks are null there, and all else is as ever.
    """
    command = ["genservers", "--pid", str(beam.pid), "--format", "json", "--duration", "1"]
    document = scope_trace(*command, "--by", "module").document
    without = [note for note in document["notes"] if note.startswith("no hooks: ")]
    hidden = str(document["target"]["otp_release"]) == "29"
    assert hidden == bool(without), document["notes"]
    if hidden:
        assert 0 == document["cost"]["hooks"]
        assert {None} == {one["calls"] for one in document["modules"]}
    assert document["looks"] > 0


def test_one_process_says_for_whom_it_waits(beam):
    """
    Its server, the tag of its request, and its timeout; null where it waits for nobody.
    """

    def waits(process: str) -> dict | None:
        command = ("ps", process, "--pid", str(beam.pid), "--format", "json")
        return scope_trace(*command).document["process"]["waits_for"]

    asked = {"name": "gs_backend", "request": "{sleep, _}", "timeout_milliseconds": 5000}
    found = wait_until(lambda: waits("gs_chain"), "gs_chain does not wait")
    assert found.pop("server").startswith("<0.")
    assert asked == found
    assert waits("kernel_sup") is None


def test_a_crowd_and_a_circle_are_what_the_verdict_names(beam):
    """
    The server that most wait for, of a stopped VM too; then servers in a circle.
    """
    beam.ask(f"crowd {CROWD}")
    for way in WAYS:
        verdict = view(beam, "--duration", "2", *way)["verdict"]
        assert "gs_slow" == verdict["bottleneck"], way
        assert "callers: gs_main 100 %" in verdict["because"], way
    beam.freeze()
    try:
        stopped = genservers(beam, "--duration", "1")
        text = scope_trace(
            "genservers", "--pid", str(beam.pid), "--duration", "1", "--no-hooks"
        ).output
    finally:
        beam.thaw()
    slow = next(one for one in stopped["modules"] if one["module"] == "gs_slow")
    # One is served, the others wait; the two clients of before may pause.
    assert CROWD - 1 <= slow["mailbox"]["max"] <= CROWD + 1
    assert CROWD <= slow["waiting_callers"] <= CROWD + 2
    assert text.splitlines()[-1].startswith("most waiting goes through gs_slow: ")
    beam.ask("circle")
    circle = {"circle_a", "circle_b", "circle_c"}
    for way in WAYS:
        # A loaded host may leave time for two looks only, and a deadlock is what three have seen.
        wait_until(
            lambda way=way: (
                circle == set(view(beam, "--duration", "2", *way)["verdict"]["deadlock"])
            ),
            "the circle is not named",
        )


def test_a_vm_that_ends_meanwhile_ends_the_view_with_what_was_seen():
    """
    One line says so, and the exit code is that of a target that ended.
    """
    with start_beam("stock25", "-s", "gs_main") as beam:
        beam.expect("ready")
        command = ["genservers", "--pid", str(beam.pid), "--duration", "0", "--no-hooks"]
        run = Run([*SCOPE_TRACE, *command], None)
        try:
            run.wait_for_counting()
            os.kill(beam.pid, signal.SIGKILL)
            outcome = run.wait()
        finally:
            run.close()
    assert "while it was watched" in outcome.errors
    assert 0 != outcome.code
