# SPDX-License-Identifier: Apache-2.0
"""
Parts that the kernel does not permit, as in a container: the daemon says so and goes on.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import beams_run
import pytest
import refusing
import test_daemon
from tracing import scope_trace

from scope_ebpf.beam.hidden.resolve import JUDGED
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.daemon.hooks import HookResources, TargetHooks
from scope_ebpf.daemon.looks.prepare import prepare
from scope_ebpf.daemon.watch import Watch
from scope_ebpf.errors import PERMIT, NotRootError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.cost import UNKNOWN
from scope_ebpf.kernel.observers.program_pool import ProgramPool

if TYPE_CHECKING:
    from pathlib import Path

BUSY = ("beam_busy_wait_seconds_total", "normal")
SPAWNS = ("beam_process_spawns_total",)
SWITCHES = ("beam_thread_switches_total", "normal")


def hooks(samples: dict[tuple[str, ...], float]) -> set[float]:
    """
    Sampling ratios of all hooks.
    """
    return {value for key, value in samples.items() if key[0] == "scope_ebpf_sampling_ratio"}


def warnings(errors: str, message: str) -> list[str]:
    """
    Lines of the log with *message*, which must say what to do.
    """
    found = [line for line in errors.splitlines() if message in line]
    assert all("CAP_PERFMON" in line and "seccomp" in line for line in found), found
    assert "Traceback" not in errors
    return found


def test_without_perf_events_everything_else_goes_on(tmp_path: Path):
    """
    The sampling timer is refused: one line, no busy waiting, events are counted as before.
    """
    refused = refusing.prefix("perf_event_open")
    with (
        test_daemon.named("+S", "1:1") as beam,
        test_daemon.daemon(test_daemon.QUICK, tmp_path, refused) as running,
    ):
        before = running.until(beam.pid, test_daemon.always)
        assert 1 == before["scope_ebpf_refused", "samples"]
        assert BUSY not in before
        assert 23 == beam.plant("spawns 23")
        running.until(
            beam.pid,
            lambda now: now[SPAWNS] - before[SPAWNS] == 23 and now[SWITCHES] > before[SWITCHES],
        )
        code, errors = running.end()
    assert 0 == code, errors
    assert 1 == len(warnings(errors, "busy waiting and native code are not measured"))


def test_without_any_hook_the_memory_is_still_read(tmp_path: Path):
    """
    Breakpoints and tracepoints are refused: a line for each, hooks are 0, counters go on.
    """
    refused = refusing.prefix("BPF_LINK_CREATE")
    with (
        test_daemon.named("+S", "1:1") as beam,
        test_daemon.daemon(test_daemon.QUICK, tmp_path, refused) as running,
    ):
        now = running.until(beam.pid, lambda now: hooks(now) == {0.0})
        assert 1 == now["scope_ebpf_refused", "threads"]
        stats = beam.stats()
        running.until(
            beam.pid, lambda now: now["beam_context_switches_total",] >= stats["context_switches"]
        )
        code, errors = running.end()
    assert 0 == code, errors
    assert 1 == len(warnings(errors, "the cost of a hit is not known"))
    assert 1 == len(warnings(errors, "threads are not watched"))
    assert len(warnings(errors, "hook off")) >= 12


def test_the_doctor_foresees_what_the_daemon_refuses(tmp_path: Path):
    """
    For a VM that hides its functions, the same parts are missing, and the same hooks are off, but
    for those that the daemon still compares with the VM's counters.
    """
    with (
        beams_run.planted("sid29", *test_daemon.name_flags()) as beam,
        test_daemon.daemon(test_daemon.QUICK, tmp_path) as running,
    ):
        foretold = scope_trace("doctor", str(beam.pid), "--format", "json").document["daemon"]
        read = [("scope_ebpf_snapshot_timestamp_seconds", what) for what in ("memory", "processes")]
        now = running.until(beam.pid, lambda now: all(key in now for key in (*read, BUSY)))
    refused = {key[1] for key in now if key[0] == "scope_ebpf_refused"}
    assert refused == foretold["not_told"].keys()
    ratios = {k[1]: v for k, v in now.items() if k[0] == "scope_ebpf_sampling_ratio"}
    off = {hook for hook in ratios if not ratios[hook]}
    assert foretold["hooks"].keys() <= off <= foretold["hooks"].keys() | JUDGED
    assert all((foretold["not_told"] | foretold["hooks"]).values())
    assert foretold["refused"] is None


def test_strict_ends_where_hooks_are_refused(tmp_path: Path):
    """
    With --strict nothing goes on without them: one line, and an exit code of its own.
    """
    path = tmp_path / "config.toml"
    path.write_text("strict = true\n")
    daemon = (sys.executable, "-m", "scope_ebpf.cli.daemon", "--config", str(path))
    command = [*refusing.prefix("BPF_LINK_CREATE"), *daemon, "--listen", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=test_daemon.PATIENCE)
    assert 11 == done.returncode
    assert 1 == len(done.stderr.splitlines()) == len(warnings(done.stderr, "not permit"))


class Unwilling(Attacher):
    """
    Refuses breakpoints at *offset*, as a kernel that does not permit them.
    """

    offset = -1

    def attach(self, identity, programs, *, multi):
        places = {place.offset for _, group in programs for place in group}
        if self.offset in places:
            return [-1] * len(programs)
        return super().attach(identity, programs, multi=multi)


def test_one_hook_that_is_refused_leaves_the_others(caplog: pytest.LogCaptureFixture):
    """
    Spawns are not permitted: they are off with the reason, while exits are counted.
    """
    with test_daemon.named("+S", "1:1") as beam, Unwilling() as attacher:
        target = inspect(beam.pid)
        pool = ProgramPool(1, 0.1)
        resources = HookResources(attacher, pool, UNKNOWN)
        watch = Watch(target, "node", TargetHooks(target, prepare(target), resources, 0.05))
        (spawn,) = [item for item in watch.plan.items if item.event == "spawn"]
        attacher.offset = spawn.attachments[0].offset
        try:
            ticks(watch, beam)
            reported = watch.reading.events
        finally:
            watch.close()
            pool.expire(everything=True)
    assert "off" == reported["spawn"].mode
    assert reported["spawn"].reason.endswith(PERMIT)
    assert {"always"} == {reported[event].mode for event in ("exit", "gc", "hibernate")}
    assert 23 <= reported["exit"].totals.max()
    assert 1 == sum("hook off" in record.message for record in caplog.records)


def ticks(watch: Watch, beam: beams_run.Beam) -> None:
    """
    Let it attach its hooks and update its costs, then count what is planted.
    """
    while "exit" not in watch.hooks.session.attached:
        watch.tick()
    for _ in range(6):
        watch.tick()
    assert 23 == beam.plant("spawns 23")
    watch.tick()


@pytest.mark.parametrize("words", [("profile",), ("calls", "lists:reverse/1")], ids=lambda w: w[0])
def test_a_command_without_perf_events_says_what_to_do(stock: beams_run.Beam, words):
    """
    ``profile`` and ``calls`` end with the exit code of missing privileges, and one line.
    """
    more = ("--pid", str(stock.pid), "--duration", "1")
    done = scope_trace(*words, *more, prefix=refusing.prefix("perf_event_open"))
    assert NotRootError.exit_code == done.code
    assert "" == done.output
    assert 1 == len(done.complaints) == len(warnings(done.errors, "not permit perf events"))
