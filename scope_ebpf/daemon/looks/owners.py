# SPDX-License-Identifier: Apache-2.0
"""
The owner of a process, and each owner's shares of the daemon: CPU, targets, turns.

An owner is a user, together with the container or service that the process is confined to. Root
outside of any container is trusted and has no limits.
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
#: Share of a core that looks at the processes of one owner may take in the long run, and seconds of
#: CPU that they may take at once.
SHARE, BURST = 0.02, 2.0
#: Parts of a cgroup's path at which a tenant begins; a tenant makes the cgroups below by itself.
#: These are sessions of a user, services, pods and containers (systemd, docker, containerd, cri-o,
#: lxc).
_TENANT = re.compile(
    r"user-\d+\.slice|.+\.(?:service|scope)|.*pod[0-9a-f_-]{32,}.*|.*[0-9a-f]{32,}.*|lxc.*"
)
#: Shorter waits, in seconds, count as none.
_MIN_WAIT = 0.001
#: Number of owners above which those that owe nothing are forgotten.
_OWNERS = 4096


class Owner(NamedTuple):
    """The owner of a process."""

    #: The real user, by the number in the daemon's user namespace.
    uid: int
    #: The cgroup of the tenant; "" outside of any tenant.
    cgroup: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Names under which its shares are counted; none for root outside of containers."""
        user = (f"uid {self.uid}",) if self.uid else ()
        return (*user, f"cgroup {self.cgroup}") if self.cgroup else user

    def __str__(self) -> str:
        return " in ".join(self.keys) or "root"


#: Root, outside of any container.
ROOT = Owner(0, "")


def tenant_of(cgroup: str) -> str:
    """The part of a cgroup's path down to the first tenant in it."""
    parts = [part for part in cgroup.split("/") if part]
    for number, part in enumerate(parts, 1):
        if _TENANT.fullmatch(part):
            return "/" + "/".join(parts[:number])
    return "/" + "/".join(parts) if parts else ""


def owner_of(pid: int, proc: Path = Path("/proc"), ours: str = "") -> Owner:
    """
    The owner of *pid*. Raises NoSuchProcessError if it has ended.

    *ours* is the tenant of the daemon itself, which is not counted as a tenant. The user is the
    real one, which a program without privileges cannot change, setuid or not.
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
    The daemon's CPU that each owner has taken (a leaky bucket); for any thread.

    A look is never interrupted. An owner that has taken more than *burst* seconds waits until the
    excess has drained at *share* seconds per second.
    """

    def __init__(
        self,
        share: float = SHARE,
        burst: float = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._burst, self._clock = share, burst, clock
        #: By key: seconds that have not drained, and when that was computed.
        self._taken: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def charge(self, owner: Owner, seconds: float) -> None:
        """Charge *owner* for *seconds* of CPU."""
        now = self._clock()
        with self._lock:
            for key in owner.keys:
                self._taken[key] = self._left(key, now) + seconds, now
            if len(self._taken) > _OWNERS:
                self._taken = {k: v for k, v in self._taken.items() if self._left(k, now) > 0}

    def wait(self, owner: Owner) -> float:
        """Seconds for which *owner* has to wait."""
        now = self._clock()
        with self._lock:
            most = max((self._left(key, now) for key in owner.keys), default=0.0)
        seconds = (most - self._burst) / self._share
        return seconds if seconds > _MIN_WAIT else 0.0

    def _left(self, key: str, now: float) -> float:
        taken, at = self._taken.get(key, (0.0, now))
        return max(0.0, taken - self._share * (now - at))


class LookQueue:
    """Processes that wait for a look: root's first, then the owners in turn. For one thread."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[tuple[int, Owner]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, pid: int, owner: Owner) -> None:
        """Add *pid* to the queue of *owner*."""
        self._waiting.setdefault(queue_of(owner), deque()).append((pid, owner))

    def next(self, wait: Callable[[Owner], float]) -> tuple[int, Owner] | float | None:
        """
        The next pid and its owner, which are removed.

        *wait* returns the seconds for which an owner has to wait. Where all have to wait, returns
        the minimum of these seconds; None if the queues are empty.
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
    """*things* sorted so that the n-th of each owner comes before the (n+1)-th of any other."""
    counts: Counter[str] = Counter()
    ranked = []
    for thing in things:
        key = queue_of(owner(thing))
        ranked.append((counts[key] if key else 0, thing))
        counts[key] += 1
    return [thing for _, thing in sorted(ranked, key=lambda pair: pair[0])]


def queue_of(owner: Owner) -> str:
    """The queue of *owner*: its tenant rather than its user, since a container has many users."""
    return owner.keys[-1] if owner.keys else ""


class OwnerSlots:
    """Limited slots of which no owner but root may have more than half."""

    def __init__(self) -> None:
        self._held: dict[int, Owner] = {}
        self._counts: Counter[str] = Counter()

    def refusal(self, owner: Owner, most: int) -> str:
        """Why *owner* may not have one more of *most* slots; "" if it may."""
        half = max(1, most // 2)
        for key in owner.keys:
            if self._counts[key] >= half:
                return (
                    f"{self._counts[key]} VMs of {key} are observed, which is half of those that "
                    "there is room for; the other half is for others"
                )
        return ""

    def enter(self, pid: int, owner: Owner) -> None:
        """Give *pid* of *owner* a slot."""
        self.leave(pid)
        self._held[pid] = owner
        self._counts.update(owner.keys)

    def leave(self, pid: int) -> None:
        """Free the slot of *pid*, if it has one."""
        owner = self._held.pop(pid, None)
        if owner:
            self._counts.subtract(owner.keys)
            self._counts = +self._counts

    def held(self, owner: Owner) -> int:
        """Slots of *owner*: those of its user or of its cgroup, whichever are more."""
        return max((self._counts[key] for key in owner.keys), default=0)
