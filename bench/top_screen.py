# SPDX-License-Identifier: Apache-2.0
"""
What ``top`` in a terminal takes itself, of a VM with many processes: CPU, memory, start.

    bench/top_screen.py [PROCESSES] [SECONDS]

Starts a VM with that many processes (default 200,000), of which one has a long mailbox, and a
terminal of 120x40 cells with ``top`` in it. For each order, and for a filter, it prints the share
of a core that ``top`` took over SECONDS (default 15), and that of the VM. Last comes the CPU time
of ``top --once`` for a VM of few processes, the least of ten, its helpers included.
"""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

_IDLE = """
    Wait = fun W() -> receive never -> W() end end,
    Pids = [spawn(Wait) || _ <- lists:seq(1, {count})],
    [hd(Pids) ! {{planted, I}} || I <- lists:seq(1, 5000)],
    io:format("ready~n"), receive after infinity -> ok end.
"""
_TOP = (sys.executable, "-m", "scope_ebpf.cli.main", "top", "--pid")


def start(count: int) -> subprocess.Popen[str]:
    command = ["erl", "-noinput", "+P", str(max(262144, 2 * count))]
    code = _IDLE.format(count=count)
    vm = subprocess.Popen([*command, "-eval", code], stdout=subprocess.PIPE, text=True)
    assert vm.stdout is not None
    assert vm.stdout.readline() == "ready\n"
    return vm


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drain(terminal: int, seconds: float) -> bytes:
    seen, until = b"", time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 1 << 16)
    return seen


def live(count: int, seconds: float) -> None:
    vm = start(count)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    command = [*_TOP, str(vm.pid)]
    top = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        while b"q quit" not in drain(ours, 1):
            pass
        for what, keys in (
            ("by reductions", b"1"),
            ("by mailbox", b"3"),
            ("by collections", b"4"),
            ("by memory", b"2"),
            ("filtered", b"1/init\r"),
        ):
            os.write(ours, keys)
            drain(ours, 3)
            before = cpu_seconds(top.pid), cpu_seconds(vm.pid)
            drain(ours, seconds)
            used = [(cpu_seconds(p) - b) / seconds for p, b in zip((top.pid, vm.pid), before)]  # noqa: B905
            print(f"top {what}: {used[0]:.1%} of a core, the VM {used[1]:.1%}", flush=True)
        peak = Path(f"/proc/{top.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
        print(f"top: {int(peak) / 1024:.0f} MB at most")
        os.write(ours, b"q")
        drain(ours, 1)
        assert top.wait(60) == 0
    finally:
        top.kill()
        vm.kill()
        vm.wait()


def once() -> None:
    vm, seconds = start(100), []
    try:
        for _ in range(10):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [*_TOP, str(vm.pid), "--once", "--interval", "0.3"]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    finally:
        vm.kill()
        vm.wait()
    print(f"top --once: {min(seconds):.2f} s of CPU")


if __name__ == "__main__":
    live(
        int(sys.argv[1]) if len(sys.argv) > 1 else 200_000,
        float(sys.argv[2]) if len(sys.argv) > 2 else 15.0,
    )
    once()
