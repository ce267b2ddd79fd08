# SPDX-License-Identifier: Apache-2.0
"""
Snapshots of the memory of VMs that are about to be killed, kept on disk.

When the memory cgroup around a VM is used to a share of its limit, what ``scope-trace memory``
shows is written to a file, which is still there when the kernel has killed the VM. A thread looks
at the cgroups and reads one VM at a time, of owners in turn.

Files are few and small, of one user alone, and take their names when they are whole. An owner with
many VMs replaces its own files, not those of others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.held.memory import MemoryReader
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.cgroups import memory_limit
from scope_ebpf.daemon.looks.owners import queue_of
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.findings import MOST_PROCESSES, shortened
from scope_ebpf.daemon.readings.thread import ReadingThread
from scope_ebpf.errors import NoAnswerError, ScopeError, TooMuchError
from scope_ebpf.output import Document
from scope_ebpf.runs.memory import Span, document

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.readings.findings import Subject

#: Files of all VMs, and of those of one owner; bytes of a file.
MOST_FILES, MOST_OF_OWNER, MOST_BYTES = 16, 4, 256 << 10
#: Holders of each kind in a snapshot.
_HOLDERS = 10
#: Seconds between two looks at the cgroups, at least, and the part of a CPU that these may take.
_PASS, _PASS_SHARE = 2.0, 0.01
#: Seconds from a snapshot of a VM to the next, at least, and while its memory does not grow; the
#: growth, as a part of the limit, that is worth one earlier.
_PAUSE, _AGAIN, _GROWN = 10.0, 60.0, 0.02
#: The part of a CPU that the snapshots of all VMs may take together, in the long run, of which each
#: owner has an equal part; the part of the time for which the VMs of one owner may be read.
_SHARE, _TIME_SHARE = 0.05, 0.5
#: Failures of an owner in a row that double its pause.
_MOST_FAILURES = 6
#: Limits of one snapshot: bytes of memory, system calls, seconds of CPU, seconds of time.
_DATA, _CALLS, _CPU, _WALL = 512 << 20, 1_000_000, 5.0, 20.0
#: Names of files: owner, pid, and when the process started.
_NAME = re.compile(r"memory-([0-9a-f]{12})-\d+-\d+\.json")


class _Kept(NamedTuple):
    """The last snapshot of one VM: when, and the bytes that its cgroup used."""

    at: float
    used: int


class _Turn(NamedTuple):
    """When a VM of one owner was last read, before when none is read, and what failed in a row."""

    at: float = -1.0
    due: float = 0.0
    failures: int = 0


class _File(NamedTuple):
    """A file of the black box; *when* it was written, ns."""

    name: str
    owner: str
    when: int


@dataclass(slots=True)
class BlackBox(ReadingThread):
    """
    Watches the cgroups of *subjects*, which returns the targets of this moment, until closed.

    Unexpected errors are counted in *errors* under ``snapshot``.
    """

    NAME = "blackbox"
    subjects: Callable[[], Sequence[Subject]]
    config: Callable[[], Config]
    errors: Counter[str]
    clock: Callable[[], float] = time.monotonic
    _kept: dict[Subject, _Kept] = field(default_factory=dict)
    _turns: dict[str, _Turn] = field(default_factory=dict)
    _said: str = ""

    def _run(self) -> None:
        pause = _PASS
        while not self._ended.wait(pause):
            began = cpu_seconds()
            near = self.near()
            pause = max(_PASS, (cpu_seconds() - began) / _PASS_SHARE)
            if near:
                self.keep(near[0])

    def folder(self) -> Path | None:
        """Where files are kept; None where there is no such folder, or it is another user's."""
        # systemd separates several folders with colons; a configured one may have colons.
        given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
        named = self.config().blackbox_folder or given
        if not named or not self.config().blackbox_share:
            return None
        folder = Path(named)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
        except OSError as error:
            self._say(f"{folder}: {error.strerror}")
            return None
        private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if not private or status.st_uid != os.geteuid():
            self._say(f"{folder} is no folder of the daemon's user alone (mode 0700)")
            return None
        return folder

    def near(self) -> list[Subject]:
        """The VMs that a snapshot is due of; the owner that had none for longest is first."""
        subjects = list(self.subjects())
        self._kept = {s: one for s, one in self._kept.items() if s in subjects}
        queues, now = {queue_of(s.owner) for s in subjects}, self.clock()
        # An owner whose VMs have ended still owes what they took.
        self._turns = {q: one for q, one in self._turns.items() if q in queues or now < one.due}
        if self.folder() is None:
            return []
        found = [s for s in subjects if now >= self._turn(s).due and self._is_near(s)]
        return sorted(found, key=lambda s: (self._turn(s).at, s in self._kept))

    def _turn(self, subject: Subject) -> _Turn:
        return self._turns.get(queue_of(subject.owner), _Turn())

    def _is_near(self, subject: Subject) -> bool:
        limit = memory_limit(subject.target.pid)
        if limit is None or limit.used < self.config().blackbox_share * limit.limit:
            return False
        last = self._kept.get(subject)
        if last is None:
            return True
        passed, grown = self.clock() - last.at, limit.used - last.used
        return passed >= _AGAIN or (passed >= _PAUSE and grown >= _GROWN * limit.limit)

    def keep(self, subject: Subject) -> None:
        """Read one VM and write its file; what fails is logged, and tried again after a while."""
        folder, limit = self.folder(), memory_limit(subject.target.pid)
        if folder is None or limit is None:
            return
        cpu, began = cpu_seconds(), self.clock()
        self._kept[subject] = _Kept(began, limit.used)
        written = self._try(folder, subject)
        self._charge(subject, written, cpu_seconds() - cpu, self.clock() - began)

    def _try(self, folder: Path, subject: Subject) -> bool:
        """Write the file of a VM; False, and logged, if that fails."""
        try:
            self._write(folder, subject, self._snapshot(subject))
        except NoAnswerError as error:
            self._say(f"process {subject.target.pid}: {error}")
            subject.fail(error)
        except (ScopeError, OSError) as error:
            self._say(f"process {subject.target.pid}: {error}")
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            self.errors["snapshot"] += 1
            self._say(f"process {subject.target.pid}: {error!r}")
        else:
            return True
        return False

    def _charge(self, subject: Subject, written: bool, cpu: float, seconds: float) -> None:
        """
        Let the owner of a VM that was read for *seconds*, *cpu* of them of CPU, pause.

        Others are read meanwhile, so all owners that pause have parts of one share.
        """
        queue, turn = queue_of(subject.owner), self._turn(subject)
        failures = max(0, turn.failures - 1) if written else turn.failures + 1
        failures = min(failures, _MOST_FAILURES)
        owners = len({queue, *self._turns})
        pause = max(cpu * owners / _SHARE, seconds * (1 / _TIME_SHARE - 1)) * 2**failures
        self._turns[queue] = _Turn(self.clock(), self.clock() + pause, failures)

    def _snapshot(self, subject: Subject) -> bytes:
        """The document of a VM, in at most MOST_BYTES. Raises ScopeError."""
        counters, target = subject.reading.counters, subject.target
        if counters is None or counters.processes > MOST_PROCESSES:
            raise TooMuchError(f"VMs of more than {MOST_PROCESSES:,} processes are not kept")
        # A separate Memory: searching for tables tries addresses, which are not failed reads.
        target = replace(target, memory=Memory(target.pid, target.identity.process))
        text = json.dumps(shortened(_read(target))).encode()
        if len(text) > MOST_BYTES:
            raise TooMuchError(f"a snapshot of {len(text):,} bytes is not kept")
        return text

    def _write(self, folder: Path, subject: Subject, text: bytes) -> None:
        owner = hashlib.sha256(queue_of(subject.owner).encode()).hexdigest()[:12]
        target = subject.target
        name = f"memory-{owner}-{target.pid}-{int(target.started)}.json"
        for one in surplus(_files(folder), name, owner):
            (folder / one).unlink(missing_ok=True)
        with Document(str(folder / name)) as made:
            made.file.write(text)
            made.commit()
        say(
            logging.WARNING,
            "memory of a VM near its limit was kept",
            pid=target.pid,
            file=str(folder / name),
        )

    def _say(self, why: str) -> None:
        """Log once why nothing is kept."""
        if why != self._said:
            say(logging.WARNING, "black box", why=why)
        self._said = why


