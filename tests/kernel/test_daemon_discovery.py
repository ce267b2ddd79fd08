# SPDX-License-Identifier: Apache-2.0
"""
VMs that start, change their names and end, as the daemon hears of them.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import beams_run
import pytest
import test_daemon
from prometheus_client.parser import text_string_to_metric_families
from test_daemon import PATIENCE

from scope_ebpf.metrics.page import label_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Evaluates each line that it is sent and answers "ok".
INTERPRETER = (
    "spawn(fun() -> P = open_port({fd, 0, 1}, [stream, {line, 9999}]), "
    "L = fun L() -> receive {P, {data, {eol, Line}}} -> "
    "{ok, Words, _} = erl_scan:string(Line), {ok, Parsed} = erl_parse:parse_exprs(Words), "
    'erl_eval:exprs(Parsed, []), port_command(P, "ok\\n"), L() end end, '
    'port_command(P, "ready\\n"), L() end).'
)
#: What the kernel does not report is not found for an hour.
REPORTED = 'scan_interval = "1h"\nmin_age = 0\n'


def unnamed() -> tuple[str, ...]:
    """
    Flags of a node that may get a name later, without a port mapper.
    """
    port = str(beams_run.free_port())
    flags = ("-start_epmd", "false", "-erl_epmd_port", port)
    return (*flags, "-kernel", "inet_dist_use_interface", "{127,0,0,1}")


@contextlib.contextmanager
def interpreter(emulator: Path, *flags: str) -> Iterator[beams_run.Beam]:
    """
    A VM that obeys commands, run from a file of its own: as usdt25, erlexec takes BINDIR.
    """
    environment = {"BINDIR": str(emulator)}
    arguments = ("+S", "1:1", *unnamed(), *flags)
    with beams_run.start_beam("usdt25", *arguments, eval=INTERPRETER, env=environment) as beam:
        beam.expect("ready")
        yield beam


def labels(running: test_daemon.Running) -> dict[int, str]:
    """
    The labels of the VMs under observation, by pid.
    """
    families = text_string_to_metric_families(running.get())
    infos = [s for f in families for s in f.samples if s.name == "beam_target_info"]
    return {int(s.labels["pid"]): s.labels["node"] for s in infos}


def until(running: test_daemon.Running, holds: Callable[[dict[int, str]], bool]) -> dict[int, str]:
    """
    The labels, once they are as they should be.
    """
    deadline, found = time.monotonic() + PATIENCE, {}
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            found = labels(running)
            if holds(found):
                return found
        assert running.process.poll() is None, "the daemon has ended"
        select.select([], [], [], 0.1)  # there is nothing to wait for but the next look
    raise AssertionError(f"never: {found}")


@pytest.fixture
def only_private(private_emulator: Path) -> str:
    """
    A config that observes VMs of this module alone.
    """
    return f'include_paths = ["^{private_emulator}/"]\n'


def ready(running: test_daemon.Running) -> bool:
    with contextlib.suppress(OSError):
        return running.get("/readyz") == "ready\n"
    return False


@pytest.mark.parametrize("kind", ["stock25", "trixie27", "bullseye23"])
def test_a_vm_is_found_when_it_starts(tmp_path, kind):
    """
    With scans an hour apart a VM is observed at once, in a container and of any release.
    """
    name = f"reported{os.getpid()}"
    config = REPORTED + f'include_nodes = ["^{name}@"]\n'
    with test_daemon.daemon(config, tmp_path) as running:
        until(running, lambda _: ready(running))
        with beams_run.planted(kind, "-name", f"{name}@127.0.0.1", *unnamed()) as beam:
            until(running, lambda found: beam.pid in found)
        until(running, lambda found: beam.pid not in found)


def test_a_node_is_followed_through_its_names(tmp_path, private_emulator, only_private):
    """
    No name, a first one, none again, a second one: the label is the present name of the node.
    """
    with (
        interpreter(private_emulator) as beam,
        test_daemon.daemon(REPORTED + only_private, tmp_path) as running,
    ):
        until(running, lambda found: found.get(beam.pid) == "nonode@nohost")
        for name in ("first", "second"):
            assert beam.ask(f"net_kernel:start(['{name}@127.0.0.1', longnames]).") == "ok"
            until(running, lambda found, name=name: found[beam.pid] == f"{name}@127.0.0.1")
            assert beam.ask("net_kernel:stop().") == "ok"
            until(running, lambda found: found[beam.pid] == "nonode@nohost")


def test_a_node_is_chosen_by_the_name_that_it_gets(tmp_path, private_emulator, only_private):
    """
    A node that is wanted under one name is observed once it has it, and dropped when it changes.
    """
    wanted = only_private + 'include_nodes = ["^wanted@"]\n'
    with (
        interpreter(private_emulator) as beam,
        test_daemon.daemon(REPORTED + wanted, tmp_path) as running,
    ):
        until(running, lambda _: ready(running))
        assert not labels(running)
        assert beam.ask("net_kernel:start(['wanted@127.0.0.1', longnames]).") == "ok"
        until(running, lambda found: found.get(beam.pid) == "wanted@127.0.0.1")
        assert beam.ask("net_kernel:stop().") == "ok"
        until(running, lambda found: not found)


def test_two_nodes_of_one_name_have_different_labels(tmp_path, private_emulator, only_private):
    """
    The label of the second one has its pid as well while it runs; the first keeps its name.
    """
    flags = ("-name", "twin@127.0.0.1")
    with test_daemon.daemon(REPORTED + only_private, tmp_path) as running:
        until(running, lambda _: ready(running))
        with interpreter(private_emulator, *flags) as first:
            until(running, lambda found: found.get(first.pid) == "twin@127.0.0.1")
            with interpreter(private_emulator, *flags) as second:
                called = f"twin@127.0.0.1#{second.pid}"
                found = until(running, lambda found: found.get(second.pid) == called)
                assert found[first.pid] == "twin@127.0.0.1"


@pytest.mark.parametrize(
    "name",
    [
        'x@a"b\\c{d="e"}\n# h',
        "x@" + "y" * 253,
        "x@\u202eü\x1b[31m\x00h",
        "x@<script>alert(1)</script>",
    ],
    ids=["quotes", "long", "controls", "markup"],
)
def test_a_hostile_name_is_a_label_and_nothing_else(tmp_path, private_emulator, only_private, name):
    """
    Quotes, newlines and markup, which the VM allows in a host, break neither metrics, page nor log;
    what cannot be printed is replaced, and so is what stands before a pid in a label.
    """
    points = ",".join(str(ord(c)) for c in name)
    take = (
        "register(net_kernel, spawn(fun() -> receive after infinity -> ok end end)), "
        f"erlang:setnode(list_to_atom([{points}]), 1)."
    )
    with (
        interpreter(private_emulator) as beam,
        test_daemon.daemon(REPORTED + only_private, tmp_path) as running,
    ):
        until(running, lambda found: beam.pid in found)
        assert beam.ask(take) == "ok"
        label = label_value(name).replace("#", "_")
        until(running, lambda found: found[beam.pid] == label)
        assert "<script" not in running.get("/")
        code, errors = running.end()
    assert code == 0
    assert all(line.startswith("level=") for line in errors.splitlines())
    assert "\x1b" not in errors


def test_a_program_whose_path_is_not_utf8_is_observed(tmp_path, private_emulator):
    """
    A folder's name that is not UTF-8 spoils neither metrics nor page, for this VM or for others.
    """
    folder = shutil.copytree(private_emulator, tmp_path / "emulator")
    with test_daemon.named("+S", "1:1", emulator=folder) as beam:
        folder.rename(tmp_path / "\udcff")
        with test_daemon.daemon(test_daemon.QUICK, tmp_path) as running:
            until(running, lambda found: beam.pid in found)
            assert f'exe="{tmp_path}/\ufffd/beam.smp"' in running.get()
            assert "1 observed" in running.get("/")
            code, errors = running.end()
    assert 0 == code, errors


def test_in_a_pid_namespace_of_its_own_it_says_what_it_cannot_do(tmp_path):
    """
    The kernel's pids mean nothing there: the daemon logs that, and goes on with scans.
    """
    beams_run.require(os.geteuid() == 0, "a pid namespace takes root")
    port = beams_run.free_port()
    (tmp_path / "config.toml").write_text("")
    own = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child")
    options = ("--listen", f"127.0.0.1:{port}", "--config", str(tmp_path / "config.toml"))
    command = [*own, sys.executable, "-m", "scope_ebpf.cli.daemon", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        running = test_daemon.Running(process, port)
        until(running, lambda _: ready(running))
    finally:
        process.kill()
        _, errors = process.communicate(timeout=PATIENCE)
    said = [line for line in errors.decode().splitlines() if "pid namespace" in line]
    assert len(said) == 1
    assert "VMs that start are found by looking only" in said[0]
    assert "--pid=host" in said[0]


# What the service manager learns ---------------------------------------------------------------


def test_the_service_manager_is_notified(tmp_path, monkeypatch):
    """
    READY=1 after the first scan, WATCHDOG=1 while it runs, STOPPING=1 when it is asked to end.
    """
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with test_daemon.daemon(test_daemon.QUICK, tmp_path) as running:
            said = [manager.recv(4096).decode() for _ in range(2)]
            assert sorted(said) == ["READY=1", "WATCHDOG=1"]
            assert manager.recv(4096) == b"WATCHDOG=1"
            running.process.send_signal(signal.SIGTERM)
            while (word := manager.recv(4096)) != b"STOPPING=1":
                assert word == b"WATCHDOG=1"
            assert running.end()[0] == 0


def test_busy_targets_do_not_keep_it_from_ending(tmp_path, private_emulator, only_private):
    """
    With three VMs under full load it ends with 0 when it is asked to, and they go on.
    """
    environment = {"BINDIR": str(private_emulator)}
    with contextlib.ExitStack() as stack:
        beams = []
        for storm in ("pingpong 2", "spawn 1", "gc 1"):
            beam = stack.enter_context(beams_run.planted("usdt25", "+S", "1:1", env=environment))
            beam.send(f"storm {storm}")
            beam.expect("storming")
            beams.append(beam)
        running = stack.enter_context(test_daemon.daemon(REPORTED + only_private, tmp_path))
        until(running, lambda found: len(found) == 3)
        for beam in beams:
            running.until(beam.pid, lambda now: now["scope_ebpf_windows_total",] > 2)
        code, errors = running.end()
        assert code == 0, errors
        assert "message=ended" in errors
        assert all(beam.ask("stop").startswith("done storm") for beam in beams)
