# SPDX-License-Identifier: Apache-2.0
"""
What is shown of a stuck VM, or of a stuck process: why, and with which figures.
"""

from __future__ import annotations

import argparse
import re
import time

import beam_fixtures  # noqa: F401 - puts tests/ on the path
import beams_run
import documents
import pytest
from test_daemon_threads import quota, times_throttled

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.processes.detail import FIELDS, detail, find
from scope_ebpf.beam.processes.table import statuses
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm import discover
from scope_ebpf.beam.vm.schedulers import Scheduler, Schedulers
from scope_ebpf.cli import list_beams, schedulers
from scope_ebpf.cli.process_text import lines
from scope_ebpf.cli.trouble import Troubles
from scope_ebpf.runs.check import check

RELEASES = ("stock25", "trixie27")


def until(found, patience: float = beams_run.PATIENCE):
    """
    What *found* returns, once it is something.
    """
    deadline = time.monotonic() + patience
    while not (seen := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen


@pytest.fixture(scope="module")
def nif(tmp_path_factory) -> dict[str, str]:
    """
    The environment in which the native functions are found.
    """
    return beams_run.native_functions(tmp_path_factory.mktemp("nif"))


def looked(pid: int, capsys, form: str = "json", interval: float = 0.05):
    """
    What ``schedulers --once`` prints.
    """
    schedulers.run(
        argparse.Namespace(
            words=[], pid=str(pid), count=1, interval=interval, format=form, split=False
        )
    )
    text = capsys.readouterr().out
    return documents.load(text) if form == "json" else text


@pytest.mark.parametrize("kind", RELEASES)
def test_a_process_that_is_collected_is_in_no_function(kind, capsys):
    """
    A process of a million words that collects without end is shown as collecting, in no function.
    """
    with beams_run.start_beam(kind, "-s", "stuck") as beam:
        beam.expect("ready")
        beam.ask("collect")

        target = discover.inspect(beam.pid)
        reader = Schedulers(target, Viewer(target))

        def collected() -> list[Scheduler]:
            beam.freeze()  # so that all looks are at one moment
            found = [item for item in reader.read(KINDS) if item.collecting]
            if not found:
                beam.thaw()
            return found

        (item,) = until(collected)
        assert (item.name, item.function) == ("stuck_collector", None)
        (thread,) = (t for t in looked(beam.pid, capsys)["threads"] if t["collecting"])
        assert (thread["name"], thread["function"]) == ("stuck_collector", None)
        text = looked(beam.pid, capsys, "text").splitlines()
        assert [line for line in text if "stuck_collector collecting garbage" in line]


def trouble(pid: int) -> str:
    """
    The line of ``top --once`` and ``ps``.
    """
    target = discover.inspect(pid)
    return Troubles(target, Viewer(target)).now() or ""


def test_one_of_two_schedulers_that_stays_in_a_native_function_is_shown(nif, capsys):
    """
    Which of them, who and where, for how long, while the other one answers.
    """
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "stuck", env=nif) as beam:
        beam.expect("ready")
        beam.ask("wedge 1")
        said = until(lambda: (text := trouble(beam.pid)) and "names_nif" in text and text)
        assert said.startswith("1 of 2 schedulers run one process and take no other, normal 1 for ")
        assert f"in names_nif:wedge/0 of {nif['NAMES_NIF']}.so; 0 wait there." in said
        document = until(
            lambda: (seen := looked(beam.pid, capsys, interval=0.4))["trouble"] and seen
        )
        assert "in names_nif:wedge/0" in document["trouble"]


def test_a_dirty_pool_with_a_queue_is_shown(nif):
    """
    Five calls for two dirty CPU schedulers: both busy, and as many wait as the VM itself counts.
    """
    flags = ("+S", "2:2", "+SDcpu", "2:2", "-s", "stuck")
    with beams_run.start_beam("stock25", *flags, env=nif) as beam:
        beam.expect("ready")
        beam.ask("dirty 5")
        until(lambda: beam.ask("queues").split(",")[-2] == "3")
        assert trouble(beam.pid) == (
            "All 2 dirty_cpu schedulers are busy and 3 wait for them; "
            f"2 are in names_nif:dirty/0 of {nif['NAMES_NIF']}.so."
        )


def test_suspended_schedulers_are_shown_while_work_waits():
    """
    One of two schedulers online and five processes that compute; not when both are online.
    """
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "stuck") as beam:
        beam.expect("ready")
        assert "suspended" not in trouble(beam.pid)
        beam.ask("spin 5")
        beam.ask("online 1")
        said = until(lambda: (text := trouble(beam.pid)) and "suspended" in text and text)
        assert said.startswith("1 of 2 schedulers is suspended (not online, ")
        beam.ask("online 2")
        until(lambda: "suspended" not in trouble(beam.pid))


@pytest.mark.parametrize("kind", RELEASES)
def test_a_vm_that_halts_and_waits_for_a_port_is_shown(kind):
    """
    A program that reads nothing holds up ``erlang:halt(3)``.
    """
    with beams_run.start_beam(kind, "-s", "stuck") as beam:
        beam.expect("ready")
        beam.ask("block")
        assert "halts" not in trouble(beam.pid)
        beam.ask("halt")
        said = until(lambda: (text := trouble(beam.pid)) and "halts" in text and text)
        assert "The VM halts with code 3 and waits for 1 of its ports and schedulers." in said


