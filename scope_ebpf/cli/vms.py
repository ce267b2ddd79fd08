# SPDX-License-Identifier: Apache-2.0
"""What distinguishes the VMs of a host: whose it is, where it runs, what it runs and takes."""

from __future__ import annotations

import pwd
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.vm.command import application_of, command_words, own_words
from scope_ebpf.cgroups import container_of
from scope_ebpf.sandbox.proc import status_number

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.discover import Beam
    from scope_ebpf.results.documents.vms import VmMarks

_PROC = Path("/proc")
#: Characters of a command line and of an application's name that are kept.
_COMMAND, _NAME = 400, 100


class Marks(NamedTuple):
    """Marks of one VM; None for what is not known."""

    user: str | None
    container: str | None
    #: CPU seconds per second since the last look.
    cpu_share: float | None
    resident_bytes: int | None
    #: What it was started for, see :func:`application_of`.
    application: str | None
    #: What it was started with, without what ``erl`` adds.
    command: str

    def as_json(self) -> VmMarks:
        """The fields of a row."""
        return {
            "user": self.user,
            "container": self.container,
            "cpu_share": self.cpu_share,
            "resident_bytes": self.resident_bytes,
            "application": self.application,
            "command": self.command,
        }


class Clocks:
    """CPU time of *beams*, from when this was made."""

    def __init__(self, beams: list[Beam]) -> None:
        self._since = time.monotonic()
        self._before = {beam.pid: cpu_seconds(beam.pid) for beam in beams}

    def share(self, pid: int) -> float | None:
        """CPU seconds per second that the process has used since then."""
        before, now = self._before.get(pid), cpu_seconds(pid)
        passed = time.monotonic() - self._since
        return None if before is None or now is None else round(max(0.0, now - before) / passed, 4)


def cpu_seconds(pid: int) -> float | None:
    """User and system seconds of a process (clock_getcpuclockid(3)); None if it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def marks_of(beam: Beam, clocks: Clocks) -> Marks:
    """Read the marks of one VM."""
    words = command_words(_PROC / str(beam.pid), beam.memory)
    application = application_of(words)
    return Marks(
        user=_user(beam.identity.uids[1]),
        container=container_of(beam.pid),
        cpu_share=clocks.share(beam.pid),
        resident_bytes=_resident(beam.pid),
        application=application and application[:_NAME],
        command=" ".join(own_words(words))[:_COMMAND],
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _resident(pid: int) -> int | None:
    try:
        found = status_number((_PROC / str(pid) / "status").read_bytes(), "VmRSS")
    except OSError:
        return None
    return None if found is None else found << 10