def _read(target: Target) -> dict[str, object]:
    limits = LookLimits(
        f"the memory of process {target.pid}", data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL
    )
    with limited(limits):
        look = MemoryReader(target, _HOLDERS).read()
        found = document(Span(target, look, None, 0.0, _HOLDERS))
        target.identity.check()
    return {**found}


def _files(folder: Path) -> list[_File]:
    """The files of the black box; others in its folder are left alone."""
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(_File(path.name, match[1], path.lstat().st_mtime_ns))
    return found


def surplus(files: Sequence[_File], name: str, owner: str) -> list[str]:
    """
    The files that make room for *name* of *owner*: its own oldest, then those of who has most.

    >>> surplus([_File("a", "x", 1)], "b", "x")
    []
    """
    there = [one for one in sorted(files, key=lambda one: one.when) if one.name != name]
    gone: list[str] = []
    own = [one for one in there if one.owner == owner]
    for one in own[: max(0, len(own) + 1 - MOST_OF_OWNER)]:
        gone.append(one.name)
        there.remove(one)
    while len(there) >= MOST_FILES:
        counts = Counter(one.owner for one in there)
        oldest = next(one for one in there if counts[one.owner] == max(counts.values()))
        gone.append(oldest.name)
        there.remove(oldest)
    return gone
