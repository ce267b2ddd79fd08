# SPDX-License-Identifier: Apache-2.0
"""
Messages of planted servers, seen by hooks, against what servers and callers count themselves.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest
from beams_run import Beam, free_port, start_beam
from tracing import SCOPE_TRACE, Run, require_root

from scope_ebpf.beam.processes.table import ALL
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover
from scope_ebpf.daemon.readings.servers import Sight
from scope_ebpf.metrics.servers import ServerSums
from scope_ebpf.runs.loop import Stop
from scope_ebpf.runs.server_events import Counting

Truth = dict[str, dict[str, int]]
MILLISECOND = 1000
#: The widest bucket, and the rounding of the witness.
PRECISION = 0.15
#: Quantiles that are compared, and those of the witness between which they are: of two clocks one
#: may be stopped before the other, and a server of two speeds changes between two ranks.
RANKS = {"p50": ("p47", "p53"), "p90": ("p87", "p93")}
#: Milliseconds for which servers sleep in each of their calls, or in most of them.
SLEEPS = {"gs_chain": 5, "gs_state": 10, "gs_defer": 15, "gs_mixed": 1}
#: Seconds of the load that windows see.
LOAD = 5


@pytest.fixture(scope="module", params=["stock25", "trixie27"])
def beam(request):
    """
    A VM with planted servers of many kinds.
    """
    require_root()
    with start_beam(request.param, "-s", "gs_kinds") as running:
        running.expect("ready")
        yield running


def parsed(answer: str) -> Truth:
    """
    The words MODULE:WHAT=NUMBER of a workload's answer.
    """
    found: Truth = {}
    for word in answer.split():
        if "=" not in word:
            continue
        name, _, number = word.partition("=")
        module, _, what = name.partition(":")
        found.setdefault(module, {})[what] = int(number)
    return found


def watched(beam: Beam, command: str, *words: str) -> tuple[dict[str, Any], Truth]:
    """
    The document of a run in which the VM did *command*, all of it, and the VM's own answer.
    """
    options = ("--duration", "0", "--format", "json", "--max-cost", "100%", *words)
    run = Run([*SCOPE_TRACE, "genservers", "--pid", str(beam.pid), *options], None)
    try:
        run.wait_for_counting()
        answer = beam.ask(command)
        run.send(signal.SIGINT)
        return run.wait().document, parsed(answer)
    finally:
        run.close()


def by_module(document: dict[str, Any]) -> dict[str, Any]:
    return {one["module"]: one for one in document["modules"]}


def test_every_message_is_counted_and_timed_as_its_server_does_itself(beam):
    """
    Calls, casts, infos, timeouts, crashes and abandoned calls exactly; times by the planted clock.
    """
    document, truth = watched(beam, "load 3000", "--budget", "none")
    modules = by_module(document)
    assert 0 == document["lost"]
    for module in ("gs_chain", "gs_state", "gs_defer", "gs_late", "gs_mixed", "gs_crash"):
        own, seen = truth[module], modules[module]
        # A caller that finds nobody registered sends nothing.
        assert own["answered"] + own["timeout"] + own["down"] <= seen["calls"]["count"], module
        assert seen["calls"]["count"] <= sum(
            own[how] for how in ("answered", "timeout", "down", "noproc")
        )
        assert own["timeout"] == seen["failures"]["timeout"], module
        assert own["down"] <= seen["failures"]["down"] <= own["down"] + own["noproc"], module
    assert 0 < truth["gs_late"]["timeout"]
    assert 0 < truth["gs_crash"]["down"]
    # Calls within a callback: one of the chain's is one of the backend's.
    assert modules["gs_backend"]["calls"]["count"] == truth["gs_chain"]["answered"]
    assert truth["gs_cast"]["casts"] == modules["gs_cast"]["casts"]["count"] > 0
    assert truth["gs_info"]["infos"] == modules["gs_info"]["infos"]["count"] > 0
    # Also those that the server of infos makes.
    assert truth["gs_fast"]["answered"] == modules["gs_fast"]["calls"]["count"]
    assert truth["gs_info"]["infos"] < truth["gs_fast"]["answered"]
    # Nobody asked these two anything but to answer when they were through.
    assert 1 == modules["gs_cast"]["calls"]["count"] == modules["gs_info"]["calls"]["count"]
    # A caller is known to have given up when it calls again.
    late = modules["gs_late"]["abandoned"]
    assert 0.5 * truth["gs_late"]["abandoned"] <= late <= truth["gs_late"]["abandoned"] + 4
    _check_times(modules, truth, document["notes"])
    edges = {(e["caller"], e["callee"]): e["calls"] for e in document["edges"]}
    assert truth["gs_chain"]["answered"] == edges["gs_chain", "gs_backend"]
    assert truth["gs_info"]["infos"] == edges["gs_info", "gs_fast"]
    # Its send, the taking of it, the reply, the taking of that.
    assert document["cost"]["hits"] >= 4 * sum(one["answered"] for one in truth.values())


def _check_times(modules: dict[str, Any], truth: Truth, notes: list[str]) -> None:
    """
    Times of a millisecond and more are right to the width of a bucket, and to three ranks of 100.
    """
    checked = 0
    moved = any("no queue times" in note for note in notes)
    for module, kind in (
        *(("gs_chain", kind) for kind in ("service", "call")),
        *(("gs_mixed", kind) for kind in ("service", "call")),
        *(("gs_defer", kind) for kind in ("service", "call")),
        *(("gs_state", kind) for kind in ("service", "call")),
        *(("gs_cast", kind) for kind in ("queue", "service")),
        ("gs_info", "service"),
    ):
        own, seen = truth[module], modules[module][f"{kind}_seconds"]
        assert seen["reach"] is None
        if moved and kind == "queue" and seen["p50"] is None:
            continue
        for figure, (low, high) in RANKS.items():
            if own[f"{kind}_{figure}"] >= MILLISECOND:
                checked += 1
                found = seen[figure] * 1e6
                least, most = own[f"{kind}_{low}"], own[f"{kind}_{high}"]
                assert (1 - PRECISION) * least <= found <= (1 + PRECISION) * most, (module, kind)
        if own[f"{kind}_mean"] >= MILLISECOND:
            checked += 1
            _check_mean(seen["mean"] * 1e6, own, kind)
    assert checked >= 25


def _check_mean(found: float, own: dict[str, int], kind: str) -> None:
    """
    The time of a call is within that of its caller, and around that of its server.
    """
    least, most = ((1 + by) * own[f"{kind}_mean"] for by in (-PRECISION, PRECISION))
    if own["answered"] and kind == "service":
        most = max(most, own["call_mean"])
    if own["answered"] and kind == "call":
        least = min(least, own["service_mean"])
    assert least <= found <= most, kind


def test_requests_without_waiting_are_no_timeouts(beam):
    """
    One process sends 60 requests before it takes the first reply: none of them has timed out.
    """
    document, truth = watched(beam, "requests 60", "--budget", "none")
    fast = by_module(document)["gs_fast"]
    assert 60 == fast["calls"]["count"] == truth["gs_fast"]["answered"]
    assert {"timeout": 0, "down": 0} == fast["failures"]
    assert 0 == fast["abandoned"]


def test_a_call_that_is_passed_on_is_one_call_and_no_timeout(beam):
    """
    23 calls that another server, or a process of its, replies to: each server has its part of them.
    """
    document, truth = watched(beam, "pass 23", "--budget", "none")
    modules = by_module(document)
    first = modules["gs_pass"]
    assert 23 == first["calls"]["count"] == truth["gs_pass"]["answered"]
    for name, calls in (("gs_pass", 23), ("gs_backend", 11), ("gs_defer", 12)):
        assert calls == modules[name]["calls"]["count"], name
        assert {"timeout": 0, "down": 0} == modules[name]["failures"], name
        assert 0 == modules[name]["abandoned"]
    # The caller waits for the first one, which is through as soon as it has passed the call on.
    planted = truth["gs_pass"]["call_mean"]
    assert planted == pytest.approx(first["call_seconds"]["mean"] * 1e6, rel=PRECISION)
    assert modules["gs_backend"]["call_seconds"] is None
    assert modules["gs_backend"]["service_seconds"]["mean"] > 0.005
    assert first["service_seconds"]["mean"] < first["call_seconds"]["mean"] / 2
    edges = {(e["caller"], e["callee"]): e for e in document["edges"]}
    assert 11 == edges["gs_pass", "gs_backend"]["calls"]
    assert 12 == edges["gs_pass", "gs_defer"]["calls"]


def test_messages_that_wait_no_longer_leave_nothing_behind(beam):
    """
    Neither the replies that a server takes, nor what a server that ended has not taken.
    """
    viewer = Viewer(discover.inspect(beam.pid), ALL)
    with Counting(viewer, None, Stop()) as counting:
        counting.begin()
        beam.ask("inner 230")
        taken = len(counting._watch.waiting_messages()[0])
        beam.ask("unread 230")
        unread = len(counting._watch.waiting_messages()[0])
        # Looks come now and then, and leave alone what was sent a moment ago.
        counting.look(time.monotonic() + 60)
        left = len(counting._watch.waiting_messages()[0])
        counting.end()
    # Other servers of the VM may have something to read, and what is freed is used again at once.
    assert taken < 5
    assert unread > 115
    assert left < 5


def test_requests_are_told_apart_by_their_tags(beam):
    """
    Each tag has its calls and casts, up to eight of a module; all others are together.
    """
    document, _ = watched(beam, "tags 11", "--budget", "none", "--by", "tag")
    tags = {one["tag"]: one for one in document["tags"] if one["module"] == "gs_tags"}
    calls = {tag: one["calls"]["count"] for tag, one in tags.items()}
    # The last call comes after the casts; three tags have no slot, and one request has no tag.
    own = {f"tag_{number}": 23 for number in range(1, 9)}
    assert {**own, "tag_1": 24, None: 4 * 23} == calls
    assert 23 == tags["tag_1"]["casts"]["count"]
    assert 0 == tags["tag_2"]["casts"]["count"]
    assert tags["tag_1"]["service_share"] > 0.5
    assert sum(one["service_share"] for one in tags.values()) == pytest.approx(1, abs=0.01)
    whole = by_module(document)["gs_tags"]
    assert (sum(calls.values()), 23) == (whole["calls"]["count"], whole["casts"]["count"])


def test_windows_keep_the_budget_and_say_how_far_rates_may_be_off(beam):
    """
    Rates are those of the servers within their errors, times are right or null, failures are null.
    """
    document, truth = watched(beam, f"load {LOAD * 1000}")
    modules = by_module(document)
    assert any("windows" in note for note in document["notes"]), document["notes"]
    # All of them would be more than four for each call.
    assert document["cost"]["hits"] < 2 * sum(one["answered"] for one in truth.values())
    for module, sleeps in SLEEPS.items():
        seen, own = modules[module], truth[module]
        assert seen["failures"] is seen["abandoned"] is None
        if seen["calls"] and seen["calls"]["error_ratio"] < 1:
            # Five errors, what the beginning and the end of the load add, and the time around it.
            idle = max(0.0, document["duration_seconds"] - LOAD)
            most = own["answered"] * (5 * seen["calls"]["error_ratio"] + 0.3 + idle / LOAD)
            assert abs(seen["calls"]["count"] - own["answered"]) <= most
        for kind in ("service", "call"):
            found = (seen[f"{kind}_seconds"] or {}).get("p50")
            if found is not None:  # on a loaded host too little may be seen
                most = (1 + PRECISION) * own[f"{kind}_p99"]
                assert (1 - PRECISION) * sleeps * MILLISECOND <= found * 1e6 <= most


@pytest.mark.parametrize("beam", ["stock25"], indirect=True)
def test_looks_time_calls_that_outlast_every_window(beam):
    """
    One call in ten takes 1.2 s to 2.4 s, windows half a second at most: p99 is right to 15 %.
    """
    document, truth = watched(beam, f"long {LOAD * 1000}", "--budget", "20%")
    seen, own = by_module(document)["gs_long"]["call_seconds"], truth["gs_long"]
    assert 0 < seen["reach"] <= 0.5
    # Looks know what takes four times as long as the time between two of them; on a host that is
    # full there may be too few of them, and nothing is said.
    if document["duration_seconds"] < 0.2 * document["looks"] and seen["p99"] is not None:
        assert own["call_p99"] == pytest.approx(seen["p99"] * 1e6, rel=PRECISION)


def test_more_modules_than_slots_are_counted_together(beam):
    """
    Each of 300 modules gets one call; none is lost, and those without a slot are (other modules).
    """
    document, _ = watched(beam, "many 300", "--budget", "none")
    modules = by_module(document)
    own = [one for name, one in modules.items() if name.startswith("gs_many_")]
    counted = [one["calls"]["count"] for one in own if one["calls"]]
    assert {1} == set(counted)
    assert 300 == sum(counted) + modules["(other modules)"]["calls"]["count"]
    assert any("(other modules)" in note for note in document["notes"])


def test_a_hostile_name_breaks_neither_document_nor_terminal(beam):
    """
    JSON has the name as it is, text without what a terminal obeys.
    """
    document, _ = watched(beam, "evil", "--budget", "none")
    assert 1 == by_module(document)['Elixir.Evil\x1b[2J\n",{%']["calls"]["count"]
    command = ["genservers", "--pid", str(beam.pid), "--duration", "0", "--budget", "none"]
    run = Run([*SCOPE_TRACE, *command], None)
    try:
        run.wait_for_counting()
        beam.ask("evil")
        run.send(signal.SIGINT)
        text = run.wait().output
    finally:
        run.close()
    assert "Evil" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_calls_of_another_node_are_counted_as_its():
    """
    23 calls of a peer are 23 calls, none of which is taken for a timeout.
    """
    port = free_port()

    def node(name: str, address: str) -> tuple[str, ...]:
        interface = "{" + address.replace(".", ",") + "}"
        return (
            *("-name", f"{name}@{address}", "-setcookie", "planted", "-connect_all", "false"),
            *("-start_epmd", "false", "-erl_epmd_port", str(port)),
            *("-kernel", "inet_dist_use_interface", interface, "-s", "gs_kinds"),
        )

    served = start_beam("stock25", *node("served", "127.0.0.1"))
    with served as beam, start_beam("stock25", *node("peer", "127.0.0.2")) as peer:
        beam.expect("ready")
        peer.expect("ready")
        options = ("--duration", "0", "--format", "json", "--budget", "none")
        run = Run([*SCOPE_TRACE, "genservers", "--pid", str(beam.pid), *options], None)
        try:
            run.wait_for_counting()
            assert "done remote" == peer.ask("remote served@127.0.0.1")
            run.send(signal.SIGINT)
            document = run.wait().document
        finally:
            run.close()
    fast = by_module(document)["gs_fast"]
    assert 23 == fast["calls"]["count"]
    assert 0 == document["lost"] == fast["failures"]["timeout"]


def test_a_vm_that_ends_under_hooks_ends_the_view_with_what_was_seen():
    """
    The document has what was counted until then, and one line says that the VM has ended.
    """
    with start_beam("stock25", "-s", "gs_kinds") as beam:
        beam.expect("ready")
        options = ("--duration", "0", "--format", "json", "--budget", "none")
        run = Run([*SCOPE_TRACE, "genservers", "--pid", str(beam.pid), *options], None)
        try:
            run.wait_for_counting()
            beam.ask("load 1000")
            os.kill(beam.pid, signal.SIGKILL)
            outcome = run.wait()
        finally:
            run.close()
    assert "while it was watched" in outcome.errors
    assert 0 != outcome.code
    calls = by_module(json.loads(outcome.output))["gs_chain"]["calls"]
    assert calls["count"] > 0


def test_calls_whose_callers_gave_up_are_seen_in_the_mailbox(beam):
    """
    Of 15 calls that wait nine callers have given up or ended so; each call counts once.
    """
    beam.ask("abandon")
    sight = Sight(discover.inspect(beam.pid), ServerSums(1000))
    for now in (1.0, 2.0):
        found = {one.module: one for one in sight.look(now).modules}
        assert (15, 9) == (found["gs_pass"].requests, found["gs_pass"].abandoned)
