# SPDX-License-Identifier: Apache-2.0
"""
The daemon and the process that holds its breakpoints, killed and stopped, beside VMs that live on.

    bench/chaos.py [--minutes 30] [--only ACTION]

Three VMs stay, one of them under load, and others start and end. Again and again the daemon, its
attacher, or both are ended or stopped, by actions in a random order. After each end
the whole text of each VM is compared with its file, and what differs is counted as left. After the
next start, once the VMs that stay are observed, nothing may differ but where that daemon's own
hooks are, and after the last orderly end nothing at all; a VM that stays must answer all the time.
Prints a line for each action, and exits 1 if a VM was harmed or anything stayed.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from soak import PATIENCE, Count, Crowd, Daemon, emulator, planted, until

from scope_ebpf.attach.plan import EVENTS
from scope_ebpf.beam.vm.constants import kernel_constants, known
from scope_ebpf.beam.vm.discover import inspect
from scope_ebpf.kernel.attach.leftovers import find
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.identity import Identity
    from scope_ebpf.beam.vm.target import Target

#: Actions that end: signals to the daemon and to its attacher, None for none, and whether the
#: attacher is stopped before and goes on two seconds after the daemon has ended.
ENDS: dict[str, tuple[int | None, int | None, bool]] = {
    "kill-daemon": (signal.SIGKILL, None, False),
    "kill-attacher": (None, signal.SIGKILL, False),
    "kill-both": (signal.SIGKILL, signal.SIGKILL, False),
    # As soon as the first hooks are out: that is when the kernel leaves others.
    "kill-leaving": (signal.SIGKILL, signal.SIGKILL, False),
    "kill-stopped": (signal.SIGKILL, None, True),
    "term": (signal.SIGTERM, None, False),
}
#: Actions that stop one of the two, and for how many seconds.
STOPS = {"stop-daemon": 5.0, "stop-attacher": 4.0}
#: Exit code of a daemon whose attacher has ended.
_LOST_ATTACHER = 12
#: Seconds within which the attacher is killed after the daemon, for ``kill-both``.
_APART = 0.3
_BREAKPOINT = 0xCC
_STORM = "storm pingpong 1"


def changed(pid: int) -> dict[int, int]:
    """What the text of *pid* has that its file has not: each byte, by its offset in the file."""
    found: dict[int, int] = {}
    exe = Path(f"/proc/{pid}/exe")
    inode = exe.stat().st_ino
    with exe.open("rb") as file, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, mode, offset, _, number, *_ = line.split(maxsplit=5)
            if int(number) != inode or "x" not in mode:
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            memory.seek(start)
            file.seek(int(offset, 16))
            now = np.frombuffer(memory.read(end - start), np.uint8)
            before = np.frombuffer(file.read(end - start), np.uint8)
            size = min(len(now), len(before))
            for at in np.flatnonzero(now[:size] != before[:size]).tolist():
                found[int(offset, 16) + at] = int(now[at])
    return found


class Chaos:
    """What happens to a daemon, and what it leaves in VMs."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._chance = random.Random()
        self.daemon = Daemon(folder, 0.1)
        self._quiet = [stack.enter_context(planted(folder)) for _ in range(2)]
        self._busy = stack.enter_context(planted(folder))
        for task in Path(f"/proc/{self._busy.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), 10)
        self._storm()
        self._crowd = stack.enter_context(closing(Crowd(folder, self.daemon, 6)))
        self._known = inspect(self._busy.pid)
        self._sites = sites_of(self._known)
        self.times: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.compared = 0
        self.started = Count()
        self.harm: list[str] = []

    @property
    def _pids(self) -> list[int]:
        return [beam.pid for beam in (*self._quiet, self._busy)]

    def ready(self) -> None:
        """Wait until all VMs that stay are observed."""
        until(self._observes_all, "the VMs that stay are observed")

    def _observes_all(self) -> bool:
        with suppress(OSError):
            return all(self.daemon.node_of(pid) is not None for pid in self._pids)
        return False

    def live(self, seconds: float) -> None:
        """VMs come and go for a while."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._crowd.start(self.started)
            self._crowd.reap(Count())
            time.sleep(0.2)

    def heartbeat(self, action: str) -> None:
        """Every VM that stays answers."""
        try:
            for beam in self._quiet:
                beam.plant("messages 23", timeout=PATIENCE)
            self._busy.send("stop")
            if not self._busy.readline(PATIENCE).startswith("done storm"):
                self.harm.append(f"{action}: the busy VM answers something else")
            self._storm()
        except (EOFError, OSError, TimeoutError) as error:
            raise SystemExit(f"chaos: {action}: a VM does not answer: {error}") from None

    def _storm(self) -> None:
        if self._busy.ask(_STORM) != "storming":
            raise SystemExit("chaos: the busy VM does not storm")

    def compare(self, action: str, allowed: frozenset[int]) -> int:
        """How many breakpoints the VMs have that are not *allowed*; what else differs is harm."""
        strange = 0
        for pid in [*self._pids, *(guest.process.pid for guest in self._crowd.guests)]:
            with suppress(OSError, ValueError):  # it has ended, or has not begun
                found = changed(pid)
                self.compared += 1
                strange += len(found.keys() - allowed)
                if set(found.values()) - {_BREAKPOINT}:
                    self.harm.append(f"{action}: process {pid} has other text: {found}")
        return strange

    def end(self, action: str) -> None:
        """End the daemon by *action*; check what it leaves, and that the next one removes it."""
        first, second, stopped = ENDS[action]
        attacher = attacher_of(self.daemon.process.pid)
        gone = os.pidfd_open(attacher)
        if stopped:
            os.kill(attacher, signal.SIGSTOP)
        if first is not None:
            self.daemon.process.send_signal(first)
        if action == "kill-both":
            time.sleep(self._chance.uniform(0, _APART))
        elif action == "kill-leaving":
            wait_for_fewer(self._known.identity, gone)
        if second is not None:
            with suppress(ProcessLookupError):  # it was faster
                os.kill(attacher, second)
        code = self.daemon.process.wait(PATIENCE)
        if stopped:
            time.sleep(2)
            os.kill(attacher, signal.SIGCONT)
        if not select.select([gone], [], [], PATIENCE)[0]:
            raise SystemExit(f"chaos: {action}: the attacher does not end")
        os.close(gone)
        if first is None and code != _LOST_ATTACHER:
            self.harm.append(f"{action}: exit code {code}")
        left = self.compare(action, frozenset())
        self.left[action] += left
        self.daemon = Daemon(self._folder, 0.1)
        self.ready()
        self._after(action)

    def stop(self, action: str) -> None:
        """Stop the daemon or its attacher for a while."""
        own = self.daemon.process.pid
        pid = own if action == "stop-daemon" else attacher_of(own)
        os.kill(pid, signal.SIGSTOP)
        self.live(STOPS[action])
        os.kill(pid, signal.SIGCONT)
        self.ready()
        self._after(action)

    def _after(self, action: str) -> None:
        stays = self.compare(action, self._sites)
        if stays:
            self.harm.append(f"{action}: {stays} breakpoints stay that are not the daemon's")
        self.heartbeat(action)

    def act(self, action: str) -> None:
        """One turn."""
        self.live(self._chance.uniform(0.5, 3.0))
        self.times[action] += 1
        (self.end if action in ENDS else self.stop)(action)

    def finish(self) -> None:
        """End the last daemon in order: nothing may differ any more."""
        self.daemon.end()
        stays = self.compare("the end", frozenset())
        if stays:
            self.harm.append(f"{stays} breakpoints stay after the last end")


def wait_for_fewer(identity: Identity, gone: int) -> None:
    """Return when a VM has fewer breakpoints than before, or when the attacher has *gone*."""
    most, ends = 0, time.monotonic() + PATIENCE
    while not select.select([gone], [], [], 0)[0] and time.monotonic() < ends:
        now = len(find(identity))
        if now < most:
            return
        most = max(most, now)


def attacher_of(daemon: int) -> int:
    """The process that holds its breakpoints."""
    for child in Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split():
        if b"attacher.py" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise SystemExit("chaos: the daemon has no attacher")


def sites_of(target: Target) -> frozenset[int]:
    """Where the daemon may have a hook, as offsets in the file."""
    settings, _ = kernel_constants(target)
    plan = make_plan(target.binary, target.flavor, EVENTS, "auto", known(settings))
    return frozenset(a.offset for a in plan.attachments if not a.tracepoint)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--only", choices=[*ENDS, *STOPS], action="append", help="default: all")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            emulator(Path(folder))
            return run(Path(folder), wanted)
    except KeyboardInterrupt:
        sys.exit("chaos: it was ended")


def run(folder: Path, wanted: argparse.Namespace) -> int:
    """Everything; the exit code."""
    ends = time.monotonic() + 60 * wanted.minutes
    actions = wanted.only or [*ENDS, *STOPS]
    bag: list[str] = []
    with ExitStack() as stack:
        chaos = Chaos(folder, stack)
        try:
            chaos.ready()
            while time.monotonic() < ends:
                bag = bag or random.sample(actions, len(actions))
                chaos.act(bag.pop())
            chaos.finish()
        finally:
            chaos.daemon.process.kill()
            chaos.daemon.process.wait()
    print("action         times  left behind")
    for action in actions:
        print(f"{action:<14} {chaos.times[action]:>5} {chaos.left[action]:>12}")
    print(f"{chaos.started.started} VMs came and went, {chaos.compared} texts were compared")
    for harm in chaos.harm:
        print(harm)
    print("chaos: " + ("nothing was harmed, nothing stayed" if not chaos.harm else "harm was done"))
    return 1 if chaos.harm else 0


if __name__ == "__main__":
    sys.exit(main())
