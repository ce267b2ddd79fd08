# SPDX-License-Identifier: Apache-2.0
"""
The process that holds breakpoints, where the host gives it no more threads, memory or descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from beams_run import PATIENCE, require
from test_daemon import QUICK, Running, always, daemon, named
from test_leftovers import Scene, attached, scene_of
from tracing import require_root, wait_until

from scope_ebpf.errors import HostError
from scope_ebpf.kernel.attach import attacher
from scope_ebpf.kernel.attach.uprobes import Attacher, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import beams_run


@pytest.fixture(scope="module")
def quiet() -> Iterator[beams_run.Beam]:
    require_root()
    with named() as beam:
        yield beam


@pytest.fixture
def scene(quiet: beams_run.Beam) -> Iterator[Scene]:
    yield from scene_of(quiet)


@contextlib.contextmanager
def no_more_tasks(pid: int) -> Iterator[None]:
    """
    A control group in which *pid* can start neither a thread nor a process.
    """
    roots = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    root = next(folder for folder in roots if (folder / "cgroup.procs").exists())
    group = root / f"scope-test-{os.getpid()}"
    before = root / Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].rpartition(":")[2][1:]
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text("1")
        yield
        with contextlib.suppress(OSError):  # it has ended
            (before / "cgroup.procs").write_text(str(pid))
    finally:
        group.rmdir()


@contextlib.contextmanager
def no_more_memory(pid: int) -> Iterator[None]:
    """
    No room in *pid* for the stack of one more thread.
    """
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
    yield


@pytest.mark.parametrize("less", [no_more_tasks, no_more_memory])
@pytest.mark.parametrize("before", [False, True], ids=["no thread", "some threads"])
def test_it_detaches_without_threads(
    scene: Scene, less: Callable[[int], contextlib.AbstractContextManager[None]], before: bool
):
    """
    Where no thread can be started breakpoints are attached and removed all the same.
    """
    with Attacher(fork=False) as holder:  # a fork finds room where threads of ours have been
        wait_gone(holder.detach([]))  # it runs
        if before:
            wait_gone(attached(scene, scene.sites[:1], holder).detach())
        with less(holder.pid):
            for _ in range(2):
                held = [attached(scene, [site], holder) for site in scene.sites[:8]]
                assert 8 == len(scene.found)
                for uprobes in held:
                    wait_gone(uprobes.detach())
                assert [] == scene.found
            attached(scene, scene.sites, holder)
            threads = len(list(Path(f"/proc/{holder.pid}/task").iterdir()))
            assert (2 if before else 1) == threads


def test_programs_whose_descriptors_found_no_room_are_refused(scene: Scene):
    """
    A request whose descriptors the kernel dropped is answered with the error; the next one works.
    """
    with Attacher() as holder:
        request = {"path": "/", "pid": 1, "multi": True, "programs": [{}, {}]}
        socket.send_fds(holder._channel, [json.dumps(request).encode()], [0])
        assert [-24, -24] == json.loads(holder._channel.recv(100))
        wait_gone(attached(scene, scene.sites, holder).detach())


def test_an_answer_that_is_not_read(scene: Scene):
    """
    A parent that is killed before it reads an answer resets the channel: all is removed, too.
    """
    holder = Attacher()
    attached(scene, scene.sites, holder)
    assert scene.found
    holder._channel.send(json.dumps({"programs": [], "multi": True}).encode())
    wait_until(lambda: select.select([holder._channel], [], [], 0)[0], "an answer")
    holder.close()
    assert 0 == holder._process.returncode
    assert [] == scene.found


def test_an_attacher_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """
    Where no process can be started that is a HostError of one line.
    """
    monkeypatch.setattr("sys.executable", "/nonexistent")
    with pytest.raises(HostError, match="cannot start the process that holds breakpoints: No such"):
        Attacher(fork=False)


@pytest.mark.parametrize("fork", [False, True])
def test_it_has_nothing_of_the_process_that_started_it(fork: bool):
    """
    It has its channel alone, a session and a command line of its own, and no signal ends it.
    """
    with open("/dev/zero", "rb") as file, Attacher(fork=fork) as holder:  # noqa: PTH123
        os.set_inheritable(file.fileno(), True)
        wait_gone(holder.detach([]))  # it runs
        own = psutil.Process(holder.pid)
        paths = Path(f"/proc/{own.pid}/fd").iterdir()
        open_files = {path.name: str(path.readlink()) for path in paths}
        assert ["/dev/null"] * 2 == [open_files.pop("0"), open_files.pop("1")]
        del open_files["2"]
        assert ["socket"] == [name.partition(":")[0] for name in open_files.values()]
        assert [sys.executable, "-I", "-S", attacher.__file__] == own.cmdline()[:4]
        assert Path(sys.executable).name == own.name()
        assert own.pid == os.getsid(own.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            own.send_signal(number)
        wait_gone(holder.detach([]))
    assert 0 == holder._process.returncode


def attacher_of(daemon: int) -> int:
    """
    The process that holds a daemon's breakpoints.
    """
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    (found,) = [c for c in children if b"attacher.py" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return int(found)


def priority_of(process: int) -> tuple[int, str]:
    """
    The nice value of a process, and that of its session.
    """
    group = Path(f"/proc/{process}/autogroup")
    require(group.exists(), "this kernel has no groups of sessions (CONFIG_SCHED_AUTOGROUP)")
    return os.getpriority(os.PRIO_PROCESS, process), group.read_text().split()[-1]


def test_it_runs_before_the_targets(monkeypatch: pytest.MonkeyPatch):
    """
    It leads a session of its own, whose share of the CPU is set by its nice value.
    """
    require_root()
    leads = os.setsid
    monkeypatch.setattr(os, "setsid", lambda: (time.sleep(0.2), leads()))  # as on a busy machine
    with Attacher() as holder:
        assert holder.pid == os.getsid(holder.pid)
        assert (0, "0") == priority_of(holder.pid)
        holder.set_priority(-10)
        assert (-10, "-10") == priority_of(holder.pid)


def test_the_attacher_of_a_daemon_runs_before_the_targets(tmp_path: Path):
    """
    The daemon sets the priority of its attacher at its start, before it serves anything.
    """
    require_root()
    with daemon(QUICK, tmp_path) as running:
        wait_until(lambda: serves(running), "the daemon")
        assert (-10, "-10") == priority_of(attacher_of(running.process.pid))


def serves(running: Running) -> bool:
    """
    Whether a daemon answers.
    """
    with contextlib.suppress(OSError):
        return "scope_ebpf_targets" in running.get()
    return False


def test_a_daemon_whose_attacher_has_no_room(scene: Scene, tmp_path: Path):
    """
    A daemon whose attacher can start no thread observes one more VM, counts, and ends in order.
    """
    with daemon(QUICK, tmp_path) as running:
        running.until(scene.beam.pid, bool)
        with no_more_memory(attacher_of(running.process.pid)), named() as beam:
            samples = running.until(beam.pid, always)
            planted = beam.plant("spawns 23")
            name = ("beam_process_spawns_total",)
            running.until(beam.pid, lambda now: now[name] >= samples[name] + planted)
        code, errors = running.end()
    assert 0 == code
    assert "Traceback" not in errors


def test_it_has_ended_only_when_it_has():
    """
    An answer that one thread waits for does not show another one that the process has ended.
    """
    poll = select.poll()
    with Attacher() as attacher:
        poll.register(attacher.fileno(), select.POLLIN)
        request = json.dumps({"programs": [], "numbers": []}).encode()
        socket.send_fds(attacher._channel, [request], [attacher.fileno()])
        assert select.select([attacher._channel], [], [], PATIENCE)[0]
        assert [] == poll.poll(0)
        os.kill(attacher.pid, signal.SIGKILL)
        assert poll.poll(1000 * PATIENCE)
