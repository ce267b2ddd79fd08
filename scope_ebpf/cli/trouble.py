# SPDX-License-Identifier: Apache-2.0
"""
What keeps a VM from its work, in one line with figures.

One look shows that a VM is stopped, halts, or lacks schedulers. A stuck scheduler and a quota that
holds the VM back are found by two looks.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.memory.look_limits import limited, one_of_many
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.beam.vm.schedulers import Schedulers
from scope_ebpf.beam.vm.threads import ROLES
from scope_ebpf.cgroups import Throttling
from scope_ebpf.errors import ReadRefusedError, ScopeError
from scope_ebpf.sinks.plain import spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from scope_ebpf.beam.vm.schedulers import Scheduler
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.cgroups import Throttled
    from scope_ebpf.results.documents import vms

#: Seconds at one piece of work after which a scheduler counts as stuck; seconds over which
#: throttling is counted.
STUCK = 0.25
#: The tables whose limits end a VM, and the used share from which on one is nearly full.
_TABLES, _FULL = ("processes", "ports", "atoms"), 0.8
#: What ``erts_halt_progress`` is while the VM does not halt (OTP-25.2.3 erts/emulator/beam/io.c).
_NO_HALT = 0xFFFFFFFF


class Troubles:
    """
    What is wrong with one VM, found by repeated looks at its schedulers.

    *viewer* names the processes that schedulers run.
    """

    def __init__(self, target: Target, viewer: Viewer) -> None:
        self._target = target
        self._schedulers = Schedulers(target, viewer)
        self._since: dict[int, tuple[object, float]] = {}
        self._throttling = Throttling(target.pid)
        self._quota: tuple[float, Throttled | None] | None = None
        self._now = 0.0

    @property
    def refused(self) -> dict[str, str]:
        """Why parts of the VM could not be read, by part."""
        return self._schedulers.refused

    def look(self, roles: Container[str] = ROLES) -> list[Scheduler]:
        """Look once at every thread that has one of the *roles*."""
        found, self._now = self._schedulers.read(roles), time.monotonic()
        since, switches = {}, _switches(found)
        for item in found:
            work = _work(item, switches)
            before = self._since.get(item.thread.tid)
            since[item.thread.tid] = before if before and before[0] == work else (work, self._now)
        self._since = since
        if self._quota is None:
            self._quota = self._now, self._throttling.read()
        return found

    def seconds(self, item: Scheduler) -> float:
        """Seconds, at least, for which a thread of the last look has been at its work."""
        return self._now - self._since[item.thread.tid][1]

    def now(self) -> str | None:
        """What is wrong now, or None; takes STUCK seconds if one look is not enough."""
        found = self.look(KINDS)
        if self.suspects(found):
            self._target.identity.wait(STUCK)
            found = self.look(KINDS)
        return self.describe(found)

    def suspects(self, found: list[Scheduler]) -> bool:
        """Whether a second look, STUCK later, may show more than this one."""
        return any(map(self._undecided, found)) or self._limited()

    def describe(self, found: list[Scheduler]) -> str | None:
        """What keeps the VM from working, by the look that *found* these; None if nothing does."""
        if found and all(item.doing == "stopped" for item in found):
            return "The VM is stopped (SIGSTOP or a debugger); SIGCONT lets it go on."
        texts = (
            self._throttled(),
            halting(self._target),
            stuck(found, self.seconds),
            suspended(found),
            *(crowded(found, kind) for kind in ("dirty_cpu", "dirty_io")),
        )
        return spelled(" ".join(text for text in texts if text)) or None

    def _undecided(self, item: Scheduler) -> bool:
        return item.nif is not None and item.doing == "running" and self.seconds(item) < STUCK

    def _limited(self) -> bool:
        """Whether a quota has held the VM back before, and it is not known whether it does."""
        if self._quota is None or self._now - self._quota[0] >= STUCK:
            return False
        return self._quota[1] is not None and self._quota[1].throttled > 0

    def _throttled(self) -> str | None:
        """How often a quota held the VM back since STUCK ago or longer; None if never."""
        if self._quota is None or self._now - self._quota[0] < STUCK:
            return None
        (began, before), after = self._quota, self._throttling.read()
        self._quota = self._now, after
        if before is None or after is None or after.throttled <= before.throttled:
            return None
        times, periods = after.throttled - before.throttled, after.periods - before.periods
        return (
            f"The CPU quota of its cgroup held the VM back in {times} of {periods} periods of the "
            f"last {self._now - began:.1f} s."
        )


def _switches(found: list[Scheduler]) -> dict[str, int]:
    """Context switches of each kind of dirty schedulers, which share the queue of the first."""
    return {i.thread.role: i.queue.switches for i in found if i.queue and i.thread.number == 1}


def _work(item: Scheduler, shared: dict[str, int]) -> object:
    """A value that differs between one piece of work and the next, as far as that can be seen."""
    switches = item.queue.switches if item.queue else shared.get(item.thread.role)
    # A process that waits in a native function makes no context switches meanwhile.
    return (item.doing, item.process, item.port, item.nif, switches if item.process else None)


class Health(NamedTuple):
    """
    What is wrong with one VM, and how full its tables are.
    """

    #: What keeps the VM from its work; None if nothing does.
    trouble: str | None = None
    #: Used and possible rows of its tables, by name; None if they could not be read.
    usage: dict[str, tuple[int, int]] | None = None
    #: Why a part could not be looked at; None if all was.
    refused: str | None = None

    def as_json(self) -> vms.VmHealth:
        """
        Give the fields of one VM in ``list --format json``.

        ``trouble`` is null where there is none, and where ``refused`` says why nobody knows.
        """
        usage = {
            name: {"used": used, "limit": limit}
            for name, (used, limit) in (self.usage or {}).items()
        }
        return {
            "trouble": self.trouble,
            "usage": cast("vms.TableUsage | None", usage or None),
            "refused": self.refused,
        }

    def text(self) -> str:
        """What is wrong and which tables are nearly full; "" if nothing is."""
        full = [
            f"{used:,} of {limit:,} {name} are in use ({100 * used / limit:.0f} %)."
            for name, (used, limit) in (self.usage or {}).items()
            if limit and used > _FULL * limit
        ]
        refused = self.refused and f"Could not be looked at: {self.refused}"
        return " ".join(text for text in (self.trouble, *full, refused) if text)


def health(targets: list[Target]) -> list[Health]:
    """Look at VMs, and a second time at those for which one look is not enough."""
    looked = [_looked(target) for target in targets]
    again = [one for one in looked if isinstance(one, tuple) and one[0].suspects(one[1])]
    if again:
        time.sleep(STUCK)
    return [
        _health(target, one, again=one in again)
        for target, one in zip(targets, looked, strict=True)
    ]


def _looked(target: Target) -> tuple[Troubles, list[Scheduler]] | str:
    """The first look at a VM, or why there was none."""
    refused: list[str] = []
    with within(target, refused):
        troubles = Troubles(target, Viewer(target, IDENTITY))
        return troubles, troubles.look(KINDS)
    return refused[0]


@contextmanager
def within(target: Target, refused: list[str]) -> Iterator[None]:
    """Stay within the limits of one look; why it failed, at whatever, is added to *refused*."""
    try:
        with limited(one_of_many(target.pid)):
            yield
    except (ScopeError, OSError) as error:
        refused.append(str(error))
    except Exception as error:  # noqa: BLE001 - one VM must not take the others along
        refused.append(repr(error))


def _health(
    target: Target, looked: tuple[Troubles, list[Scheduler]] | str, *, again: bool
) -> Health:
    trouble, usage, refused = None, None, list[str]()
    with within(target, refused):
        if isinstance(looked, str):
            refused.append(looked)
        else:
            troubles, found = looked
            trouble = troubles.describe(troubles.look(KINDS) if again else found)
            refused += troubles.refused.values()
    with within(target, refused):
        reader = CounterReader(target)
        used, limits = reader.read(), reader.limits()
        usage = {name: (getattr(used, name), getattr(limits, name)) for name in _TABLES}
    return Health(trouble, usage, "; ".join(dict.fromkeys(refused)) or None)


def halting(target: Target) -> str | None:
    """A sentence if the VM halts, with what it waits for; None also if its build hides that."""
    progress, exit_code = target.find("erts_halt_progress"), target.find("erts_halt_code")
    if progress is None or exit_code is None:
        return None
    try:
        left, code = target.memory.u32(progress), target.memory.u32(exit_code)
    except ReadRefusedError:
        return None
    if left == _NO_HALT:
        return None
    signed = code - (1 << 32) if code >> 31 else code
    return f"The VM halts with code {signed} and waits for {left} of its ports and schedulers."


def stuck(found: list[Scheduler], seconds: Callable[[Scheduler], float]) -> str | None:
    """A sentence if normal schedulers are stuck: all in native functions, or some at one work."""
    normal = _online(found, "normal")
    # Ports are left out: one that has much to do is there each time, for other work.
    running = [item for item in normal if item.doing == "running" and item.process]
    held = [item for item in running if seconds(item) >= STUCK]
    if not held:
        return None
    longest = max(held, key=seconds)
    lasts = f"for {seconds(longest):.1f} s or longer"
    if len(held) == len(normal) and all(item.nif for item in held):
        names = ", ".join(sorted({item.nif.library for item in held if item.nif}))
        return (
            f"Every scheduler is in a native function of {names}: nothing runs for "
            f"{min(map(seconds, held)):.1f} s or longer, and {_waiting(held)} wait."
        )
    who = " ".join(part for part in (longest.process, longest.name) if part)
    return (
        f"{len(held)} of {len(normal)} schedulers run one process and take no other, normal "
        f"{longest.thread.number} {lasts}: {who} {_where(longest)}; {_waiting(held)} wait there."
    )


def suspended(found: list[Scheduler]) -> str | None:
    """A sentence if work waits for the schedulers that are online while others are suspended."""
    normal = [item for item in found if item.thread.role == "normal"]
    away = [item for item in normal if item.doing == "suspended"]
    busy = [item for item in normal if item.doing == "running"]
    waiting = _waiting(normal)
    if not away or not waiting or len(busy) + len(away) < len(normal):
        return None
    return (
        f"{len(away)} of {len(normal)} schedulers {_are(len(away))} suspended (not online, or "
        f"multi-scheduling is blocked), all others are busy, and {waiting} wait."
    )


def crowded(found: list[Scheduler], kind: str) -> str | None:
    """A sentence if every dirty scheduler of a *kind* is busy while work for them waits."""
    waiting = _waiting([item for item in found if item.thread.role == kind])
    pool = _online(found, kind)
    if not pool or not waiting or any(item.doing != "running" for item in pool):
        return None
    ((where, count),) = Counter(map(_where, pool)).most_common(1)
    return (
        f"All {len(pool)} {kind} schedulers are busy and {waiting} wait for them; "
        f"{count} {_are(count)} {where}."
    )


def _online(found: list[Scheduler], kind: str) -> list[Scheduler]:
    """The schedulers of a *kind* that may take work; the others are suspended."""
    return [item for item in found if item.thread.role == kind and item.doing != "suspended"]


def _waiting(items: list[Scheduler]) -> int:
    """Processes and ports in the run queues of these."""
    return sum(sum(i.queue.lengths.values()) + i.queue.ports for i in items if i.queue)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _where(item: Scheduler) -> str:
    if item.nif:
        return f"in {item.nif.function} of {item.nif.library}"
    if item.collecting:
        return "collecting garbage"
    return f"in {item.function}" if item.function else "in unknown code"
