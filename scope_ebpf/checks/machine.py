# SPDX-License-Identifier: Apache-2.0
"""The VM as a whole: halting or stopping, held back by a quota, near a limit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import is_pid
from scope_ebpf.beam.processes.monitors import fits
from scope_ebpf.beam.processes.sizes import LIMIT, tree
from scope_ebpf.beam.vm.counters import CounterReader
from scope_ebpf.cgroups import Throttling, memory_limit
from scope_ebpf.checks.scene import SHOWN, ps, subject, who
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.check import Finding, Name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.checks.scene import Scene
    from scope_ebpf.results.documents.checks import Evidence, Involved, Subject
    from scope_ebpf.results.kinds import Confidence, Severity

#: What ``erts_halt_progress`` is while the VM does not halt (OTP-25.2.3 erts/emulator/beam/io.c).
_NO_HALT = 0xFFFFFFFF
#: Parts of the periods in which a quota was used up, and of memory and tables in use.
_HELD, _MOSTLY_HELD = 0.25, 0.5
_NEAR, _FULL = 0.7, 0.9
_MEMORY_NEAR, _MEMORY_FULL = 0.9, 0.97
#: What shows more of a table that is nearly full.
_FOLLOWING = {"processes": "top {pid} --once", "ports": "ports {pid}", "atoms": "memory {pid}"}
#: Periods below which a share says nothing.
_PERIODS = 5
#: What does not return while ports are flushed (OTP-25.2.3 erts/emulator/beam/bif.c, halt_2).
_HALT = ("erlang", "halt", 2)
#: Functions in which a supervisor waits for a child to end, and init for all applications
#: (OTP-25.2.3 lib/stdlib/src/supervisor.erl and erts/preloaded/src/init.erl).
_SHUTDOWN = ("supervisor", "shutdown")
_INIT = frozenset({"shutdown_loop", "shutdown_pids", "stop", "kill_em", "kill_all_pids"})


class Ending:
    """Whether the VM halts, or stops and waits for a process."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        #: Why it is not known whether the VM halts.
        self.refused: dict[str, str] = {}

    def look(self) -> None:
        """Nothing changes that is not read at the end."""

    def findings(self) -> list[Finding]:
        """That it halts, or stops."""
        return [*self._halting(), *self._stopping()]

    def _halting(self) -> list[Finding]:
        target = self._scene.target
        try:
            progress, exit_code = map(target.address, ("erts_halt_progress", "erts_halt_code"))
            left, code = target.memory.u32(progress), target.memory.u32(exit_code)
        except ReadRefusedError as error:
            found = self._called()
            if not found:
                self.refused["halting"] = str(error)
            return found
        if left == _NO_HALT:
            return []
        signed = code - (1 << 32) if code >> 31 else code
        text = (
            f"the VM halts with code {signed} and waits for {left} of its ports and schedulers",
        )
        return [Finding("halting", "critical", {"what": "vm"}, text, {"waiting": left})]

    def _called(self) -> list[Finding]:
        """That a process called ``erlang:halt/2``, which does not return, and stays in it."""
        scene = self._scene
        rows, names = scene.first.rows, scene.viewer.names
        rows = scene.rows_of(rows["id"][names.in_functions(rows, _halts)].tolist()[:SHOWN])
        rows = rows[names.in_functions(rows, _halts)]
        if not len(rows):
            return []
        (one, *_) = scene.involved(rows)
        text = (
            *("the VM halts: ", who(one)),
            (
                f" has been in erlang:halt/2 for {scene.seconds:.1f} s or longer, and ports or "
                "schedulers do not let it end"
            ),
        )
        evidence: Evidence = {"seconds": round(scene.seconds, 3), "processes": [one]}
        following = (ps(one), "ports {pid} --once")
        about = subject(one)
        return [Finding("halting", "critical", about, text, evidence, "certain", following)]

    def _stopping(self) -> list[Finding]:
        scene = self._scene
        rows = scene.rows_of(scene.first.rows["id"][scene.first.rows["slot"] == 0].tolist())
        if not len(rows):
            return []
        (init,) = scene.involved(rows)
        function = scene.viewer.names.current_functions(rows)[0]
        if init["name"] != "init" or function is None or function.module != "init":
            return []
        if function.function not in _INIT:
            return []
        last = self._awaited()
        text: tuple[str | Name, ...] = ("the VM stops (init:stop)",)
        about: Subject = {"what": "vm"}
        processes: list[Involved] = [init]
        following: tuple[str, ...] = (ps(init),)
        if last:
            supervisor, child = last
            text = (*text, " and waits for ", who(child))
            text = (*text, ", a child of ", who(supervisor), " that does not end")
            about, processes = subject(child), [child, supervisor]
            following = (ps(child), ps(supervisor))
        evidence: Evidence = {"seconds": round(scene.seconds, 3), "processes": processes}
        sure: Confidence = "certain" if last else "likely"
        return [Finding("stopping", "critical", about, text, evidence, sure, following)]

    def _awaited(self) -> tuple[Involved, Involved] | None:
        """The deepest supervisor that waits for a child to end, and the child."""
        scene = self._scene
        rows = scene.last.rows
        here = scene.viewer.names.in_functions(rows, lambda function: function[:2] == _SHUTDOWN)
        waits: dict[int, int] = {}
        for pid in rows["id"][here].tolist()[:SHOWN]:
            found = monitored(scene, scene.rows_of([pid]))
            if len(found) == 1:
                waits[pid] = found[0]
        ends = [(a, b) for a, b in waits.items() if b not in waits]
        for pair in ends:
            named = {scene.viewer.pids.text(int(r["id"])): r for r in scene.rows_of(list(pair))}
            known = [named.get(scene.viewer.pids.text(pid)) for pid in pair]
            if all(one is not None for one in known):
                both = [scene.involved(scene.rows_of([pid]))[0] for pid in pair]
                return both[0], both[1]
        return None


