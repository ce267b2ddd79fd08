# SPDX-License-Identifier: Apache-2.0
"""
Which process is observed, distinguished from all that it may become.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from beams_run import PATIENCE, require

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.vm import identity as module
from scope_ebpf.beam.vm.exec_watch import EventWatch, MemoryWatch
from scope_ebpf.beam.vm.identity import Identity, Process
from scope_ebpf.errors import NoSuchProcessError, NotPermittedError, TargetChangedError
from scope_ebpf.kernel.attach import attacher

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A program that does one thing after a line.
AFTER_LINE = "import os, sys, threading\nprint('ready', flush=True)\ninput()\n"
GOES_ON = "print('did', flush=True)\ninput()\n"
ITSELF = "os.execv(sys.executable, [sys.executable, '-c', \"print('did', flush=True);input()\"])\n"
IN_A_THREAD = "threading.Thread(target=lambda: os.execv('/bin/cat', ['cat'])).start()\ninput()\n"


@contextmanager
def python(what: str) -> Iterator[subprocess.Popen[str]]:
    """
    A process that is ready to do *what* after a line.
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", AFTER_LINE + what]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def send(process: subprocess.Popen[str]) -> None:
    """
    The line that it waits for.
    """
    assert process.stdin is not None
    process.stdin.write("line\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    """
    What it says when it has done it.
    """
    assert process.stdout is not None
    return process.stdout.readline()


def identity_of(pid: int, file: Path | None = None) -> Identity:
    """
    What a look at *pid* makes, which found *file*.
    """
    process = Process(pid)
    binary = Binary.open(file or Path(f"/proc/{pid}/exe"))
    process.watch()
    return Identity.of(process, 0, binary)


def watched(found: Identity) -> None:
    """
    Wait as commands do, until it is no more what it was.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found.wait(0.1)


@pytest.fixture(params=[EventWatch, MemoryWatch], ids=["event", "memory"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """
    Each watch for an exec; the first takes Linux 5.13.
    """
    if request.param is EventWatch:
        try:
            EventWatch(os.getpid()).close()
        except OSError as error:
            require(False, f"no perf event reports an exec here: {error}")
    monkeypatch.setattr(module, "watch_execs", request.param)
    return request.param


def test_a_process_that_goes_on_is_itself(watch: type):
    """
    Whatever it does besides, its identity holds, with its file and its ids.
    """
    with python(GOES_ON) as process:
        found = identity_of(process.pid)
        send(process)
        assert answer(process) == "did\n"
        found.check()
        found.wait(0.0)
        status = Path(sys.executable).stat()
        assert found.inode == (status.st_dev, status.st_ino)
        assert (found.uids, found.gids) == ((os.getuid(),) * 4, (os.getgid(),) * 4)
        assert os.fstat(found.file).st_ino == status.st_ino


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("os.execv('/bin/echo', ['echo', 'did'])", "ended|another program"),
        (ITSELF, "became another program"),
        (IN_A_THREAD, "became another program"),
    ],
    ids=["another file", "itself", "in a thread"],
)
def test_a_process_that_executes_a_program_is_another(watch: type, what: str, said: str):
    """
    Also if it is the same program, or another thread executes it; from then on nothing is read.
    """
    with python(what) as process:
        found = identity_of(process.pid)
        memory = Memory(process.pid, found.process)
        address = int(Path(f"/proc/{process.pid}/maps").read_text().partition("-")[0], 16)
        assert len(memory.read(address, 4)) == 4
        send(process)
        with pytest.raises(NoSuchProcessError, match=said):
            watched(found)
        for use in (found.check, lambda: memory.read(address, 4)):
            with pytest.raises(NoSuchProcessError, match=said):
                use()


def test_a_process_that_ends_has_ended(watch: type):
    """
    That is not reported as a change.
    """
    with python("") as process:
        found = identity_of(process.pid)
        send(process)
        with pytest.raises(NoSuchProcessError, match="has ended") as raised:
            watched(found)
        assert not isinstance(raised.value, TargetChangedError)


@pytest.mark.parametrize(
    "what", ["os.setuid(65534)", "os.seteuid(65534)", "os.setgid(65534)", "os.setegid(65534)"]
)
def test_a_process_that_changes_one_of_its_ids_is_another(what: str):
    """
    Real, effective, saved: each counts.
    """
    require(os.geteuid() == 0, "only root may become another user")
    with python(f"{what}\n{GOES_ON}") as process:
        found = identity_of(process.pid)
        send(process)
        assert answer(process) == "did\n"
        with pytest.raises(TargetChangedError, match="changed its user or group"):
            found.check()


def test_another_file_than_the_one_that_was_opened_is_a_change():
    """
    A process that executed between two looks is not taken for what was opened first.
    """
    with python(GOES_ON) as process, pytest.raises(TargetChangedError, match="another program"):
        identity_of(process.pid, Path("/bin/cat"))


@pytest.mark.parametrize(
    ("bit", "which"), [(stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid")], ids=["uid", "gid"]
)
def test_a_file_with_the_rights_of_another_is_no_target(tmp_path: Path, bit: int, which: str):
    """
    For any owner.
    """
    file = tmp_path / "cat"
    file.write_bytes(Path("/bin/cat").read_bytes())
    file.chmod(0o755 | bit)
    process = subprocess.Popen([file], stdin=subprocess.PIPE)
    try:
        with pytest.raises(NotPermittedError, match=f"runs a {which} file"):
            identity_of(process.pid)
    finally:
        process.kill()
        process.communicate()


def test_a_released_process_is_reported_as_ended():
    """
    Its descriptors may be another one's by then, so nothing is asked of them.
    """
    found = identity_of(os.getpid())
    found.check()
    found.close()
    with pytest.raises(NoSuchProcessError, match="has ended"):
        found.check()


def test_what_is_held_of_a_process_goes_with_it():
    """
    No descriptor stays when the identity is not used any more.
    """
    gc.collect()  # what other tests left, and would be collected meanwhile
    binary = Binary.open(Path("/proc/self/exe"))
    before = sorted(Path("/proc/self/fd").iterdir())
    process = Process(os.getpid())
    process.watch()
    found = Identity.of(process, 0, binary)
    assert len(list(Path("/proc/self/fd").iterdir())) > len(before)
    del process, found
    assert before == sorted(Path("/proc/self/fd").iterdir())


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch) -> Iterator[attacher.Holder]:
    """
    What attaches, without a kernel: a link is the end of a pipe, and its path is noted.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = attacher.Holder(its)
    made.links = []

    def link(program: int, path: bytes, pid: int, options: dict[str, object]) -> list[int]:
        reading, writing = os.pipe()
        made.links.append((os.path.realpath(path).decode(), reading))
        return [writing]

    monkeypatch.setattr(attacher, "multi_link", link)
    with ours, its:
        yield made


def ask(holder: attacher.Holder, file: Path, pidfd: int) -> list[int]:
    """
    Attach one program to an offset of *file*.
    """
    fds = [os.open(file, os.O_RDONLY), os.dup(pidfd), os.open("/dev/null", os.O_RDONLY)]
    request = {"multi": True, "pid": 1, "programs": [{"offsets": [16]}]}
    return holder._attach(json.loads(json.dumps(request)), fds)


def test_breakpoints_go_to_the_file_that_came_along(holder: attacher.Holder, tmp_path: Path):
    """
    However it is called by then.
    """
    (tmp_path / "file").write_text("x")
    pidfd = os.pidfd_open(os.getpid())
    assert [1] == ask(holder, tmp_path / "file", pidfd)
    os.close(pidfd)
    assert [str(tmp_path / "file")] == [path for path, _ in holder.links]


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID])
def test_no_breakpoint_goes_to_a_file_that_is_setuid_by_now(
    holder: attacher.Holder, tmp_path: Path, bit: int
):
    """
    It may have become that since it was inspected.
    """
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o755 | bit)
    pidfd = os.pidfd_open(os.getpid())
    assert [-attacher.UNFIT] == ask(holder, tmp_path / "file", pidfd)
    assert [-attacher.UNFIT] == ask(holder, Path("/dev/null"), pidfd)
    os.close(pidfd)
    assert [] == holder.links


def test_a_breakpoint_of_a_process_that_has_ended_goes_out_at_once(
    holder: attacher.Holder, tmp_path: Path
):
    """
    Its number may have been another one's when the kernel looked it up.
    """
    (tmp_path / "file").write_text("x")
    process = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(process.pid)
    process.wait()
    assert [-3] == ask(holder, tmp_path / "file", pidfd)
    os.close(pidfd)
    ((_, link),) = holder.links
    assert os.read(link, 1) == b""
    os.close(link)


@pytest.mark.parametrize("seconds", [1e300, float("inf")])
def test_a_wait_of_any_length_begins(seconds: float):
    """
    poll(2) takes no more milliseconds than an int has; the end of the process is reported as ever.
    """
    with subprocess.Popen(["true"]) as other:
        assert Process(other.pid).poller()(seconds)
