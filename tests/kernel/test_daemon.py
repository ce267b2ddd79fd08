# SPDX-License-Identifier: Apache-2.0
"""
The daemon on real VMs: what it exports against what the VM says, and how it begins and ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run
from beams_run import PATIENCE
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where the CPU is emulated (tests/vm) a hit is dear, and with less the hooks would come and go.
BUDGET = os.environ.get("SCOPE_TEST_BUDGET", "5%")


class Running:
    """
    A daemon, and what it serves.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def get(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE
        ) as answer:
            return answer.read().decode()

    def samples(self, pid: int) -> dict[tuple[str, ...], float]:
        """
        The target's samples: by name, then the values of its other labels.
        """
        modes = self.modes(pid)
        families = list(text_string_to_metric_families(self.get()))
        every = [sample for family in families for sample in family.samples]
        infos = [s for s in every if s.name == "beam_target_info"]
        nodes = {s.labels["pid"]: s.labels["node"] for s in infos}
        node = nodes.get(str(pid))
        samples = {
            (s.name, *(v for k, v in sorted(s.labels.items()) if k != "node")): s.value
            for s in every
            if node is not None and s.labels.get("node") == node
        }
        ratios = {k[1]: v for k, v in samples.items() if k[0] == "scope_ebpf_sampling_ratio"}
        # Before its hooks are in, an event has a mode and a ratio of 0.
        return samples | {
            ("attached", hook): float(modes.get(hook) == "always" and ratio > 0)
            for hook, ratio in ratios.items()
        }

    def modes(self, pid: int) -> dict[str, str]:
        """
        How each event of the target is counted now, as the status page shows it.
        """
        _, _, page = self.get("/").partition(f"<p>pid {pid}, ")
        row = r'<tr><td>(\w+)</td><td class="\w+">(\w+)</td>'
        return dict(re.findall(row, page.partition("<h2>")[0]))

    def until(self, pid: int, holds) -> dict[tuple[str, ...], float]:
        """
        The first samples for which *holds*; the daemon takes stock once a second.
        """
        deadline = time.monotonic() + PATIENCE
        found: dict[tuple[str, ...], float] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                found = self.samples(pid)
                if found and holds(found):
                    return found
            assert self.process.poll() is None, "the daemon has ended"
            select.select([], [], [], 0.1)  # there is nothing to wait for but the next look
        raise AssertionError(f"never: {found}")

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors.decode()


#: The daemon under test looks at VMs of this test alone, and finds them soon.
NAME = f"observed{os.getpid()}"
QUICK = f'scan_interval = "200ms"\nmin_age = 0\ninclude_nodes = ["^{NAME}@"]\n'


@contextlib.contextmanager
def named(*args: str, emulator: Path | None = None):
    """
    A VM that runs ``planted.erl``, with the name that the daemon looks for.

    *emulator* is a folder with an emulator of its own: ``erl`` chooses one, so its kind is one
    that is started without.
    """
    kind, env = ("usdt25", {"BINDIR": str(emulator)}) if emulator else ("stock25", None)
    with beams_run.planted(kind, *name_flags(), *args, env=env) as beam:
        if emulator:
            assert Path(f"/proc/{beam.pid}/exe").readlink() == emulator / "beam.smp"
        yield beam


def name_flags() -> tuple[str, ...]:
    """
    What gives a VM the name that the daemon looks for, without a port mapper.
    """
    port = str(beams_run.free_port())
    options = ("-name", f"{NAME}@127.0.0.1", "-start_epmd", "false", "-erl_epmd_port", port)
    return (*options, "-kernel", "inet_dist_use_interface", "{127,0,0,1}")


