# SPDX-License-Identifier: Apache-2.0
"""Schedulers that are stuck, full, or collect all the time; processes that get no turn."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.processes.table import PRIORITY
from scope_ebpf.beam.vm.schedulers import Schedulers
from scope_ebpf.checks.machine import is_stopped
from scope_ebpf.checks.scene import SHOWN
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.check import Finding, Name

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.schedulers import Scheduler
    from scope_ebpf.checks.scene import Scene
    from scope_ebpf.results.documents.checks import Evidence, Involved, Subject

#: Seconds at one piece of work after which a scheduler counts as stuck.
STUCK = 1.0
#: CPU seconds at one piece of work from which on a thread that wants to run is held by that work,
#: not by the host; a turn of a process takes some milliseconds.
_WORKED = 0.1
#: Looks from which on shares are judged, and the share of looks that counts as all the time.
_ENOUGH, _MOSTLY = 8, 0.7
#: Shares of looks at which one that collects too much is on a scheduler, and has the flag.
_COLLECTS, _FLAGGED = 0.5, 0.25
#: Work in the run queues for each scheduler, at the least of all looks.
_CROWD = 20
#: CPU seconds a second of schedulers that mostly spin.
_SPINNING = 0.5
#: ERTS_PSFLG_IN_RUNQ, and the bits of the priority at which a process is queued
#: (OTP-25.2.3 erts/emulator/beam/erl_process.h).
_QUEUED, _PRIORITY = 1 << 14, 3


class Threads:
    """The schedulers of the VM at several looks."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._reader = Schedulers(scene.target, scene.viewer)
        self._looks: list[tuple[float, list[Scheduler]]] = []
        self._since: dict[int, tuple[object, float, float]] = {}
        self.look()
        if self._reader.refused and not self._looks[0][1]:
            raise ReadRefusedError(next(iter(self._reader.refused.values())))

    @property
    def refused(self) -> dict[str, str]:
        """Why kinds of schedulers could not be read."""
        return {f"schedulers {kind}": why for kind, why in self._reader.refused.items()}

    def look(self) -> None:
        """Read what each scheduler does."""
        found, now = self._reader.read(KINDS), time.monotonic()
        switches = {i.thread.role: i.queue.switches for i in found if i.queue}
        since = {}
        for item in found:
            shared = item.queue.switches if item.queue else switches.get(item.thread.role)
            work = (item.doing, item.process, item.port, item.nif, item.process and shared)
            before = self._since.get(item.thread.tid)
            fresh = (work, now, item.thread.cpu_seconds)
            since[item.thread.tid] = before if before and before[0] == work else fresh
        self._since = since
        self._looks.append((now, found))

    def findings(self) -> list[Finding]:
        """What is wrong with the schedulers."""
        stopped = is_stopped(self._scene, [item.doing for item in self._looks[-1][1]])
        if stopped:
            return [stopped]
        found = [self._wedged(), self._spinning(), self._starved(), self._crowded()]
        found += [self._pool(kind) for kind in ("dirty_cpu", "dirty_io")]
        return [one for one in found if one] + self._collectors()

    def _held(self, item: Scheduler) -> float:
        """Seconds for which a scheduler has been at one piece of work; 0 if the host holds it."""
        now, (_, since, cpu) = self._looks[-1][0], self._since[item.thread.tid]
        seconds = now - since
        used = item.thread.cpu_seconds - cpu
        return 0.0 if item.thread.state == "R" and used < _WORKED else seconds

    def _wedged(self) -> Finding | None:
        normal = [i for i in self._looks[-1][1] if i.thread.role == "normal"]
        normal = [item for item in normal if item.doing != "suspended"]
        held = [i for i in normal if i.doing == "running" and i.process and self._held(i) >= STUCK]
        if not held:
            return None
        longest = max(held, key=lambda item: (item.nif is not None, self._held(item)))
        seconds = self._held(longest)
        waiting = _waiting(held)
        is_all = len(held) == len(normal)
        count = "every scheduler" if is_all else f"{len(held)} of {len(normal)} schedulers"
        text = (
            (
                f"{count} {'is' if is_all or len(held) == 1 else 'are'} at one process for "
                f"{seconds:.1f} s or longer: "
            ),
            *_who(longest),
            *_where(longest),
            f"; {waiting} processes and ports wait in their run queues",
        )
        about = _subject(longest)
        if longest.nif:
            about["library"] = longest.nif.library
        evidence: Evidence = {"seconds": round(seconds, 3), "count": len(held), "waiting": waiting}
        next_ = ("schedulers {pid} --once", "profile {pid}")
        return Finding("wedged", "critical", about, text, evidence, "certain", next_, seconds)

    def _pool(self, kind: str) -> Finding | None:
        """That every dirty scheduler of a kind is busy at each look, while work for them waits."""
        for _, found in self._looks:
            pool = [i for i in found if i.thread.role == kind and i.doing != "suspended"]
            if not pool or not _waiting(pool) or any(i.doing != "running" for i in pool):
                return None
        if self._looks[-1][0] - self._looks[0][0] < STUCK:
            return None
        pool = [i for i in self._looks[-1][1] if i.thread.role == kind]
        waiting = _waiting(pool)
        functions = Counter(
            "(collecting garbage)" if i.collecting else (i.nif.function if i.nif else i.function)
            for i in pool
        )
        where, count = functions.most_common(1)[0]
        text = (
            (
                f"all {len(pool)} {kind} schedulers are busy and {waiting} wait for them; {count} "
                f"{'is' if count == 1 else 'are'} in "
            ),
            Name("function", where or "unknown code"),
        )
        about: Subject = {"what": kind, "function": where}
        evidence: Evidence = {"count": len(pool), "waiting": waiting, "processes": _involved(pool)}
        following = ("schedulers {pid} --once",)
        return Finding("dirty_pool", "critical", about, text, evidence, "certain", following)

    def _starved(self) -> Finding | None:
        """That processes of high priority take all schedulers while others wait in the queue."""
        scene = self._scene
        rows = scene.last.rows
        before = scene.before(rows)
        stuck = (rows["state"] & before["state"] & np.uint32(_QUEUED)) != 0
        stuck &= (rows["id"] == before["id"]) & (rows["reductions"] == before["reductions"])
        count = int(stuck.sum())
        if not count or scene.seconds < STUCK:
            return None
        busy = [i for i in self._looks[-1][1] if i.thread.role == "normal" and i.process]
        pids = {scene.viewer.pids.text(int(r["id"])): r for r in rows}
        first = [
            i for i in busy if (r := pids.get(i.process or "")) is not None and _priority(r) < 2
        ]
        if not first:
            return None
        names: list[str | Name] = []
        for item in first:
            names += [*(", " if names else " ",), *_who(item)]
        text = (
            (
                f"{count:,} processes had no turn for {scene.seconds:.1f} s: processes of priority "
                f"high or max take {len(first)} of the schedulers:"
            ),
            *names,
        )
        about = _subject(first[0])
        evidence: Evidence = {"waiting": count, "seconds": round(scene.seconds, 3)}
        evidence["processes"] = _involved(first)
        following = ("schedulers {pid} --once",)
        return Finding("starved", "critical", about, text, evidence, "certain", following)

    def _crowded(self) -> Finding | None:
        waits, online = [], 1
        for _, found in self._looks:
            normal = [i for i in found if i.thread.role == "normal"]
            online = max(1, sum(i.doing != "suspended" for i in normal))
            waits.append(_waiting(normal))
        if len(waits) < _ENOUGH or min(waits) < _CROWD * online:
            return None
        mean = sum(waits) / len(waits)
        text = (f"{mean:,.0f} processes wait for {online} schedulers at any time",)
        evidence: Evidence = {"waiting": int(mean), "count": online}
        following = ("top {pid}", "profile {pid}")
        about: Subject = {"what": "run queues"}
        return Finding("run_queue", "warning", about, text, evidence, "certain", following)

    def _spinning(self) -> Finding | None:
        """That schedulers use much CPU by spinning, and do hardly anything."""
        if len(self._looks) < _ENOUGH:
            return None
        items = [i for _, found in self._looks for i in found if i.thread.role == "normal"]
        spins = sum(i.doing == "busy-waiting" for i in items) / len(items)
        works = sum(i.doing == "running" for i in items) / len(items)
        first, last = (
            sum(i.thread.cpu_seconds for i in self._looks[at][1] if i.thread.role == "normal")
            for at in (0, -1)
        )
        cpu = (last - first) / (self._looks[-1][0] - self._looks[0][0])
        # On a host that is full a short spin lasts for many looks, but takes no CPU.
        if cpu < _SPINNING or works > 1 - _MOSTLY or spins < 0.3:
            return None
        text = (
            (
                f"schedulers use {cpu:.1f} CPUs, but spin for lack of work at {100 * spins:.0f} % "
                f"of the looks and work at {100 * works:.0f} %: busy waiting (+sbwt) costs this"
            ),
        )
        evidence: Evidence = {"share": round(spins, 3), "per_second": round(cpu, 3)}
        about: Subject = {"what": "schedulers"}
        return Finding("busy_wait", "warning", about, text, evidence)

    def _collectors(self) -> list[Finding]:
        """
        Processes that collect garbage at most looks.

        One that is on a dirty CPU scheduler outside of a native function is there to collect, but
        has the flag only while it does.
        """
        looks = len(self._looks)
        if looks < _ENOUGH:
            return []
        seen: Counter[str] = Counter()
        flagged: Counter[str] = Counter()
        last: dict[str, Scheduler] = {}
        for _, found in self._looks:
            for item in found:
                dirty = item.thread.role == "dirty_cpu" and item.nif is None
                if item.process and (item.collecting or dirty):
                    seen[item.process] += 1
                    flagged[item.process] += item.collecting
                    last[item.process] = item
        made = []
        for process, count in seen.most_common(3):
            if count < _COLLECTS * looks or flagged[process] < _FLAGGED * looks:
                continue
            item = last[process]
            text = (
                *_who(item),
                f" is on a scheduler to collect garbage at {count} of {looks} looks",
            )
            evidence: Evidence = {"share": round(count / looks, 3), "count": count, "limit": looks}
            following = (f"ps {{pid}} {process.strip('<>')}", "top {pid} --once --sort gc")
            made.append(
                Finding("gc", "warning", _subject(item), text, evidence, "certain", following)
            )
        return made