def test_a_quota_that_holds_the_vm_back_is_shown():
    """
    A tenth of a CPU for processes that compute without end, in periods of the kernel's own count.
    """
    with beams_run.start_beam("stock25", "+S", "2:2", "-s", "stuck") as beam:
        beam.expect("ready")
        assert "quota" not in trouble(beam.pid)
        with quota(beam.pid, 0.1) as folder:
            beam.ask("spin 2")
            until(lambda: times_throttled(folder))
            before = times_throttled(folder)
            said = until(lambda: (text := trouble(beam.pid)) and "quota" in text and text)
            times, periods = map(int, re.search(r"in (\d+) of (\d+) periods", said).groups())
            assert 0 < times <= periods
            assert times <= times_throttled(folder) - before


def shown(pid: int, name: str) -> tuple[str, str | None]:
    """
    The status of a process as ``ps`` shows it, and why.
    """
    viewer = Viewer(discover.inspect(pid), FIELDS)
    process = detail(viewer, find(viewer, name))
    assert (f"  why           {process['status_reason']}" in lines(process)) == bool(
        process["status_reason"]
    )
    return process["status"], process["status_reason"]


@pytest.mark.parametrize("kind", [*RELEASES, "sid29"])
def test_the_suspender_of_a_process_and_the_port_it_waits_for_are_shown(kind, nif):
    """
    By a process, for a port whose program reads nothing, and behind a scheduler that is stuck.
    """
    with beams_run.start_beam(kind, "+S", "2:2", "+SDcpu", "2:2", "-s", "stuck", env=nif) as beam:
        beam.expect("ready")
        by = beam.ask("suspend").split()[1]
        assert shown(beam.pid, "stuck_suspended") == ("suspended", f"by {by} stuck_suspender")
        port = beam.ask("block").split()[1]
        said = (
            f"waits for port {port} (sh -c 'while kill -0 $PPID; do sleep 1; done'), which is busy"
        )
        assert shown(beam.pid, "stuck_writer") == ("suspended", said)
        assert shown(beam.pid, "stuck_suspender") == ("waiting", None)


def test_the_queue_that_a_process_waits_in_is_shown(nif):
    """
    The third of three calls waits for two dirty schedulers, a process bound to a stuck one for it.
    """
    flags = ("+S", "2:2", "+SDcpu", "2:2", "-s", "stuck")
    with beams_run.start_beam("stock25", *flags, env=nif) as beam:
        beam.expect("ready")
        beam.ask("dirty 3")
        until(lambda: beam.ask("queues").split(",")[-2] == "1")
        names = [f"stuck_dirty_{number}" for number in (1, 2, 3)]
        found = {shown(beam.pid, name) for name in names}
        assert found == {
            ("running", None),
            ("runnable", "in the run queue of dirty_cpu, with 1 in it"),
        }
        beam.ask("bound 1")
        beam.ask("wedge 1")
        said = ("runnable", "in the run queue of normal 1, with 1 in it")
        until(lambda: shown(beam.pid, "stuck_bound") == said)


@pytest.mark.parametrize("kind", RELEASES)
def test_a_connection_that_a_process_waits_for_is_shown(kind):
    """
    A node that is stopped takes nothing, so who sends to it is suspended.
    """
    with beams_run.dist_pair(kind) as (beam, peer):
        peer.freeze()
        while True:
            beam.plant("fill")
            if beam.ask("block 1") == "suspended 1":
                break
        viewer = Viewer(discover.inspect(beam.pid), FIELDS)
        rows = viewer.table.snapshot().rows
        (row,) = (at for at, said in enumerate(statuses(rows["state"])) if said == "suspended")
        why = detail(viewer, rows[row : row + 1])["status_reason"]
        said = r"waits for the connection to peer@127.0.0.2, which has ([\d,]+) bytes to send"
        queued = int(re.fullmatch(said, why)[1].replace(",", ""))
        assert queued >= 1 << 16
        (link,) = (one for one in check(viewer.target, 0.5).findings if one.kind == "full_link")
        assert ("critical", {"peer": "peer@127.0.0.2"}) == (link.severity, link.subject)
        assert (1, queued) == (link.evidence["count"], link.evidence["queued_bytes"])
        peer.thaw()


def test_the_list_shows_vms_with_trouble(capsys):
    """
    A VM whose atoms are nearly all used, one that is stopped, and one that is well.
    """

    def rows() -> dict[int, dict]:
        list_beams.run(argparse.Namespace(format="json", libraries=False))
        return {row["pid"]: row for row in documents.load(capsys.readouterr().out)["beams"]}

    with (
        beams_run.start_beam("stock25", "+t", "20000", "-s", "stuck") as full,
        beams_run.start_beam("stock25", "+S", "2:2", "-s", "stuck") as well,
    ):
        for beam in (full, well):
            beam.expect("ready")
        full.ask("atoms 9000")
        used, limit = map(int, full.ask("atoms 0").split()[1:])  # the first answer made some, too
        assert used > 0.8 * limit
        found = rows()
        assert {"used": used, "limit": limit} == found[full.pid]["usage"]["atoms"]
        assert found[well.pid]["usage"]["processes"]["limit"] == 1 << 18
        well.freeze()
        assert "stopped" in rows()[well.pid]["trouble"]
        list_beams.run(argparse.Namespace(format="text", libraries=False))
        text = capsys.readouterr().out
        well.thaw()
    assert (
        f"{full.pid}: {used:,} of {limit:,} atoms are in use ({100 * used / limit:.0f} %)." in text
    )
    assert re.search(rf"^{well.pid}: The VM is stopped", text, re.MULTILINE)