@contextlib.contextmanager
def daemon(config: str, folder: Path, prefix: Sequence[str] = ()):
    """
    A daemon on a port of its own; *prefix* goes before its command.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    port = beams_run.free_port()
    path = folder / "config.toml"
    path.write_text(config)
    options = ["--listen", f"127.0.0.1:{port}", "--config", str(path)]
    command = [*prefix, sys.executable, "-m", "scope_ebpf.cli.daemon", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        yield Running(process, port)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def always(samples) -> bool:
    """
    True if every hook is permanently attached now: the sampling ratio is that of the last minute.
    """
    attached = [v for k, v in samples.items() if k[0] == "attached"]
    return len(attached) >= 13 and all(attached)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """
    An idle VM under observation, with all hooks attached.
    """
    with named("+S", "2:2") as beam:
        config = QUICK + f'budget = "{BUDGET}"\n'
        with daemon(config, tmp_path_factory.mktemp("daemon")) as running:
            running.until(beam.pid, always)
            yield beam, running


def test_planted_events_are_counted(observed):
    """
    The few planted events are the figures of the next scrape, exactly.
    """
    beam, running = observed
    before = running.until(beam.pid, always)
    planted = {
        ("beam_process_spawns_total",): beam.plant("spawns 23"),
        ("beam_process_exits_total", "error"): beam.plant("exits error 23"),
        ("beam_code_loads_total",): beam.plant("code_loads 7"),
        ("beam_ports_opened_total",): beam.plant("ports 23"),
        ("beam_hibernations_total",): beam.plant("hibernates 5"),
    }
    planted["beam_process_spawns_total",] += 23 + 1  # those of the exits, and the one that sleeps
    running.until(
        beam.pid, lambda now: all(now[key] - before[key] == planted[key] for key in planted)
    )


def test_durations_are_counted(observed):
    """
    Processes that come and go have lived, and a port that was busy was so for a while.
    """
    beam, running = observed
    lived, busy = ("beam_process_lifetime_seconds_count",), ("beam_port_busy_seconds_total",)
    # Spawns and exits must both have been counted for a second.
    before = running.until(beam.pid, lambda n: beam.plant("spawns 1") and always(n) and n[lived])
    beam.plant("exits error 23")
    beam.plant("busy_port 5")
    # The five writers, too, and what warmed up.
    now = running.until(beam.pid, lambda n: n[lived] - before[lived] >= 23 + 5)
    assert now[lived] - before[lived] < 23 + 5 + 10
    assert 0 < now[busy] - before[busy] < 60
    assert now["beam_port_busy_total",] - before["beam_port_busy_total",] == 1


def test_counters_are_those_of_the_vm(observed):
    """
    Processes, ports, atoms, collections and context switches agree with the VM's own statistics.
    """
    beam, running = observed
    stats = beam.stats()
    now = running.until(
        beam.pid, lambda n: n[("beam_context_switches_total",)] >= stats["context_switches"]
    )
    assert stats["processes"] == now["beam_processes",]
    assert stats["ports"] == now["beam_ports",]
    assert stats["atoms"] == now["beam_atoms",]
    assert stats["schedulers"] == now["beam_schedulers",]
    assert now["beam_garbage_collections_total",] - stats["collections"] in range(5)
    assert now["beam_context_switches_total",] - stats["context_switches"] in range(50)
    assert now["beam_thread_switches_total", "normal"] > 0
    assert now["scope_ebpf_events_lost_total",] == 0
    assert now["scope_ebpf_reads_refused_total", "user"] == 0


def test_a_burst_is_counted_whole_or_has_an_error(observed):
    """
    All of 3,000 ports at once are counted; where fewer are closed or end, the error covers these.
    """
    beam, running = observed
    opened, closed = ("beam_ports_opened_total",), ("beam_ports_closed_total",)

    def calm(now) -> bool:
        hooks = ("port_open", "port_close", "exit")
        return all(now["attached", hook] for hook in hooks)

    before = running.until(beam.pid, calm)
    assert 3000 == beam.plant("ports 3000")
    assert 3000 == beam.plant("exits other 3000")
    now = running.until(beam.pid, lambda now: now[opened] - before[opened] >= 2999 and calm(now))
    assert 3000 == pytest.approx(now[opened] - before[opened], abs=1)
    exits = [key for key in now if key[0] == "beam_process_exits_total"]
    for hook, keys in (("port_close", [closed]), ("exit", exits)):
        everything = sum(now[key] for key in keys)
        reported = everything - sum(before[key] for key in keys)
        error = now.get(("scope_ebpf_sampling_error_ratio", hook), 0.0)
        assert error == 1.0 or abs(reported - 3000) <= error * everything + 1


def test_a_storm_is_seen_through_windows_and_within_the_budget(observed):
    """
    Millions of messages exhaust the quota; their number is estimated, their cost is bounded.
    """
    beam, running = observed
    windows, error = ("scope_ebpf_windows_total",), ("scope_ebpf_sampling_error_ratio", "send")
    begun = running.samples(beam.pid)
    beam.send("storm pingpong 2")
    beam.expect("storming")
    hot = running.until(
        beam.pid, lambda n: n[windows] > begun[windows] + 20 and n.get(error, 1.0) < 0.5
    )
    assert hot["scope_ebpf_trips_total",] >= 1
    assert hot["scope_ebpf_sampling_ratio", "send"] < 1
    assert beam.ask("stop").startswith("done storm")


def test_the_page_says_what_is_observed(observed):
    """
    The page at / lists the target, its hooks and the budget, and loads nothing else.
    """
    beam, running = observed
    page = running.get("/")
    assert f"pid {beam.pid}" in page
    assert "schedule" in page
    assert "http" not in page.replace("http-equiv", "")
    assert running.get("/healthz") == "ok\n"
    assert running.get("/readyz") == "ready\n"
    with pytest.raises(urllib.error.HTTPError) as missing:
        running.get("/nothing")
    assert missing.value.code == 404


def test_scrapers_that_do_not_read_affect_no_other(observed):
    """
    Twenty clients with incomplete requests are disconnected, and a scrape is answered.
    """
    beam, running = observed
    with contextlib.ExitStack() as open_sockets:
        for _ in range(20):
            client = open_sockets.enter_context(
                socket.create_connection(("127.0.0.1", running.port))
            )
            client.sendall(b"GET /metrics HTTP/1.1\r\n")
        running.until(beam.pid, lambda _: True)


def test_sigterm_takes_everything_out_and_the_vm_goes_on(tmp_path):
    """
    The daemon ends with 0, its last words are that it ended, and the VM answers.
    """
    config = QUICK + f'budget = "{BUDGET}"\n'
    with named("+S", "2:2") as beam, daemon(config, tmp_path) as running:
        running.until(beam.pid, always)
        code, errors = running.end()
        assert code == 0, errors
        assert "message=ended" in errors
        assert beam.plant("messages 23") == 23


def test_a_target_that_is_killed_is_dropped(tmp_path):
    """
    When a VM ends its series end, and the daemon goes on.
    """
    with daemon(QUICK, tmp_path) as running, contextlib.ExitStack() as second:
        with named("+S", "1:1") as beam:
            running.until(beam.pid, lambda n: True)
        other = second.enter_context(named("+S", "1:1"))
        running.until(other.pid, lambda n: True)
        assert not running.samples(beam.pid)


def test_a_config_is_read_again_or_refused(tmp_path):
    """
    SIGHUP applies the new config; a wrong one is refused and the old one stays.
    """
    with named("+S", "1:1") as beam:
        config = QUICK + 'budget = "2%"\n'
        with daemon(config, tmp_path) as running:
            path = tmp_path / "config.toml"
            running.until(beam.pid, lambda n: n["scope_ebpf_budget_ratio",] == 0.02)
            path.write_text(config.replace("2%", "3%"))
            running.process.send_signal(signal.SIGHUP)
            running.until(beam.pid, lambda n: n["scope_ebpf_budget_ratio",] == 0.03)
            path.write_text("bugdet = 1\n")
            running.process.send_signal(signal.SIGHUP)
            running.until(
                beam.pid,
                lambda _: 'scope_ebpf_config_reloads_total{result="refused"} 1.0' in running.get(),
            )
            code, errors = running.end()
            assert code == 0
            assert "bugdet" in errors


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--listen", "nowhere"], "an address and a port"),
        (["--budget", "lots"], "a share is written like"),
        (["--config", "/nowhere/config.toml"], "No such file"),
    ],
)
def test_a_bad_start_is_one_line(options, why):
    """
    An impossible option is one line without a traceback, and the exit code is that of usage.
    """
    command = [sys.executable, "-m", "scope_ebpf.cli.daemon", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line():
    """
    Two daemons cannot listen on one port, and the second says so.
    """
    beams_run.require(os.geteuid() == 0, "attaching BPF programs takes root")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "scope_ebpf.cli.daemon", "--listen", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr
