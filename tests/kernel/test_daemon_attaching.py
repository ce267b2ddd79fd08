# SPDX-License-Identifier: Apache-2.0
"""
What happens to a target at the moment when its hooks are on their way: the daemon has asked the
process that holds the breakpoints to put them in, and that one is kept from doing so until then.

The VMs run from a file of their own, so that a breakpoint in it is this daemon's.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
import test_daemon
from test_daemon_faults import spawns
from tracing import breakpoints, holder_of, hooked_addresses, in_kernel, nothing_left, wait_until

from scope_ebpf.kernel.attach import attacher

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The system call that waits for the holder's answer (x86_64): recvfrom with room for that much.
WAITING = ("45", hex(attacher.MESSAGE_BYTES))


class Held:
    """
    The process that holds a daemon's breakpoints, kept from working.
    """

    def __init__(self, daemon: test_daemon.Running) -> None:
        self._daemon = daemon.process.pid
        self.process = holder_of(self._daemon)
        self.process.suspend()

    def wait_until_asked(self, beam: beams_run.Beam) -> None:
        """
        Return once the daemon waits for it, and *beam* has no hook yet.
        """
        wait_until(self._is_asked, "a request for hooks")
        assert 0 == breakpoints(beam.pid, hooked_addresses(beam.pid))

    def _is_asked(self) -> bool:
        call = Path(f"/proc/{self._daemon}/syscall").read_text().split()
        return len(call) > 3 and (call[0], call[3]) == WAITING


@contextlib.contextmanager
def holding(daemon: test_daemon.Running) -> Iterator[Held]:
    """
    Hooks that are requested while the block runs are attached when it ends.
    """
    wait_until(lambda: is_ready(daemon), "the daemon's readiness")
    held = Held(daemon)
    try:
        yield held
    finally:
        held.process.resume()


def is_ready(daemon: test_daemon.Running) -> bool:
    with contextlib.suppress(OSError):
        return daemon.get("/readyz") == "ready\n"
    return False


def counts(daemon: test_daemon.Running, beam: beams_run.Beam) -> None:
    """
    What the VM does from now on is counted.
    """
    before = spawns(daemon.until(beam.pid, test_daemon.always))
    assert 23 == beam.plant("spawns 23")
    daemon.until(beam.pid, lambda now: spawns(now) - before == 23)


def ended(daemon: test_daemon.Running, *lines: str) -> None:
    """
    The daemon ends well, and has said each of *lines*.
    """
    code, errors = daemon.end()
    assert 0 == code, errors
    assert "Traceback" not in errors
    for line in lines:
        assert any(line in said for said in errors.splitlines()), errors


@pytest.fixture
def running(tmp_path: Path) -> Iterator[test_daemon.Running]:
    """
    A daemon, which leaves nothing in the kernel.
    """
    before = in_kernel()
    with test_daemon.daemon(test_daemon.QUICK, tmp_path) as daemon:
        yield daemon
    nothing_left(before)


def test_a_target_that_is_stopped_meanwhile_is_observed(
    running: test_daemon.Running, private_emulator: Path
):
    """
    SIGSTOP between the request and the breakpoints: they are attached, and count once it goes on.
    """
    with contextlib.ExitStack() as stack:
        with holding(running) as held:
            beam = stack.enter_context(test_daemon.named("+S", "1:1", emulator=private_emulator))
            held.wait_until_asked(beam)
            beam.freeze()
        before = spawns(running.until(beam.pid, test_daemon.always))
        beam.thaw()
        assert 23 == beam.plant("spawns 23")
        running.until(beam.pid, lambda now: spawns(now) - before == 23)
        ended(running, f"message=observing pid={beam.pid}")


def test_a_target_that_is_killed_meanwhile_is_dropped(
    running: test_daemon.Running, private_emulator: Path
):
    """
    SIGKILL between the request and the breakpoints, and a new VM of the same name at once, as heart
    starts one: the old is let go with a line, the new is observed under the name.
    """
    with contextlib.ExitStack() as stack:
        with holding(running) as held:
            with test_daemon.named("+S", "1:1", emulator=private_emulator) as mortal:
                held.wait_until_asked(mortal)
            beam = stack.enter_context(test_daemon.named("+S", "1:1"))
        counts(running, beam)
        assert not running.samples(mortal.pid)
        gone = f'message="no longer observing" pid={mortal.pid} '
        ended(running, gone, f"message=observing pid={beam.pid} node={test_daemon.NAME}@127.0.0.1 ")


def test_a_target_whose_file_is_replaced_meanwhile_is_observed(
    running: test_daemon.Running, tmp_path: Path, private_emulator: Path
):
    """
    An upgrade on disk between the request and the breakpoints: they go into the file that runs.
    """
    folder = shutil.copytree(private_emulator, tmp_path / "emulator")
    with contextlib.ExitStack() as stack:
        with holding(running) as held:
            beam = stack.enter_context(test_daemon.named("+S", "1:1", emulator=folder))
            held.wait_until_asked(beam)
            (folder / "new").write_bytes(b"#!/bin/false\n")
            (folder / "new").replace(folder / "beam.smp")
        counts(running, beam)
        ended(running, f"message=observing pid={beam.pid}")


def test_a_target_that_becomes_another_vm_meanwhile_is_observed_again(
    running: test_daemon.Running, tmp_path: Path, private_emulator: Path
):
    """
    An exec of a VM between the request and the breakpoints: the old one is dropped with a line, the
    new one, in the same process, is observed from its own beginning.
    """
    modules = str(beams_run.compiled("stock25"))
    quiet = ("-noinput", "-boot", "no_dot_erlang", "+S", "1:1", "-pa", modules)
    new = ("exec", "erl", *quiet, *test_daemon.name_flags(), "-s", "planted")
    env = {
        **beams_run.native_functions(tmp_path),
        "BECOME": shlex.join(new),
        "BINDIR": str(private_emulator),
    }
    with contextlib.ExitStack() as stack:
        with holding(running) as held:
            flags = ("+S", "1:1", *test_daemon.name_flags(), "-s", "witness")
            beam = stack.enter_context(beams_run.start_beam("usdt25", *flags, env=env))
            beam.expect("ready")
            held.wait_until_asked(beam)
            beam.send("become")
            beam.expect("ready")
        seen = "scope_ebpf_targets_seen_total 2.0\n"
        wait_until(lambda: seen in running.get(), "the observation of the new one")
        counts(running, beam)
        gone = f'message="no longer observing" pid={beam.pid} '
        ended(running, gone, f"message=observing pid={beam.pid}")
