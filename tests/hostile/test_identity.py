# SPDX-License-Identifier: Apache-2.0
"""
A process that becomes something else is let go: nothing is written to what it became, and nothing
that was read of that is reported.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import numpy as np
import pytest
from fakes import NOBODY, as_nobody, compiled
from tracing import require_root, scope_trace, trace, wait_until

from scope_ebpf import events
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.beam.vm.identity import Process
from scope_ebpf.errors import NotPermittedError, TargetChangedError, TargetEndedError
from scope_ebpf.kernel.attach.breakpoints import Breakpoints
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.observers.governed import GovernedSession
from scope_ebpf.kernel.observers.off_cpu import OffCpuSampler
from scope_ebpf.kernel.observers.sampler import Sampler
from scope_ebpf.kernel.observers.session import Session
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Scene

    from scope_ebpf.beam.vm.target import Target

#: Calls of the hooked function in 10 ms: so many that no budget permits them all.
OFTEN = 2000
PAGE = 0x10000000000
SECRET = "only-root-may-read-this"
#: cap_net_bind_service, effective (linux/capability.h: struct vfs_cap_data, revision 2).
BIND_LOW_PORTS = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture(scope="module")
def program(hostile_folder: Path) -> Path:
    """
    The program of ``programs/becomes.c``.
    """
    require_root()
    return compiled("becomes", hostile_folder)


@pytest.fixture(scope="module")
def victim(program: Path) -> Path:
    """
    A setuid-root copy of it, in a file of its own.
    """
    return copied(program, "victim", stat.S_ISUID)


def copied(program: Path, name: str, bits: int = 0) -> Path:
    """
    A copy of *program* with these bits in its mode.
    """
    made = program.with_name(name)
    made.write_bytes(program.read_bytes())
    made.chmod(0o755 | bits)
    return made


@contextlib.contextmanager
def running(*words: str | Path, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """
    *words* as nobody, once it has said something; lines may be sent to it.
    """
    pipe = subprocess.PIPE
    command = [*prefix, *map(str, words)] if prefix else as_nobody(*words)
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def fake(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """
    A fake BEAM of nobody, ready.
    """
    with running(*words) as process:
        assert said(process) == "ready"
        yield process


def said(process: subprocess.Popen[str]) -> str:
    """
    The next line of a process.
    """
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def send(process: subprocess.Popen[str]) -> None:
    """
    The line that it waits for.
    """
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def observed(scene: Scene, pid: int) -> bool:
    """
    Whether the daemon reports something of *pid*.
    """
    return bool(scene.daemon.samples(pid))


def seen(scene: Scene) -> int:
    """
    How many targets the daemon has taken in so far.
    """
    found = re.search(r"^scope_ebpf_targets_seen_total (\d+)", scene.daemon.get(), re.MULTILINE)
    assert found
    return int(found[1])


def test_a_setuid_program_that_is_executed_between_two_windows_is_not_written_to(
    scene: Scene, program: Path, victim: Path
):
    """
    An event goes to windows, and after the second of them the process becomes a setuid-root
    program: not a byte of that changes, and the daemon has let go of it.
    """
    after_two = (OFTEN, "cc", "2", victim, "text", "5000")
    with fake(program, "beam", *map(str, after_two)) as process:
        assert said(process) == "comparing as 0"
        wait_until(lambda: not observed(scene, process.pid), "an end of the observation")
        assert said(process) == "changed 0"


def test_a_trace_ends_where_its_target_becomes_another_program(program: Path, victim: Path):
    """
    A command ends with the exit code of a target that ended, says what it became, and leaves the
    other program as it is.
    """
    with fake(program, "beam", "10", "us", "0", victim, "text", "60000") as process:
        with trace(process.pid, "--events", "send") as run:
            send(process)
            outcome = run.wait()
        assert said(process) == "comparing as 0"
        send(process)
        assert said(process) == "changed 0"
    assert TargetEndedError.exit_code == outcome.code
    assert [
        f"scope-trace: process {process.pid} became another program while it was traced"
    ] == outcome.complaints


def plan_of(target: Target):
    """
    The one event that the program has a function for.
    """
    return make_plan(target.binary, target.flavor, ["send"])


def session(target: Target) -> None:
    """
    What a trace attaches.
    """
    with Session(plan_of(target), target.identity, target.base, np.zeros((), events.SETTINGS)):
        pass


def governed(target: Target) -> None:
    """
    What the daemon attaches for a window.
    """
    given = plan_of(target), target.identity, target.base, np.zeros((), events.SETTINGS)
    with Attacher() as attacher, GovernedSession(*given, attacher=attacher) as daemons:
        daemons.attach("send")


def waits(target: Target) -> None:
    """
    What ``profile --off-cpu`` attaches.
    """
    settings = np.zeros((), events.SAMPLE_SETTINGS)
    settings["period_ns"] = 1_000_000
    with OffCpuSampler(target.identity, settings, ()):
        pass


def sampler(target: Target) -> None:
    """
    What ``profile`` attaches.
    """
    with Sampler(target.identity, np.zeros((), events.SAMPLE_SETTINGS), 99) as timer:
        timer.start()


def breakpoints(target: Target) -> None:
    """
    What ``calls`` attaches.
    """
    Breakpoints(target.identity, {}, 1).set({}, ())


@pytest.mark.parametrize(
    "attach", [session, governed, waits, sampler, breakpoints], ids=lambda f: f.__name__
)
def test_nothing_is_attached_to_what_a_process_became(
    program: Path, victim: Path, attach: Callable[[Target], None]
):
    """
    What attaches asks first, however long ago the process was looked at.
    """
    with fake(program, "beam", "1", "us", "0", victim, "text", "60000") as process:
        target = inspect(process.pid)
        target.identity.check()
        send(process)
        with pytest.raises(TargetChangedError, match="became another program"):
            target.identity.wait(beams_run.PATIENCE)
        assert said(process) == "comparing as 0"
        with pytest.raises(TargetChangedError):
            attach(target)


class Unchecked:
    """
    The identity of *target*, whose check was passed a moment before the exec.
    """

    def __init__(self, target: Target) -> None:
        identity = target.identity
        self.pid, self.pidfd, self.file = identity.pid, identity.pidfd, identity.file

    def check(self) -> None:
        """
        It has been passed.
        """


def test_an_exec_right_after_the_check_changes_nothing_in_the_other_program(
    program: Path, victim: Path
):
    """
    Breakpoints go to the file that was inspected: for the other program they are none.
    """
    with fake(program, "beam", "1", "us", "0", victim, "text", "60000") as process:
        target = inspect(process.pid)
        send(process)
        assert said(process) == "comparing as 0"
        settings = np.zeros((), events.SETTINGS)
        with Session(plan_of(target), Unchecked(target), target.base, settings) as attached:
            send(process)
            assert said(process) == "changed 0"
            assert not any(attached.hits().values())


def test_the_memory_of_a_setuid_program_is_never_read(program: Path, victim: Path):
    """
    A process whose memory lives on in another one becomes a setuid program and itself again:
    what is read is of the first program, and from the first exec on nothing.
    """
    itself = (program, "page", hex(PAGE), "public")
    secret = (victim, "page", hex(PAGE), SECRET)
    with running(*itself, "hide", *secret, *itself) as process:
        assert said(process) == "public"
        held = Process(process.pid)
        held.watch()
        memory, texts, done = Memory(process.pid, held), set(), threading.Event()

        def read() -> None:
            while not done.is_set():
                with contextlib.suppress(TargetChangedError):
                    texts.add(text_at(memory))

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: texts, "a first reading")
        send(process)
        assert said(process) == SECRET
        assert text_at(Memory(process.pid)) == SECRET
        send(process)
        assert said(process) == "public"
        done.set()
        reader.join()
        assert texts == {"public"}
        assert text_at(Memory(process.pid)) == "public"
        with pytest.raises(TargetChangedError):
            memory.read(PAGE, 8)


def text_at(memory: Memory) -> str:
    """
    The text in the page.
    """
    return memory.read(PAGE, 64).split(b"\0")[0].decode()


@pytest.mark.parametrize(
    ("bits", "which"), [(stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid")], ids=["uid", "gid"]
)
def test_a_file_with_the_rights_of_another_is_refused(
    scene: Scene, program: Path, bits: int, which: str
):
    """
    In one line by a command; the daemon leaves it alone and goes on to the next.
    """
    privileged, common = copied(program, f"as-{which}", bits), copied(program, f"no-{which}")
    with (
        fake(privileged, "beam", "1", "us", "0", "x") as refused,
        fake(common, "beam", "1", "us", "0", "x") as taken,
    ):
        done = scope_trace("--pid", str(refused.pid), "--duration", "1")
        why = f"process {refused.pid} runs a {which} file: such programs are left alone"
        assert (NotPermittedError.exit_code, [f"scope-trace: {why}"]) == (
            done.code,
            done.complaints,
        )
        scene.daemon.until(taken.pid, bool)
        assert not observed(scene, refused.pid)


def test_the_rights_of_two_users_are_refused(program: Path):
    """
    A launcher that kept a saved or an effective id of root is no target either.
    """
    prefix = ("setpriv", f"--ruid={NOBODY.pw_uid}", "--")
    with running(program, "beam", "1", "us", "0", "x", prefix=prefix) as process:
        assert said(process) == "ready"
        with pytest.raises(NotPermittedError, match=r"more than one user \(65534, 0\)"):
            inspect(process.pid)


def test_a_process_that_changes_its_user_is_looked_at_anew(scene: Scene, program: Path):
    """
    What was inspected as root's is not reported as nobody's; the daemon takes it in again as that.
    """
    words = (program, "beam", "1", "uid", str(NOBODY.pw_uid))
    with running(*words, prefix=("env",)) as process:
        assert said(process) == "ready"
        scene.daemon.until(process.pid, bool)
        target = inspect(process.pid)
        before, taken_in = target.identity.uids, seen(scene)
        send(process)
        assert said(process) == "changed"
        with pytest.raises(TargetChangedError, match="changed its user or group"):
            target.identity.check()
        assert ((0,) * 4, (NOBODY.pw_uid,) * 4) == (before, inspect(process.pid).identity.uids)
        wait_until(lambda: seen(scene) == taken_in + 1, "a look anew")
        assert observed(scene, process.pid)


def test_file_capabilities_are_no_reason_to_refuse(scene: Scene, hostile_folder: Path):
    """
    An emulator that may bind low ports, as nobody, is observed.
    """
    folder = hostile_folder / "capable"
    folder.mkdir()
    for file in (hostile_folder / "emulator").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
        (folder / file.name).chmod(0o755)
    os.setxattr(folder / "beam.smp", "security.capability", BIND_LOW_PORTS)
    command = as_nobody(
        *("env", f"BINDIR={folder}", "ROOTDIR=/usr/lib/erlang", "EMU=beam", "PROGNAME=erl"),
        *("HOME=/", folder / "erlexec", "-noshell", "-noinput", "-eval", "timer:sleep(infinity)"),
    )
    process = subprocess.Popen(command)
    try:
        samples = scene.daemon.until(process.pid, lambda found: found)
        assert samples
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"CapEff:\t{1 << 10:016x}" in status
        assert inspect(process.pid).otp_release == "25"
    finally:
        process.kill()
        process.wait()


def test_a_process_in_a_user_namespace_is_observed(scene: Scene, program: Path):
    """
    Who is root in a namespace of its own is nobody outside of it, with one user's rights.
    """
    command = ("unshare", "--user", "--map-root-user", program, "beam", "1", "us", "0", "x")
    with fake(*command) as process:
        scene.daemon.until(process.pid, bool)
        assert (NOBODY.pw_uid,) * 4 == inspect(process.pid).identity.uids


def test_a_number_that_is_used_again_is_another_process(program: Path):
    """
    A process that has the number and the program of one that has ended is not taken for it.
    """
    words = ("beam", "1", "cc", "1", "x")
    with fake(program, *words) as first:
        target = inspect(first.pid)
        number = first.pid
    started_as(number, [str(program), *words])
    try:
        wait_until(lambda: Path(f"/proc/{number}/comm").read_text() == "becomes\n", "its exec")
        assert inspect(number).identity.inode == target.identity.inode
        for use in (target.identity.check, lambda: session(target), lambda: target.memory.u64(8)):
            with pytest.raises(Exception, match=f"process {number} has ended"):
                use()
    finally:
        os.kill(number, 9)
        os.waitpid(number, 0)


def started_as(number: int, command: list[str]) -> int:
    """
    Start *command* as process *number* (clone3 with set_tid); its pid.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    tids = (ctypes.c_int * 1)(number)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    # set_tid, set_tid_size, cgroup
    words = [0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(tids), 1, 0]
    arguments = (ctypes.c_uint64 * len(words))(*words)
    pid = libc.syscall(435, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        os.execv(command[0], command)
    assert pid == number, os.strerror(ctypes.get_errno())
    return pid
