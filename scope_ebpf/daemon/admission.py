# SPDX-License-Identifier: Apache-2.0
"""
Which VMs may be observed, under which label, and when one that was refused is tried again.

Limits are file descriptors, shares of owners, and names; with ``strict`` the daemon ends where
something cannot be observed.
"""

from __future__ import annotations

import logging
import os
import resource
from typing import TYPE_CHECKING

from scope_ebpf.daemon.looks.owners import OwnerSlots
from scope_ebpf.daemon.looks.programs import MOST, Refused
from scope_ebpf.daemon.names import NodeLabels
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.process import cgroup_of
from scope_ebpf.errors import HostError, NoAnswerError, NothingToAttachError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.looks.discovery import Scanner
    from scope_ebpf.daemon.looks.hangs import Hangs
    from scope_ebpf.daemon.looks.owners import Owner
    from scope_ebpf.daemon.looks.programs import Program

#: File descriptors that a target takes, and that must stay free for scrapes and readings.
_PER_TARGET, _RESERVED = 128, 256


class NoRoomError(HostError):
    """There is no room for one more target until another ends."""


class Admission:
    """
    Admits VMs within limits, and schedules new looks at those that were refused.

    Attributes:
        config: the config of this moment.
        refused: why a VM is not observed, by pid; also read by scrapes.
        labels: the label of each VM.
    """

    def __init__(self, config: Config, scanner: Scanner, programs: Refused, hangs: Hangs) -> None:
        self.config = config
        self.refused: dict[int, str] = {}
        self.labels = NodeLabels()
        self._scanner = scanner
        #: VMs that could not be observed, by pid.
        self._failed = Refused()
        #: Programs that are not looked at, and owners whose memory does not respond.
        self._programs, self._hangs = programs, hangs
        #: Owners that have targets.
        self._slots = OwnerSlots()
        #: Owners of VMs that were refused for want of room, by pid.
        self._waiting: dict[int, Owner] = {}

    def admit(self, pid: int, name: str | None, owner: Owner) -> str:
        """
        Give *pid*, whose node is called *name*, a label.

        Raises NoRoomError where there is no room for a target of *owner*, and HostError where it
        has had too many labels.
        """
        why = self._slots.refusal(owner, _max_targets())
        if why:
            raise NoRoomError(why)
        limit, used = _file_limit(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - fast
        if used + _RESERVED > limit:
            # A target that cannot be observed completely must not take what the others need.
            raise NoRoomError(
                f"{used} of {limit} files that the daemon may have open are open; raise "
                "LimitNOFILE in its unit (or ulimit -n) to observe more VMs"
            )
        return self.labels.assign(pid, name, owner)

    def accept(self, pid: int, owner: Owner) -> None:
        """*pid* is observed from now on."""
        self._slots.enter(pid, owner)
        self.refused.pop(pid, None)
        self._failed.clear(pid)

    def release(self, pid: int) -> None:
        """*pid* is not observed any more: its label and its room are free."""
        self.labels.drop(pid)
        self._slots.leave(pid)

    def retry_waiting(self) -> None:
        """Look again at one VM that waits for room, of the owner that has the fewest targets."""
        for pid in sorted(self._waiting, key=lambda pid: self._slots.held(self._waiting[pid])):
            if not self._slots.refusal(self._waiting[pid], _max_targets()):
                del self._waiting[pid]
                self._scanner.again(pid, 0.0)
                return

    def refuse(
        self, pid: int, error: Exception, owner: Owner, program: Program | None = None
    ) -> None:
        """
        Log why *pid* is not observed, and look at it again later, each time after a longer pause.

        With ``strict``, raises *error* if it is a ScopeError.
        """
        if isinstance(error, NoRoomError):
            self._waiting[pid] = owner
        bad = self._failed.add(pid, error)
        if isinstance(error, NoAnswerError):
            if program:
                bad = self._programs.add(program, error, MOST)
            self._hangs.add(owner)
        self._scanner.again(pid, bad.pause)
        self.report(pid, error, owner)

    def report(self, pid: int, error: Exception, owner: Owner | None = None) -> None:
        """
        Log once why *pid* is not observed.

        With ``strict``, raises *error* if it is a ScopeError.
        """
        reason = str(error) if isinstance(error, ScopeError) else repr(error)
        if self.refused.get(pid) != reason:
            self.refused[pid] = reason
            say(logging.WARNING, "refused", pid=pid, why=reason, owner=owner)
        if self.config.strict and isinstance(error, ScopeError):
            raise error

    def hang_refusal(self, owner: Owner) -> str:
        """Why no process of *owner* is observed: memory does not respond; "" if they are."""
        return self._hangs.refusal(owner)

    def require_hooks(self, pid: int, failures: Mapping[str, str]) -> None:
        """With ``strict``, raise NothingToAttachError if there are *failures*, reasons by event."""
        for event, why in failures.items():
            if self.config.strict:
                raise NothingToAttachError(
                    f"--strict, and process {pid} has no hook for {event}: {why}"
                )

    def wants(self, target: Target, name: str) -> bool:
        """True if the config wants *target*, whose node is called *name*."""
        return self.config.wants(name, target.exe, cgroup_of(target.pid))

    def apply_config(self, config: Config) -> None:
        """Apply *config*, and forget all refusals."""
        self.config = config
        self.refused.clear()
        self._waiting.clear()
        self._failed.forget()

    def forget_ended(self) -> None:
        """Forget refused VMs that have ended."""
        for pid in list(self.refused):
            if not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 - fast
                self.refused.pop(pid, None)
                self._waiting.pop(pid, None)
                self._failed.clear(pid)


def _file_limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit


def _max_targets() -> int:
    """Number of targets for which there are file descriptors."""
    return max(1, (_file_limit() - _RESERVED) // _PER_TARGET)