def _halts(function: Mfa) -> bool:
    return function[:3] == _HALT


def monitored(scene: Scene, rows: NDArray[np.void]) -> list[int]:
    """Pid terms of the local processes that the process of *rows*, shape ``(1,)``, monitors."""
    target = scene.target
    found = tree(target, rows["monitors"], LIMIT)
    nodes = found.nodes[fits(target, found.nodes)]
    others = column(nodes, target.layout.offset("ErtsMonLnkNode", "other"), np.uint64)
    return [pid for pid in others.tolist() if is_pid(pid)]


class Quota:
    """The CPU quota and the memory limit of the cgroups around the VM."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._throttling = Throttling(scene.target.pid)
        self._began = time.monotonic()
        self._first = self._last = self._throttling.read()

    def look(self) -> None:
        """Read how often the quota was used up."""
        self._last = self._throttling.read()

    def findings(self) -> list[Finding]:
        """That a quota holds the VM back, or that its memory is nearly used up."""
        return [*self._throttled(), *self._memory()]

    def _throttled(self) -> list[Finding]:
        before, after = self._first, self._last
        if before is None or after is None:
            return []
        times, periods = after.throttled - before.throttled, after.periods - before.periods
        if periods < _PERIODS or times < _HELD * periods:
            return []
        share = times / periods
        held = after.seconds - before.seconds
        text = (
            (
                f"the CPU quota of its cgroup held the VM back in {times} of {periods} periods, "
                f"its threads for {held:.1f} s together: raise the quota, or start fewer schedulers"
            ),
        )
        severity: Severity = "critical" if share >= _MOSTLY_HELD else "warning"
        evidence: Evidence = {"count": times, "limit": periods, "share": round(share, 3)}
        return [Finding("throttled", severity, {"what": "cpu quota"}, text, evidence)]

    def _memory(self) -> list[Finding]:
        found = memory_limit(self._scene.target.pid)
        if found is None or found.used < _MEMORY_NEAR * found.limit:
            return []
        share = found.used / found.limit
        text = (
            (
                f"{found.used / 1e6:,.0f} of {found.limit / 1e6:,.0f} MB that its cgroup may have "
                "are in use: the kernel kills when it is full"
            ),
        )
        severity: Severity = "critical" if share >= _MEMORY_FULL else "warning"
        evidence: Evidence = {"used": found.used, "limit": found.limit, "share": round(share, 3)}
        evidence["count"] = found.kills
        about: Subject = {"what": "cgroup memory"}
        following = ("memory {pid}", "top {pid} --sort memory")
        return [Finding("memory", severity, about, text, evidence, "certain", following)]


class Tables:
    """Tables whose limits end a VM: processes, ports, atoms."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._reader = CounterReader(scene.target)
        self._limits = self._reader.limits()
        self._first = self._last = self._reader.read()

    def look(self) -> None:
        """Read the counts."""
        self._last = self._reader.read()

    def findings(self) -> list[Finding]:
        """Tables that are nearly full, with what fills them."""
        return [
            one
            for name in ("processes", "ports", "atoms")
            if (one := self._of(name, getattr(self._last, name), getattr(self._limits, name)))
        ]

    def _of(self, name: str, used: int, limit: int) -> Finding | None:
        if not limit or used < _NEAR * limit:
            return None
        share, grown = used / limit, used - int(getattr(self._first, name))
        rate = grown / self._scene.seconds
        text: tuple[str | Name, ...] = (
            f"{used:,} of {limit:,} {name} are in use ({100 * share:.0f} %)",
        )
        evidence: Evidence = {"used": used, "limit": limit, "share": round(share, 4)}
        evidence["per_second"] = round(rate, 1)
        about: Subject = {"what": name}
        if name == "atoms":
            newest = self._newest(used)
            evidence["newest"] = newest
            text = (*text, "; the newest is ", Name("name", newest[0])) if newest else text
        if name == "processes":
            more, about = self._largest_group()
            text = (*text, *more)
        following = (_FOLLOWING[name],)
        severity: Severity = "critical" if share >= _FULL else "warning"
        return Finding("limit", severity, about, text, evidence, "certain", following)

    def _newest(self, count: int) -> list[str]:
        texts = self._scene.viewer.atoms.texts(range(max(0, count - SHOWN), count))
        return [text for _, text in sorted(texts.items(), reverse=True) if text is not None]

    def _largest_group(self) -> tuple[tuple[str | Name, ...], Subject]:
        """What most processes run."""
        rows = self._scene.first.rows
        calls = self._scene.viewer.names.initial_calls(rows)
        counts: dict[Mfa | None, int] = {}
        for call in calls:
            counts[call] = counts.get(call, 0) + 1
        call, count = max(counts.items(), key=lambda one: one[1])
        if call is None:
            return (), {"what": "processes"}
        about: Subject = {"what": "processes", "initial_call": str(call)}
        return (f"; {count:,} of them run ", Name("initial_call", str(call))), about


def is_stopped(scene: Scene, states: list[str]) -> Finding | None:
    """That all threads of the VM are stopped, by what their schedulers do."""
    scene.stopped = bool(states) and all(one == "stopped" for one in states)
    if not scene.stopped:
        return None
    text = ("the VM is stopped (SIGSTOP or a debugger); SIGCONT lets it go on",)
    return Finding("stopped", "critical", {"what": "vm"}, text, {})
