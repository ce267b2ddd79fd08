# SPDX-License-Identifier: Apache-2.0
"""
Whose a process is, and what each owner may take of the daemon: CPU, room, turns.

An owner is a user, and the container or service that a process is confined to. Who is root outside
of any container is trusted, and is held to nothing.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from scope_ebpf.daemon.readings.process import cgroup_of
from scope_ebpf.errors import NoSuchProcessError
from scope_ebpf.sandbox.proc import status_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Thing = TypeVar("_Thing")
#: The share of a core that looking at the processes of one owner takes in the long run, and the
#: seconds of CPU that it may take at once.
SHARE, BURST = 0.02, 2.0
#: Parts of a cgroup's path at which one tenant begins; what is below it made itself. Sessions of a
#: user, services, pods and containers (by systemd, docker, containerd, cri-o, lxc).
_TENANT = re.compile(
    r"user-\d+\.slice|.+\.(?:service|scope)|.*pod[0-9a-f_-]{32,}.*|.*[0-9a-f]{32,}.*|lxc.*"
)
#: Seconds for which nobody is made to wait.
_SOON = 0.001
#: Owners of whom something is remembered; beyond it those that owe nothing are forgotten.
_OWNERS = 4096


class Owner(NamedTuple):
    """The user who started a process, by the host's number, and the tenant's cgroup or ""."""

    uid: int
    cgroup: str

    @property
    def keys(self) -> tuple[str, ...]:
        """What its shares are counted by; nothing for root outside of containers."""
        user = (f"uid {self.uid}",) if self.uid else ()
        return (*user, f"cgroup {self.cgroup}") if self.cgroup else user

    def __str__(self) -> str:
        return " in ".join(self.keys) or "root"


#: Root, outside of any container.
ROOT = Owner(0, "")


def tenant_of(cgroup: str) -> str:
    """The part of a cgroup's path that confines its processes: down to the first tenant in it."""
    parts = [part for part in cgroup.split("/") if part]
    for number, part in enumerate(parts, 1):
        if _TENANT.fullmatch(part):
            return "/" + "/".join(parts[:number])
    return "/" + "/".join(parts) if parts else ""


def owner_of(pid: int, proc: Path = Path("/proc"), ours: str = "") -> Owner:
    """
    Whose *pid* is; NoSuchProcessError if it has ended.

    *ours* is the tenant that the daemon itself is in: it confines nobody to less than us. The user
    is the real one, which no program without privileges can change, setuid or not.
    """
    try:
        uid = status_number((proc / str(pid) / "status").read_bytes(), "Uid")
    except OSError:
        uid = None
    if uid is None:
        raise NoSuchProcessError(f"process {pid} has ended")
    tenant = tenant_of(cgroup_of(pid, proc))
    return Owner(uid, "" if tenant == ours else tenant)


class Shares:
    """
    How much of the daemon's CPU each owner has had; for any thread.

    Nobody is cut off in the middle: who has taken more than a burst waits until it is worn off.
    """

    def __init__(
        self,
        share: float = SHARE,
        burst: float = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._burst, self._clock = share, burst, clock
        #: By key: what was taken and is not worn off, and when it was counted.
        self._taken: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def charge(self, owner: Owner, seconds: float) -> None:
        """Count *seconds* of CPU that were taken for *owner*."""
        now = self._clock()
        with self._lock:
            for key in owner.keys:
                self._taken[key] = self._left(key, now) + seconds, now
            if len(self._taken) > _OWNERS:
                self._taken = {k: v for k, v in self._taken.items() if self._left(k, now) > 0}

    def wait(self, owner: Owner) -> float:
        """Seconds until something may be done for *owner* again; 0 if it may now."""
        now = self._clock()
        with self._lock:
            most = max((self._left(key, now) for key in owner.keys), default=0.0)
        seconds = (most - self._burst) / self._share
        return seconds if seconds > _SOON else 0.0

    def _left(self, key: str, now: float) -> float:
        taken, at = self._taken.get(key, (0.0, now))
        return max(0.0, taken - self._share * (now - at))


class Turns:
    """Processes that wait for a look: owners take turns, and root is first. For one thread."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[tuple[int, Owner]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, pid: int, owner: Owner) -> None:
        """Let *pid* wait for its turn."""
        self._waiting.setdefault(_queue(owner), deque()).append((pid, owner))

    def next(self, wait: Callable[[Owner], float]) -> tuple[int, Owner] | float | None:
        """
        Whose turn it is: a pid and its owner.

        *wait* tells for how many seconds an owner has to wait; where all have to, the least of
        it is given; None if nobody waits.
        """
        waits = []
        for key in sorted(self._waiting, key=bool):  # stable: root's queue is ""
            queue = self._waiting[key]
            seconds = wait(queue[0][1])
            if seconds > 0:
                waits.append(seconds)
                continue
            found = queue.popleft()
            self._waiting.move_to_end(key)
            if not queue:
                del self._waiting[key]
            return found
        return min(waits, default=None)


def in_turns(things: Iterable[_Thing], owner: Callable[[_Thing], Owner]) -> list[_Thing]:
    """*things* in an order in which the n-th of each owner comes before any other's next one."""
    counts: Counter[str] = Counter()
    ranked = []
    for thing in things:
        key = _queue(owner(thing))
        ranked.append((counts[key] if key else 0, thing))
        counts[key] += 1
    return [thing for _, thing in sorted(ranked, key=lambda pair: pair[0])]


def _queue(owner: Owner) -> str:
    """A container may have many users, so it comes before them."""
    return owner.keys[-1] if owner.keys else ""


class Room:
    """Who holds how many of something: no owner more than half of it, but root."""

    def __init__(self) -> None:
        self._held: dict[int, Owner] = {}
        self._counts: Counter[str] = Counter()

    def refusal(self, owner: Owner, most: int) -> str:
        """Why there is no room for one more VM of *owner*, where *most* have it; "" if there is."""
        half = max(1, most // 2)
        for key in owner.keys:
            if self._counts[key] >= half:
                return (
                    f"{self._counts[key]} VMs of {key} are observed, which is half of those that "
                    "there is room for; the other half is for others"
                )
        return ""

    def enter(self, pid: int, owner: Owner) -> None:
        """*pid* has it."""
        self.leave(pid)
        self._held[pid] = owner
        self._counts.update(owner.keys)

    def leave(self, pid: int) -> None:
        """*pid* does not have it any more."""
        owner = self._held.pop(pid, None)
        if owner:
            self._counts.subtract(owner.keys)
            self._counts = +self._counts

    def held(self, owner: Owner) -> int:
        """How many *owner* has, of its user or its cgroup, whichever has more."""
        return max((self._counts[key] for key in owner.keys), default=0)
