# SPDX-License-Identifier: Apache-2.0
"""
A program that lies on its user's own filesystem is refused, and no process waits for its server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from fakes import PROGRAMS
from test_daemon import daemon
from tracing import require_root, wait_until

from scope_ebpf.beam.elf.binary import Binary
from scope_ebpf.sandbox import filesystems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Scene
    from test_daemon import Running

#: A user of its own, to which nothing else is charged.
TENANT = 4344
#: What the daemon says of such a program.
WHY = "lies on a filesystem of a user namespace (overlay)"
PATIENCE = 30


@contextlib.contextmanager
def silent(folder: Path, fake: Path, name: str) -> Iterator[int]:
    """
    The process number of a fake that runs from an overlay over a server which answers it alone.
    """
    require_root()
    device, mount_point = folder / f"{name}-device", folder / name
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    device.chmod(0o666)
    mount_point.mkdir()
    os.chown(mount_point, TENANT, TENANT)
    command = [sys.executable, PROGRAMS / "overlay_fs.py", str(TENANT), device, mount_point, fake]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(server.stdout.readline())
        assert "ready\n" == server.stdout.readline()
        yield pid
    finally:
        server.kill()  # processes that wait for it get an error then
        server.communicate()
        device.unlink()


def refused(running: Running, pid: int) -> bool:
    """
    Whether the daemon's page says so of *pid*.
    """
    with contextlib.suppress(OSError):  # it does not listen yet
        return f"<td>{pid}</td><td>/proc/{pid}/exe {WHY}" in running.get("/")
    return False


def test_a_program_on_an_overlay_over_silence_blocks_no_process(scene: Scene, fake: Path):
    """
    It is refused with that reason, and nothing waits for it: neither daemon nor its processes.
    """
    with silent(scene.folder, fake, "overlay") as pid:
        wait_until(lambda: refused(scene.daemon, pid), "a refusal")
        family = [scene.daemon.process.pid]
        family += [one.pid for one in psutil.Process(family[0]).children(recursive=True)]
        assert [] == [one for one in family if waits(one)]
        assert "ok\n" == scene.daemon.get("/healthz")


def waits(pid: int) -> bool:
    """
    Whether a thread of process *pid* waits for a FUSE server.
    """
    with contextlib.suppress(OSError):
        wchans = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/wchan")]
        return any("request_wait" in name or "fuse" in name for name in wchans)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_a_daemon_that_met_it_ends_while_the_server_is_silent(
    hostile_folder: Path, fake: Path, tmp_path: Path, number: signal.Signals
):
    """
    Either signal ends the daemon and all its processes.
    """
    config = f'scan_interval = "200ms"\nmin_age = 0\ninclude_paths = ["^{hostile_folder}/"]\n'
    with (
        silent(hostile_folder, fake, f"at-{number.name}") as pid,
        daemon(config, tmp_path) as running,
    ):
        wait_until(lambda: refused(running, pid), "a refusal")
        family = [*psutil.Process(running.process.pid).children(recursive=True)]
        assert family
        running.process.send_signal(number)
        running.process.communicate(timeout=PATIENCE)
        assert [] == psutil.wait_procs(family, PATIENCE)[1]


_ON_ROOTS = """
set -e
mkdir $0/low $0/up $0/work $0/over
cp /bin/sleep $0/low/program
mount -t overlay over -o lowerdir=$0/low,upperdir=$0/up,workdir=$0/work $0/over
echo mounted
exec $0/over/program 60
"""


def test_a_program_on_roots_overlay_is_opened():
    """
    A container's overlay is the host's: its programs are looked at as before.
    """
    require_root()
    disk = Path(f"/dev/shm/scope-{os.getpid()}")  # no overlay lies on another
    disk.mkdir()
    command = ["unshare", "--mount", "sh", "-c", _ON_ROOTS, disk]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert "mounted\n" == process.stdout.readline()
        exe = Path(f"/proc/{process.pid}/exe")
        wait_until(lambda: exe.readlink().name == "program", "the exec")
        assert Binary.open(exe).machine
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(disk)


@pytest.mark.parametrize(("options", "trusted"), [(["--mount"], True), (["--user"], False)])
def test_only_a_root_that_root_chose_is_trusted(options: list[str], trusted: bool):
    """
    The mount of a chroot is not shown; it is the host's unless a user namespace may have chosen it.
    """
    require_root()
    command = ["unshare", *options, "sh", "-c", "echo ready; read line"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert "ready\n" == process.stdout.readline()
        folder = f"/proc/{process.pid}"
        root = os.open(f"{folder}/root", os.O_PATH)
        number = filesystems._mount_number(root)
        os.close(root)
        found = filesystems._of_roots_chroot(folder, number)
        assert trusted == (found is not None and found.by_root)
        assert filesystems._of_roots_chroot(folder, number + 1) is None
        process.communicate("\n")
