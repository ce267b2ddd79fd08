# SPDX-License-Identifier: Apache-2.0
"""
The cost of a hit on this host, measured on this process.

Most of it is the trap into the kernel, which depends on the machine: 0.3 us on bare metal, more in
a virtual machine. So a function of this process is called with and without a probe like those of
targets, and the difference is the cost.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.errors import HostError
from scope_ebpf.kernel.attach.uprobes import Attacher
from scope_ebpf.kernel.interrupts import held_back
from scope_ebpf.kernel.observers.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_CALLS = 500
_ROUNDS = 5
#: Calls and rounds for :func:`carried`: in short rounds, so that one at least is not interrupted.
_SHORT_CALLS, _SHORT_ROUNDS = 50, 40


class _ThisProcess(NamedTuple):
    """The ``uprobes.Identity`` of this process, with a file that it has mapped."""

    pid: int
    pidfd: int
    file: int

    def check(self) -> None:
        """Pass: the process is always the same one."""


@contextlib.contextmanager
def _this_process(path: Path) -> Iterator[_ThisProcess]:
    pid = os.getpid()
    with path.open("rb") as file, open(os.pidfd_open(pid), "rb") as pidfd:  # noqa: PTH123
        yield _ThisProcess(pid, pidfd.fileno(), file.fileno())


class HitCost(NamedTuple):
    """
    Seconds of the target's CPU that one hit takes.

    ``entry`` is that at the entry of a function, ``returns`` that at its return, including the trap
    at its entry.
    """

    entry: float
    returns: float

    def total(self, hits: Mapping[str, int]) -> float:
        """Seconds of the target's CPU that *hits*, by program, took."""
        return sum(
            count * (self.returns if program in _RETURNS else self.entry)
            for program, count in hits.items()
        )


#: For hosts on which it cannot be measured: more than on any virtual machine that was measured.
UNKNOWN = HitCost(entry=5e-6, returns=10e-6)
_UNMEASURED = "the cost of a hit could not be measured here: 5 us are taken, more than it takes"
#: Until it is measured: the cost on a slow virtual machine.
GUESS = HitCost(entry=1.5e-6, returns=3e-6)
_RETURNS = {h.program for w in events.VARIANTS for h in w.hooks if h.returns}


def measure(on_measured: Callable[[HitCost], None] = lambda _: None) -> HitCost:
    """
    Measure the cost of a hit, in 0.1 s; *on_measured* gets it before the last hook is removed.

    The cost of a return probe is that of its return and of the trap at the entry that prepares it.
    With an entry probe at the same address the trap is shared, so this errs on the high side.
    HostError where this process cannot be probed.
    """
    # catclose(-1) begins with a push, as the VM's functions do, and returns at once.
    function = ctypes.CDLL("libc.so.6").catclose
    function.argtypes = [ctypes.c_long]
    path, offset = _file_offset(ctypes.cast(function, ctypes.c_void_p).value or 0)
    costs: list[float] = []
    with _this_process(path) as identity, Attacher() as attacher:
        bare = _seconds_per_call(function)  # the attacher starts meanwhile
        for program, family in (("hibernate_entry", "process"), ("call_return", "call")):
            hook = Attachment(program, family, "catclose", offset, 0, program in _RETURNS)
            plan = Plan((Item("hibernate", "symbol", "catclose", (hook,), ""),))
            settings = np.zeros((), events.SETTINGS)
            with Session(
                plan, identity, 0, settings, names=("catclose",), attacher=attacher
            ) as session:
                session.count(on=True)
                costs.append(max(0.0, _seconds_per_call(function) - bare))
                if len(costs) == 2:
                    on_measured(HitCost(*costs))
    return HitCost(*costs)


def notes_of(hit_cost: HitCost | None) -> tuple[str, ...]:
    """The notes for a summary: one if *hit_cost* could not be measured."""
    return (_UNMEASURED,) if hit_cost is UNKNOWN else ()


class CostMeasurement:
    """
    :func:`measure` in a child process, in the background; *nice* as in setpriority(2).

    :meth:`close` ends the child.
    """

    def __init__(self, nice: int = 0) -> None:
        self._cost: HitCost | None = None
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        with held_back():  # handlers of fork lose exceptions
            self._pid = os.fork()
            if self._pid == 0:
                _measure_for(writing, nice)
        os.close(writing)

    def cost(self, patience: float = 0.0) -> HitCost | None:
        """
        The cost of a hit; None if it is not known after *patience* seconds.

        Waiting resets the priority of the child. UNKNOWN where the cost cannot be measured.
        """
        if self._pid and patience:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._pid, 0)
        if self._cost is None and select.select([self._reading], [], [], patience)[0]:
            numbers = os.read(self._reading, 64).split()
            self._cost = HitCost(*map(float, numbers)) if len(numbers) == 2 else UNKNOWN
        return self._cost

    def close(self) -> None:
        """End the child, also before it has measured."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.close(self._reading)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _measure_for(writing: int, nice: int) -> NoReturn:
    """Measure, write the cost to the parent, and end without running the parent's exit handlers."""
    try:
        # A signal to the group is for the parent, which ends this process when it ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        os.nice(nice)
        measure(lambda cost: _write(writing, cost))
    finally:
        os._exit(0)


def _write(writing: int, cost: HitCost) -> None:
    os.write(writing, f"{cost.entry!r} {cost.returns!r}".encode())


def carried() -> float:
    """
    Measure the seconds by which hooks lengthen each duration that they measure, in some 10 ms.

    The duration of a function that returns at once is measured as that of a call of a target. It
    consists of the return from the trap at its entry and the beginning of the trap at its return.
    HostError where this process cannot be probed.
    """
    function = ctypes.CDLL("libc.so.6").catclose
    function.argtypes = [ctypes.c_long]
    path, offset = _file_offset(ctypes.cast(function, ctypes.c_void_p).value or 0)
    hooks = tuple(
        Attachment(program, "call", "catclose", offset, 0, program in _RETURNS)
        for program in ("nif_entry", "call_return")
    )
    plan = Plan((Item("long_call", "symbol", "catclose", hooks, ""),))
    settings = np.zeros((), events.SETTINGS)  # every call is long enough to count
    best, before = float("inf"), (0, 0)
    with (
        _this_process(path) as identity,
        Session(plan, identity, 0, settings, names=("catclose",)) as session,
    ):
        session.count(on=True)
        for _ in range(_SHORT_ROUNDS):
            for _ in range(_SHORT_CALLS):
                function(-1)
            seen = session.durations()[events.KINDS["long_call"].id]
            now = int(seen["slots"].sum()), int(seen["total_ns"].sum())
            calls, spent = now[0] - before[0], now[1] - before[1]
            # The fastest round: other processes can only make it slower.
            best, before = min(best, spent / calls) if calls else best, now
    return 0.0 if best == float("inf") else best / 1e9


def _file_offset(address: int) -> tuple[Path, int]:
    """The file of a function of this process, and its offset in it, bytes."""
    for line in Path("/proc/self/maps").read_bytes().decode("utf-8", "replace").split("\n")[:-1]:
        bounds, _, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end and path:
            return Path(path[0]), address - start + int(offset, 16)
    raise HostError("cannot find a function of libc in our own memory")


def _seconds_per_call(function: Callable[[int], int]) -> float:
    """CPU seconds in the fastest of some rounds: other processes can only make it slower."""
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.thread_time()
        for _ in range(_CALLS):
            function(-1)
        best = min(best, time.thread_time() - start)
    return best / _CALLS
