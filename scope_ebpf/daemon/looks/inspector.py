# SPDX-License-Identifier: Apache-2.0
"""
Looks into processes that may be VMs, in a thread of its own, while the loop goes on.

Everything that a look reads belongs to the process, which may make it as slow as possible. So each
look has limits, owners take turns, and a look that does not return is abandoned.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.hidden.resolve import SoughtError
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import cpu_seconds
from scope_ebpf.beam.vm.discover import Refusal, inspect
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.daemon.looks.discovery import RENAMED, Files
from scope_ebpf.daemon.looks.hangs import Hangs
from scope_ebpf.daemon.looks.owners import LookQueue, Owner, Shares, queue_of
from scope_ebpf.daemon.looks.prepare import Prepared, UnprovenError, prepare
from scope_ebpf.daemon.looks.programs import BEGUN, FIRST, MOST, Bad, Program, Refused, program_at
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.process import cgroup_of
from scope_ebpf.errors import (
    NoAnswerError,
    NoSuchProcessError,
    NotABeamError,
    NotPermittedError,
    TargetChangedError,
    TooMuchError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config

#: Seconds until a program is looked at again whose functions are sought, at first and at most.
_SOUGHT, _SOUGHT_MOST = 5.0, 60.0
#: Limits of a look: bytes of memory, system calls, seconds of CPU, seconds of time. The most
#: expensive look at a VM, OTP 29 with hidden symbols, reads 7 MB in 1,700 calls. Where another
#: process reads (``beam.memory.reader``) and CPUs are short, each call takes 0.1 to 0.3 ms.
_DATA, _CALLS, _CPU, _WALL = 64 << 20, 200_000, 3.0, 20.0
#: Seconds after which a look that does not return is abandoned, and the maximum of such looks.
LOST, MOST_LOST = 30.0, 64
#: Seconds until a process is looked at again whose owner has other processes that hang.
_HELD = 600.0
#: Age in seconds below which what is not found in a VM may still come.
_YOUNG = 60.0
#: Maximum number of VMs that are not wanted and whose names are followed; each holds some files.
#: Further ones are looked into again once a minute.
_FOLLOWED = 128
#: Results of a look, as labels of ``scope_ebpf_looks_total``.
RESULTS = ("vm", "unwanted", "no_beam", "refused", "spared", "ended")


class Found(NamedTuple):
    """A VM that is to be observed, with everything that is needed to do so."""

    target: Target
    prepared: Prepared
    owner: Owner
    program: Program


class Look(NamedTuple):
    """
    The result of a look at one process.

    Attributes:
        pid: the process.
        found: a VM, why it cannot be observed, or None if it is not a VM or not wanted.
        again: when to look at it again, monotonic seconds; None if not before it changes.
        exe: its program, where that is known.
    """

    pid: int
    found: Found | Refusal | None = None
    again: float | None = None
    exe: str | None = None


class Looker:
    """
    Looks at one process after the other.

    Attributes:
        hangs: owners whose processes have memory that hangs.
        refused: programs and pids that are not looked at for a while.
        results: number of looks by result.
        seconds: seconds of CPU that looks took.
    """

    def __init__(
        self, shares: Shares, proc: Path = Path("/proc"), hangs: Hangs | None = None
    ) -> None:
        self._shares, self._proc = shares, proc
        self.hangs = hangs or Hangs()
        self._files = Files()
        #: VMs that are not wanted, by pid: the last name, and its reader.
        self._unwanted: dict[int, tuple[str | None, NodeName]] = {}
        self.refused = Refused()
        self.results: Counter[str] = Counter()
        self.seconds = 0.0

    def look(self, pid: int, owner: Owner, config: Config) -> Look:
        """Look at *pid*, whatever it is, and charge its owner."""
        began = cpu_seconds()
        try:
            result, look = self._look(pid, owner, config)
        except TargetChangedError:
            self._unwanted.pop(pid, None)
            result, look = "ended", Look(pid, again=time.monotonic() + BEGUN)
        except NoSuchProcessError:
            self._unwanted.pop(pid, None)
            result, look = "ended", Look(pid)
        took = cpu_seconds() - began
        self.seconds += took
        self._shares.charge(owner, took)
        self.results[result] += 1
        self._files.expire()
        return look

    def forget_ended(self) -> None:
        """Forget processes that have ended; for any thread."""
        for pid in list(self._unwanted):
            if not (self._proc / str(pid)).exists():
                self._unwanted.pop(pid, None)

    def forget(self) -> None:
        """Forget all results."""
        self._unwanted.clear()
        self.refused.forget()
        self._files = Files()

    def _look(self, pid: int, owner: Owner, config: Config) -> tuple[str, Look]:
        now = time.monotonic()
        program = program_at(self._proc / str(pid), owner)
        bad = self.refused.find(program)
        if bad:
            return "spared", _no(pid, bad)
        why = self.hangs.refusal(owner)
        if why:
            return "spared", Look(pid, Refusal(pid, TooMuchError(why)), now + _HELD)
        try:
            with limited(_limits(pid)) as limits:
                wanted = self._wanted(pid, owner, config, program, now)
                limits.check()
                return wanted
        except NoSuchProcessError:
            raise
        except Exception as error:  # noqa: BLE001 - one process must not take the others along
            if program_at(self._proc / str(pid), owner) != program:
                # Figures read from a process while it ends say nothing about its program.
                raise NoSuchProcessError(f"{pid} runs something else now") from None
            first = BEGUN if isinstance(error, UnprovenError) and self._is_young(pid) else FIRST
            most = MOST
            if isinstance(error, SoughtError):
                first, most = _SOUGHT, _SOUGHT_MOST
            if isinstance(error, NoAnswerError):
                self.hangs.add(owner)
                first = MOST
            # The privileges of a process are not a property of its program.
            what = pid if isinstance(error, NotPermittedError) else program
            bad = self.refused.add(what, error, first, most)
            result = "no_beam" if isinstance(error, NotABeamError) else "refused"
            return result, _no(pid, bad)

    def _wanted(
        self, pid: int, owner: Owner, config: Config, program: Program, now: float
    ) -> tuple[str, Look]:
        if self._is_called_as_before(pid):
            return "unwanted", Look(pid, None, now + RENAMED)
        target = inspect(pid, self._proc, self._files.open)
        young = config.min_age - _age(target.started)
        if young > 0:
            return "unwanted", Look(pid, None, now + young, target.exe)
        if not config.wants(target.node or "", target.exe, cgroup_of(pid, self._proc)):
            if len(self._unwanted) >= _FOLLOWED:
                return "unwanted", Look(pid, None, now + FIRST, target.exe)
            self._unwanted[pid] = target.node, NodeName(target)
            return "unwanted", Look(pid, None, now + RENAMED, target.exe)
        found = Found(target, prepare(target, queue_of(owner)), owner, program)
        return "vm", Look(pid, found, None, target.exe)

    def _is_called_as_before(self, pid: int) -> bool:
        """True if *pid* was not wanted, and still has the same name."""
        name, now = self._unwanted.get(pid, (None, None))
        with suppress(NoSuchProcessError):  # it may be another program by now
            if now is not None and name is not None and now.read() == name:
                return True
        self._unwanted.pop(pid, None)
        return False

    def _is_young(self, pid: int) -> bool:
        with suppress(OSError, ValueError, IndexError):
            text = (self._proc / str(pid) / "stat").read_bytes()
            started = int(text.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return _age(started) < _YOUNG
        return False


class _Job(NamedTuple):
    pid: int
    owner: Owner
    began: float


class Inspector:
    """
    The thread in which *looker* looks at the processes that :meth:`ask` is given.

    *wake* is called when :meth:`take` has a result; *config* returns the config of the moment.

    Attributes:
        lost: abandoned looks that have not returned; each occupies a thread.
    """

    def __init__(
        self,
        looker: Looker,
        shares: Shares,
        config: Callable[[], Config],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looker, self._shares = looker, shares
        self._config, self._wake, self._clock = config, wake, clock
        self._queue = LookQueue()
        self._looks: deque[Look] = deque()
        self._job: _Job | None = None
        self.lost = 0
        self._ended = False
        self._changed = threading.Condition()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="inspector", daemon=True).start()

    def close(self) -> None:
        """Start no more looks; one that is running ends with the process."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def ask(self, pid: int, owner: Owner) -> None:
        """Look at *pid* when it is its owner's turn; at most once until its result is taken."""
        with self._changed:
            self._queue.add(pid, owner)
            self._changed.notify()

    def take(self) -> Look | None:
        """The next finished look, which is removed; None if there is none."""
        with self._changed:
            return self._looks.popleft() if self._looks else None

    @property
    def done(self) -> bool:
        """True if :meth:`take` has a result."""
        return bool(self._looks)

    @property
    def idle(self) -> bool:
        """True if no look is running, waiting or finished."""
        with self._changed:
            return not (self._looks or self._job or len(self._queue))

    @property
    def stuck(self) -> bool:
        """True if no process is looked at any more, since too many looks hang."""
        job = self._job
        late = job is not None and self._clock() - job.began >= LOST
        return late and self.lost >= MOST_LOST

    def abandon_hanging(self) -> None:
        """Abandon a look that does not return, with its thread, and go on in another thread."""
        with self._changed:
            job, now = self._job, self._clock()
            if job is None or now - job.began < LOST or self.lost >= MOST_LOST:
                return
            self.lost += 1
            why = TooMuchError(f"a look at process {job.pid} did not come back in {LOST:g} s")
            with suppress(NoSuchProcessError, OSError):
                program = program_at(Path(f"/proc/{job.pid}"), job.owner)
                self._looker.refused.add(program, why, MOST)
            self._looker.hangs.add(job.owner)  # three within an hour block all of its processes
            self._looks.append(Look(job.pid, Refusal(job.pid, why), now + MOST))
            self._job = None
        say(logging.ERROR, "a look at a process hangs", pid=job.pid, owner=job.owner)
        self.start()

    def _run(self) -> None:
        with suppress(OSError):  # threads inherit the priority of the loop
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
        while job := self._next():
            look = self._looker.look(job.pid, job.owner, self._config())
            with self._changed:
                if self._job is not job:  # it was abandoned
                    self.lost -= 1
                    return
                self._job = None
                self._looks.append(look)
            self._wake()

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._ended:
                turn = self._queue.next(self._shares.wait)
                if isinstance(turn, tuple):
                    self._job = _Job(*turn, self._clock())
                    return self._job
                self._changed.wait(turn)
        return None


def _no(pid: int, bad: Bad) -> Look:
    """The look at a refused process: again when *bad* ends, but not if it is not a VM."""
    if isinstance(bad.reason, NotABeamError):
        return Look(pid)
    begins = isinstance(bad.reason, UnprovenError) and bad.pause < FIRST
    return Look(pid, None if begins else Refusal(pid, bad.reason), bad.until)


def _limits(pid: int) -> LookLimits:
    return LookLimits(f"a look at process {pid}", data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL)


def _age(started: float) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