def _priority(row: np.void) -> int:
    """The priority at which a process runs: 0 is max, 1 high (PRIORITY)."""
    return min(int(row["state"]) & _PRIORITY, len(PRIORITY) - 1)


def _waiting(items: list[Scheduler]) -> int:
    """Processes and ports in the run queues of these."""
    return sum(sum(i.queue.lengths.values()) + i.queue.ports for i in items if i.queue)


def _subject(item: Scheduler) -> Subject:
    found: Subject = {"what": f"{item.thread.role} {item.thread.number}"}
    if item.process:
        found |= {"process": item.process, "name": item.name}
    found["function"] = item.nif.function if item.nif else item.function
    return found


def _who(item: Scheduler) -> tuple[str | Name, ...]:
    parts: tuple[str | Name, ...] = (item.process or "",)
    return (*parts, " ", Name("name", item.name)) if item.name else parts


def _where(item: Scheduler) -> tuple[str | Name, ...]:
    if item.nif:
        function, library = Name("function", item.nif.function), Name("library", item.nif.library)
        return " in the native function ", function, " of ", library
    if item.collecting:
        return (" collecting garbage",)
    return (" in ", Name("function", item.function)) if item.function else ()


def _involved(items: list[Scheduler]) -> list[Involved]:
    made: list[Involved] = []
    for item in items:
        if item.process and len(made) < SHOWN:
            name, function = item.name, item.function
            made.append(
                {
                    "process": item.process,
                    "name": name,
                    "initial_call": None,
                    "function": function,
                }
            )
    return made
