# SPDX-License-Identifier: Apache-2.0
"""
Telemetry of a real VM as series of the daemon, against a handler inside the VM.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
import test_daemon
from beams_run import compiled_part, start_beam

from scope_ebpf.events import SAMPLE_HZ

#: Few rounds: everything must be counted also where a hit is expensive.
ROUNDS, SERIES = 3, 300
CONFIG = f"""
findings_interval = 0
budget = "50%"
telemetry = {{ series = {SERIES} }}
"""
PREFIXES = (
    "beam_http",
    "beam_live",
    "beam_db",
    "beam_job",
    "beam_telemetry",
    "beam_route",
    "scope_ebpf_telemetry",
)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """
    VMs with telemetry, of which the second hides its functions, and the daemon that observes them.
    """
    folder = tmp_path_factory.mktemp("telemetry")
    with ExitStack() as stack:
        beams = []
        for kind, part in (("stock25", "telemetry-1.3"), ("sid29", "telemetry-1.4")):
            path = compiled_part(kind, part)
            flags = (*test_daemon.name_flags(), "-pa", path, "-s", "telling")
            beams.append(stack.enter_context(start_beam(kind, *flags)))
            beams[-1].expect("ready")
        yield beams, stack.enter_context(test_daemon.daemon(test_daemon.QUICK + CONFIG, folder))


@pytest.mark.parametrize("which", [0, 1], ids=["lookups", "breakpoint"])
def test_counts_are_those_of_a_handler_inside(observed, which: int):
    """
    Everything is counted: each series of planted events is as the handler has it, none is too many.
    """
    beams, running = observed
    beam = beams[which]
    ratio, name = ("scope_ebpf_telemetry_sampling_ratio",), "beam_telemetry_events_total"
    running.until(beam.pid, lambda n: ratio in n)
    beam.ask(f"emit {ROUNDS}")
    beam.ask("lookup 100")
    inside = [row.split("\x1f") for row in beam.ask("truth").split("\x1e")]
    truth = Counter()
    for event, number, *_ in inside:
        truth[event] += int(number)
    last = "oban.job.stop"
    found = running.until(beam.pid, lambda n: n.get((name, last)) == truth[last])
    assert 1 == found[ratio]
    events = {key[1]: number for key, number in found.items() if key[0] == name}
    assert truth.items() <= events.items()
    rows = {tuple(labels): (int(n), int(ns)) for _, n, ns, *labels in inside}
    http = "beam_http_request_duration_seconds"
    route = "/api/fast/:id"
    number, ns = rows[route, "ShopWeb.PageController", "show"]
    assert number == found[f"{http}_count", "", route, ""] == ROUNDS * 5
    assert ns / 1e9 == pytest.approx(found[f"{http}_sum", "", route, ""])
    exceptions = {k[1]: v for k, v in found.items() if k[0] == "beam_http_exceptions_total"}
    assert {"ArgumentError", "RuntimeError", "badarith", "badmatch"} <= exceptions.keys()
    assert exceptions["badmatch"] == ROUNDS * 5
    query = "beam_db_query_duration_seconds_count"
    number, _ = rows["Shop.Repo", "products", "select", "ok"]
    assert number == found[query, "select", "Shop.Repo", "ok", "products"]
    failed, _ = rows["Shop.Repo", "nil", "-", "error"]
    assert failed == found[query, "", "Shop.Repo", "error", "nil"]
    assert ROUNDS * 5 == sum(found.get(_clicks(event), 0) for event in ("inc", "other"))
    assert found["scope_ebpf_telemetry_undecoded_total", "large_map"] >= ROUNDS * 5
    assert 0 == found["scope_ebpf_telemetry_error_ratio", "http"]
    if not which:  # what clients may have invented has a name when it comes again
        beam.ask("emit 1")
        running.until(beam.pid, lambda n: n.get(_clicks("inc")))


def _clicks(event: str) -> tuple[str, ...]:
    """
    The series of events that browsers sent to the counter's view.
    """
    name = "beam_live_view_duration_seconds_count"
    return name, "handle_event", event, "ShopWeb.CounterLive"


def test_cpu_time_goes_to_what_is_worked_on(observed):
    """
    Routes, of which one ends by an exception, and a mount within one: about their planted parts.
    """
    (beam, _), running = observed
    name = "beam_route_cpu_seconds_total"
    planted = {("", "http", "/cpu/60"): 0.6, ("", "http", "/cpu/30"): 0.3}
    planted |= {("mount", "live_view", "ShopWeb.CounterLive"): 0.1}
    beam.ask("split 4000")
    keys = [(name, *key) for key in planted]
    found = running.until(beam.pid, lambda n: sum(n.get(key, 0) for key in keys) > 0.4)
    total = sum(found.get(key, 0) for key in keys)
    for key, share in planted.items():
        samples = total * SAMPLE_HZ
        error = 4 * (share / samples) ** 0.5
        assert pytest.approx(share, abs=error) == found.get((name, *key), 0) / total


def test_a_steady_load_is_counted_once_beside_hostile_events(observed):
    """
    From harvest to harvest no event is missing or there twice; labels are text, and few.
    """
    (beam, _), running = observed
    route = ("beam_http_request_duration_seconds_count", "", "/steady", "")
    beam.ask("steady 300 0")
    running.until(beam.pid, lambda n: n.get(route, 0) > 100)
    emitted = int(beam.ask("still"))
    beam.ask("hostile")
    hostile = ("beam_telemetry_events_total", "shop.hostile")
    last = running.until(beam.pid, lambda n: n.get(route, 0) >= emitted and n.get(hostile))
    assert emitted == last[route]
    assert last["scope_ebpf_hook_cpu_seconds_total",] > 0
    ours = [key for key in last if key[0].startswith(PREFIXES)]
    assert len(ours) <= SERIES
    assert all(text.isprintable() for key in ours for text in key)
    assert last["scope_ebpf_telemetry_undecoded_total", "name"] == 4
    code, errors = running.end()
    assert 0 == code, errors
