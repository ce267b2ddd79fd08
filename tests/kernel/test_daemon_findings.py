# SPDX-License-Identifier: Apache-2.0
"""
Findings, the page of a VM, and its servers as series, all of one VM with planted causes.
"""

from __future__ import annotations

import urllib.error

import documents
import pytest
import test_daemon
from beams_run import start_beam

#: A process with a name of markup that reads nothing, and two that wait for each other.
WAITING = 1234
PLANT = f"""
    Deaf = spawn(fun() -> receive never -> ok end end),
    register('<b>deaf</b>', Deaf),
    [Deaf ! planted || _ <- lists:seq(1, {WAITING})],
    Calls = fun() -> receive {{call, Other}} -> gen_server:call(Other, ask, infinity) end end,
    {{One, Two}} = {{spawn(Calls), spawn(Calls)}},
    One ! {{call, Two}},
    Two ! {{call, One}}.
"""
#: Callers that wait for a slow server all the time, and series of servers.
CROWD, SERIES = 40, 60
CONFIG = f"""
findings_interval = "1s"
budget = "50%"
genservers = {{ series = {SERIES} }}
"""
FOUND = {("deadlock", "critical"), ("mailbox", "warning"), ("waits_for", "warning")}


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """
    The VM, and the daemon that observes it.
    """
    flags = (*test_daemon.name_flags(), "-s", "gs_main", "-eval", PLANT)
    folder = tmp_path_factory.mktemp("findings")
    with start_beam("stock25", *flags) as beam:
        beam.expect("ready")
        beam.ask(f"crowd {CROWD}")
        with test_daemon.daemon(test_daemon.QUICK + CONFIG, folder) as running:
            yield beam, running


def test_findings_are_series_and_a_page(observed):
    """
    The planted kinds are found; the page and the document have them with their culprits.
    """
    beam, running = observed

    def kinds(samples) -> set[tuple[str, ...]]:
        return {key[1:] for key in samples if key[0] == "beam_finding"}

    found = running.until(beam.pid, lambda n: kinds(n) >= FOUND)
    for severity in ("critical", "warning"):
        count = sum(one[1] == severity for one in kinds(found))
        assert count == found["beam_finding_kinds", severity]
    document = documents.load(running.get(f"/api/v1/vm/{beam.pid}"))
    page = running.get(f"/vm/{beam.pid}")
    for path in (f"/vm/{running.process.pid}", "/vm/0", "/api/v1/vm/1", "/api/v1/vm"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            running.get(path)
    assert f'href="/vm/{beam.pid}"' in running.get("/")
    check = document["last_check"]
    subjects = {one["kind"]: one["subject"].get("name") for one in check["findings"]}
    assert {"mailbox": "<b>deaf</b>", "waits_for": "gs_slow"}.items() <= subjects.items()
    assert "deadlock: 2 processes wait for each other" in page
    assert f"{WAITING:,} messages wait for &lt;b&gt;deaf&lt;/b&gt;" in page
    assert "<b>deaf" not in page


def test_servers_are_series_by_module(observed):
    """
    The crowd waits for the slow server, which is busy: between two readings callers waited for as
    many times the seconds that it was busy as they are many, whenever the looks came.
    """
    beam, running = observed
    busy = ("beam_server_busy_seconds_total", "gs_slow")
    blocked = ("beam_server_blocked_seconds_total", "gs_slow", "gs_main")
    first = running.until(beam.pid, lambda n: n.keys() >= {busy, blocked})
    last = running.until(beam.pid, lambda n: n.get(busy, 0) > first[busy] + 2)
    ratio = (last[blocked] - first[blocked]) / (last[busy] - first[busy])
    assert CROWD / 2 < ratio < CROWD + 3
    assert 1 == last["beam_server_processes", "gs_slow"]
    assert CROWD / 2 < last["beam_server_waiting_callers", "gs_slow"] <= CROWD + 2
    assert 3 == last["beam_server_processes", "gs_circle"]
    assert last["beam_server_processes", "other"] > 5
    assert len([key for key in last if key[0].startswith("beam_server_")]) <= SERIES
    code, errors = running.end()
    assert 0 == code, errors
