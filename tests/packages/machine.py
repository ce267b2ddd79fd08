# SPDX-License-Identifier: Apache-2.0
"""
A bare Debian for one test: its own files, mounts and processes, thrown away at the end.

    with machine(root("python3", "erlang-base")) as bare:
        bare.run("dpkg", "-i", "/mnt/scope-ebpf.deb")

What it writes goes into memory. It has this machine's kernel and no systemd, and this machine's
network unless it is put on one of its own.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
#: $1: the folder that is beneath, $2: what is seen at /mnt.
_BEGIN = """
set -e
mount -t tmpfs space /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount --bind "$2" mnt
echo "127.0.0.1 localhost $(hostname)" >etc/hosts
mount -t tmpfs run run
mount -t tmpfs tmp tmp
exec chroot . sh -c 'echo begun; exec sleep infinity'
"""
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def root(*packages: str, suite: str = "bookworm") -> Path:
    """
    The folder of a bare Debian with *packages*; what cannot be had is a reason to skip.
    """
    made = subprocess.run([str(HERE / "root.sh"), suite, *packages], capture_output=True, text=True)
    beams_run.require(made.returncode == 0, f"no bare Debian can be made: {made.stderr.strip()}")
    return Path(made.stdout.strip())


def only_child(pid: int) -> int:
    """
    The process that unshare or nsenter made, as this machine numbers it.
    """
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


class Machine:
    """
    A root of its own in which commands run.
    """

    def __init__(self, inside: int, network: Path | None = None) -> None:
        self._inside = inside
        self._network = network

    def on(self, network: Path) -> Machine:
        """
        The same machine, whose commands are on *network*, a file of ``/proc/PID/ns/net``.
        """
        return Machine(self._inside, network)

    def path(self, name: str) -> Path:
        """
        Where a file of the machine is seen from here.
        """
        return Path(f"/proc/{self._inside}/root") / name.lstrip("/")

    def command(self, *words: str) -> list[str]:
        """
        What runs *words* in the machine.
        """
        enter = ["nsenter", "-t", str(self._inside), "-m", "-p", "-r", "-w"]
        if self._network is not None:
            enter.append(f"--net={self._network}")
        return [*enter, "env", "-i", *(f"{k}={v}" for k, v in _ENVIRONMENT.items()), *words]

    def run(self, *words: str, code: int = 0) -> str:
        """
        Run a command to its end, which must be with *code*; its output and its errors.
        """
        pipe = subprocess.PIPE
        done = subprocess.run(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT
        )
        said = done.stdout.decode(errors="replace")
        assert done.returncode == code, f"{words} ended with {done.returncode}: {said}"
        return said


@contextmanager
def network(address: str) -> Iterator[Path]:
    """
    A network for :meth:`Machine.on` on which nobody else is; a machine has *address* there.
    """
    up = f"ip link set lo up && ip addr add {address}/32 dev lo && echo up && exec sleep infinity"
    command = ["unshare", "--net", "sh", "-c", up]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n", "no network could be made"
            yield Path(f"/proc/{process.pid}/ns/net")
        finally:
            process.kill()


@contextmanager
def machine(folder: Path, shared: Path) -> Iterator[Machine]:
    """
    A machine on top of *folder*, which sees *shared* at /mnt.
    """
    outside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _BEGIN, "sh"]
    process = subprocess.Popen([*outside, str(folder), str(shared)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n", "no machine could be made"
        yield Machine(only_child(process.pid))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
