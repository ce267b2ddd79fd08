# SPDX-License-Identifier: Apache-2.0
"""
What a hit costs on this host, measured on ourselves.

The trap into the kernel is most of it, and differs by the machine: 0.3 us on bare
metal, more in a virtual machine. So a function of our own is called with and
without a probe that does what ours do, and the difference is the cost.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

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
#: The same for durations: short rounds, of which one at least is not interrupted.
_SHORT_CALLS, _SHORT_ROUNDS = 50, 40


@dataclass(frozen=True, slots=True)
class _Ourselves:
    """Our own process and a file of ours (``uprobes.Identity``)."""

    pid: int
    pidfd: int
    file: int

    def check(self) -> None:
        """We are who we are."""


@contextlib.contextmanager
def _ourselves(path: Path) -> Iterator[_Ourselves]:
    pid = os.getpid()
    with path.open("rb") as file, open(os.pidfd_open(pid), "rb") as pidfd:  # noqa: PTH123
        yield _Ourselves(pid, pidfd.fileno(), file.fileno())


@dataclass(frozen=True, slots=True)
class HitCost:
    """Seconds of CPU that one hit takes from the target, at an entry and at a return."""

    entry: float
    returns: float

    def total(self, hits: Mapping[str, int]) -> float:
        """Seconds of CPU that *hits*, by program, took."""
        return sum(
            count * (self.returns if program in _RETURNS else self.entry)
            for program, count in hits.items()
        )


#: Where it cannot be measured: more than any virtual machine that was measured took.
UNKNOWN = HitCost(entry=5e-6, returns=10e-6)
_UNMEASURED = "the cost of a hit could not be measured here: 5 us are taken, more than it takes"
#: Until it is measured: what a hit takes on a slow virtual machine.
GUESS = HitCost(entry=1.5e-6, returns=3e-6)
_RETURNS = {h.program for w in events.VARIANTS for h in w.hooks if h.returns}


def measure(known: Callable[[HitCost], None] = lambda _: None) -> HitCost:
    """
    Measure the cost of a hit, in 0.1 s; *known* is told while the last hook is on its way out.

    A return probe's cost is that of its return and of the trap at the entry that
    prepares it; where an entry probe sits at the same place, the trap is shared,
    so this errs on the high side. Raises HostError where we cannot probe ourselves.
    """
    # catclose(-1) begins with a push, as the VM's functions do, and returns at once.
    function = ctypes.CDLL("libc.so.6").catclose
    function.argtypes = [ctypes.c_long]
    path, offset = _place(ctypes.cast(function, ctypes.c_void_p).value or 0)
    costs: list[float] = []
    with _ourselves(path) as identity, Attacher() as attacher:
        bare = _seconds_per_call(function)  # the attacher starts meanwhile
        for program, family in (("hibernate_entry", "process"), ("call_return", "call")):
            place = Attachment(program, family, "catclose", offset, 0, program in _RETURNS)
            plan = Plan((Item("hibernate", "symbol", "catclose", (place,), ""),))
            settings = np.zeros((), events.SETTINGS)
            with Session(
                plan, identity, 0, settings, names=("catclose",), attacher=attacher
            ) as session:
                session.count(on=True)
                costs.append(max(0.0, _seconds_per_call(function) - bare))
                if len(costs) == 2:
                    known(HitCost(*costs))
    return HitCost(*costs)


def notes_of(price: HitCost | None) -> tuple[str, ...]:
    """What is to be said of a *price* that is not measured."""
    return (_UNMEASURED,) if price is UNKNOWN else ()


class Aside:
    """
    The same by a child process, while we do something else; *nice* as in setpriority(2).

    :meth:`close` ends it.
    """

    def __init__(self, nice: int = 0) -> None:
        self._cost: HitCost | None = None
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        with held_back():  # what others do at a fork swallows exceptions
            self._pid = os.fork()
            if self._pid == 0:
                _measure_for(writing, nice)
        os.close(writing)

    def cost(self, patience: float = 0.0) -> HitCost | None:
        """
        The cost of a hit; None if it is not known after *patience* seconds.

        Whom we wait for is nice no longer. UNKNOWN where it cannot be measured.
        """
        if self._pid and patience:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._pid, 0)
        if self._cost is None and select.select([self._reading], [], [], patience)[0]:
            told = os.read(self._reading, 64).split()
            self._cost = HitCost(*map(float, told)) if len(told) == 2 else UNKNOWN
        return self._cost

    def close(self) -> None:
        """End it, whether it has told or not."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.close(self._reading)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _measure_for(writing: int, nice: int) -> NoReturn:
    """Measure, tell the parent, and end without doing anything of what it has still to do."""
    try:
        # Whoever interrupts the parent does not mean us: it ends us when it ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        os.nice(nice)
        measure(lambda cost: _tell(writing, cost))
    finally:
        os._exit(0)


def _tell(writing: int, cost: HitCost) -> None:
    os.write(writing, f"{cost.entry!r} {cost.returns!r}".encode())


def carried() -> float:
    """
    Measure how many seconds a duration carries of the hooks that take it, in some 10 ms.

    A function that returns at once is timed as a call of the VM's is: what is seen of it is the way
    out of the trap at its entry and into the one at its return. Raises HostError where we cannot
    probe ourselves.
    """
    function = ctypes.CDLL("libc.so.6").catclose
    function.argtypes = [ctypes.c_long]
    path, offset = _place(ctypes.cast(function, ctypes.c_void_p).value or 0)
    places = tuple(
        Attachment(program, "call", "catclose", offset, 0, program in _RETURNS)
        for program in ("nif_entry", "call_return")
    )
    plan = Plan((Item("long_call", "symbol", "catclose", places, ""),))
    settings = np.zeros((), events.SETTINGS)  # every call is long enough to count
    best, before = float("inf"), (0, 0)
    with (
        _ourselves(path) as identity,
        Session(plan, identity, 0, settings, names=("catclose",)) as session,
    ):
        session.count(on=True)
        for _ in range(_SHORT_ROUNDS):
            for _ in range(_SHORT_CALLS):
                function(-1)
            seen = session.durations()[events.KINDS["long_call"].id]
            now = int(seen["slots"].sum()), int(seen["total_ns"].sum())
            calls, spent = now[0] - before[0], now[1] - before[1]
            # The fastest round: others on the machine can only make it slower.
            best, before = min(best, spent / calls) if calls else best, now
    return 0.0 if best == float("inf") else best / 1e9


def _place(address: int) -> tuple[Path, int]:
    """File and offset of a function of ours."""
    for line in Path("/proc/self/maps").read_bytes().decode("utf-8", "replace").split("\n")[:-1]:
        bounds, _, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end and path:
            return Path(path[0]), address - start + int(offset, 16)
    raise HostError("cannot find a function of libc in our own memory")


def _seconds_per_call(function: Callable[[int], int]) -> float:
    """The fastest of some rounds, in CPU time: others on the machine cannot make it faster."""
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.thread_time()
        for _ in range(_CALLS):
            function(-1)
        best = min(best, time.thread_time() - start)
    return best / _CALLS
