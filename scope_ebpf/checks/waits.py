# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom: suspended processes, full connections, busy ports, calls, deadlocks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.layouts.checks import check_ports, port_addresses
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import PortCodec
from scope_ebpf.beam.processes.monitors import suspenders
from scope_ebpf.beam.processes.sizes import LIMIT, ring
from scope_ebpf.beam.processes.table import SUSPENDED
from scope_ebpf.beam.servers.waiting import calls, stacks, waiting
from scope_ebpf.beam.vm.connections import MOST, ConnectionReader, waiters
from scope_ebpf.checks.scene import SHOWN, ps, subject, where, who
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.check import Finding, Name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.servers.waiting import Waiting
    from scope_ebpf.checks.scene import Scene
    from scope_ebpf.results.documents.checks import Evidence, Subject
    from scope_ebpf.results.kinds import Kind

#: Slots of a port table that are read, and callers whose stacks are read.
_MOST_PORTS, _CALLERS = 1 << 20, 4096
#: Callers that wait for one server, at every look.
_CROWD = 10
#: Processes of a long circle that the sentence names.
_NAMED = 4
#: The function in which processes wait for the code server, which is no gen_server
#: (OTP-25.2.3 lib/kernel/src/code_server.erl).
_LOADING = ("code_server", "call")
_MAX_NAME, _WORD = 64, 8


class Suspended:
    """Processes that were suspended at both readings, and by what."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        #: Why it is not known who waits for connections or ports.
        self.refused: dict[str, str] = {}

    def look(self) -> None:
        """The processes are read by the scene."""

    def findings(self) -> list[Finding]:
        """Full connections, busy ports, and processes that others suspended."""
        scene = self._scene
        rows = scene.last.rows
        before = scene.before(rows)
        both = rows["state"] & before["state"] & np.uint32(SUSPENDED) != 0
        left = set(rows["id"][both & (before["id"] == rows["id"])].tolist())
        if not left:
            return []
        made: list[Finding] = []
        for what, find in (("connections", self._links), ("ports", self._ports)):
            try:
                made += find(left)
            except ReadRefusedError as error:
                self.refused[what] = str(error)
        return made + self._others(left)

    def _links(self, left: set[int]) -> list[Finding]:
        made = []
        scene = self._scene
        for sysname, queued, pids in ConnectionReader(scene.target).full():
            stuck = [pid for pid in pids if pid in left]
            if not stuck:
                continue
            left.difference_update(stuck)
            peer = scene.viewer.atoms.text(sysname)
            text = (
                (
                    f"{_processes(len(stuck))} suspended for {scene.seconds:.0f} s or longer: the "
                    "link to "
                ),
                Name("node", peer),
                (
                    f" is full ({queued:,} bytes wait to be sent); that node or the network does "
                    "not take them"
                ),
            )
            evidence = self._evidence(stuck)
            evidence["queued_bytes"] = queued
            about: Subject = {"peer": peer}
            following = ("links {pid} --once",)
            weight = len(stuck)
            made.append(
                Finding(
                    "full_link", "critical", about, text, evidence, "certain", following, weight
                )
            )
        return made

    def _ports(self, left: set[int]) -> list[Finding]:
        made = []
        for port, name, pids in _busy_ports(self._scene):
            stuck = [pid for pid in pids if pid in left]
            if not stuck:
                continue
            left.difference_update(stuck)
            text = (
                (
                    f"{_processes(len(stuck))} suspended for {self._scene.seconds:.0f} s or "
                    f"longer: port {port} ("
                ),
                Name("port_name", name),
                ") is busy; what is behind it reads nothing",
            )
            evidence = self._evidence(stuck)
            following = tuple(
                f"ps {{pid}} {self._scene.viewer.pids.text(p)[1:-1]}" for p in stuck[:1]
            )
            about: Subject = {"port": port, "name": name}
            made.append(
                Finding(
                    "blocked_port",
                    "critical",
                    about,
                    text,
                    evidence,
                    "certain",
                    following,
                )
            )
        return made

    def _others(self, left: set[int]) -> list[Finding]:
        """Those that a process suspended, by the process."""
        scene = self._scene
        by: defaultdict[int, list[int]] = defaultdict(list)
        for pid in sorted(left)[:100]:
            rows = scene.rows_of([pid])
            for other in suspenders(
                scene.target, ring(scene.target, rows["watchers"], LIMIT).nodes
            ):
                by[other].append(pid)
        made = []
        for other, pids in by.items():
            rows = scene.rows_of([other])
            culprit = scene.involved(rows)
            victims = scene.involved(scene.rows_of(pids))
            if not culprit or not victims:
                continue
            text = (
                f"{_processes(len(pids))} suspended for {scene.seconds:.0f} s or longer by ",
                who(culprit[0]),
                " (erlang:suspend_process): ",
                who(victims[0]),
                " is one of them" if len(pids) > 1 else "",
            )
            evidence: Evidence = {"seconds": round(scene.seconds, 3), "count": len(pids)}
            evidence["processes"] = victims
            made.append(
                Finding(
                    "suspended",
                    "warning",
                    subject(culprit[0]),
                    text,
                    evidence,
                    "certain",
                    (ps(culprit[0]), ps(victims[0])),
                )
            )
        return made

    def _evidence(self, pids: list[int]) -> Evidence:
        scene = self._scene
        return {
            "seconds": round(scene.seconds, 3),
            "count": len(pids),
            "processes": scene.involved(scene.rows_of(pids[:SHOWN])),
        }


def _processes(count: int) -> str:
    return "1 process has been" if count == 1 else f"{count:,} processes have been"


def _busy_ports(scene: Scene) -> list[tuple[str, str, list[int]]]:
    """Ports that suspended processes: text, name, and the pid terms of those."""
    target = scene.target
    memory, layout = target.memory, target.layout
    check_ports(target)
    ports = port_addresses(target, _MOST_PORTS)
    raw, read = memory.gather(ports + np.uint64(layout.offset("Port", "suspended")), _WORD)
    lists, left, found = column(raw, 0, np.uint64), MOST, []
    codec = PortCodec.of(target)
    for row in np.flatnonzero(read & (lists != 0)).tolist():
        pids = waiters(memory, int(lists[row]), left)
        left -= len(pids)
        port = int(ports[row])
        name = memory.read(memory.u64(port + layout.offset("Port", "name")), _MAX_NAME)
        text = name.partition(b"\0")[0].decode("utf-8", "replace")
        found.append((codec.text(memory.u64(port)), text, pids))
    return found


class Calls:
    """Processes that wait for the replies of servers, at each look."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._looks: list[dict[int, Waiting]] = []
        #: Processes that wait for the code server at each look, of which some are named.
        self._loading: list[NDArray[np.void]] = []
        self._registered: dict[str, int] = {}
        rows = scene.first.rows
        named = rows[rows["registered"] != 0][:_CALLERS]
        names = scene.viewer.names.registered(named)
        self._registered = {n: p for n, p in zip(names, named["id"].tolist(), strict=True) if n}
        self._calling = np.empty(0, np.uint64)
        self._candidates = rows[:0]
        self.look()

    def look(self) -> None:
        """Read for whom processes wait now."""
        scene = self._scene
        names = scene.viewer.names
        if not self._looks:
            rows = scene.first.rows
        elif len(scene.first.rows) <= 20_000:
            rows = scene.whole().rows
        else:
            rows = scene.table.at(self._candidates["slot"].astype(np.int64)).rows
        loads = names.in_functions(rows, lambda function: function[:2] == _LOADING)
        self._loading.append(rows[loads])
        here = names.in_functions(rows, calls)
        callers: NDArray[np.void] = rows[here][:_CALLERS]
        self._candidates = rows[here | loads][:_CALLERS]
        found = waiting(scene.viewer, stacks(scene.viewer, callers), self._registered)
        known = {one.caller: one for one in found if one is not None and one.server is not None}
        self._looks.append(known)

    def findings(self) -> list[Finding]:
        """Deadlocks, then servers that many wait for."""
        first, last = self._looks[0], self._looks[-1]
        same = {
            pid: one.server
            for pid, one in last.items()
            if pid in first and first[pid].reference == one.reference and one.server is not None
        }
        circles = _circles(same)
        made = [self._deadlock(circle, same) for circle in circles[:SHOWN]]
        self._scene.more["deadlock"] += len(circles[SHOWN:])
        made += self._crowds({pid for circle in circles for pid in circle})
        return made + self._code()

    def _code(self) -> list[Finding]:
        """That many wait for the code server at every look."""
        scene, least = self._scene, min(map(len, self._loading))
        if least < _CROWD:
            return []
        callers = scene.involved(self._loading[-1])
        about: Subject = {"what": "code", "name": "code_server"}
        text = (
            f"{least:,} processes or more wait for code_server, such as ",
            who(callers[0]),
            ": modules are loaded or looked for all the time",
        )
        evidence: Evidence = {"waiting": len(self._loading[-1])}
        evidence |= {"seconds": round(scene.seconds, 3), "processes": callers}
        following = (
            "calls {pid} code:ensure_loaded/1",
            "calls {pid} error_handler:undefined_function/3",
        )
        return [
            Finding("code_loading", "warning", about, text, evidence, "certain", following, least)
        ]

    def _deadlock(self, order: list[int], same: dict[int, int]) -> Finding:
        scene, circle = self._scene, dict.fromkeys(order)
        rows = [scene.rows_of([pid]) for pid in order[:SHOWN]]
        members = [one for row in rows for one in scene.involved(row)]
        behind = sum(root in circle for root in _roots(same).values()) - len(circle)
        named = members[: _NAMED if len(circle) > SHOWN else SHOWN]
        names: list[str | Name] = []
        for one in named:
            names += [who(one), " -> "]
        if len(circle) > len(named):
            names.append(f"{len(circle) - len(named):,} more -> ")
        names += map(who, members[:1])
        text = (
            f"deadlock: {len(circle):,} processes wait for each other's reply: ",
            *names,
            f"; {behind:,} more wait for them" if behind else "",
        )
        evidence: Evidence = {"seconds": round(scene.seconds, 3), "waiting": behind}
        evidence |= {"count": len(circle), "processes": members}
        about: Subject = subject(members[0]) if members else {"what": "processes"}
        following = tuple(map(ps, members[:1]))
        return Finding("deadlock", "critical", about, text, evidence, "certain", following, behind)

    def _crowds(self, known: set[int]) -> list[Finding]:
        """Servers that many wait for at every look, followed to whom they wait for themselves."""
        counts = []
        for look in self._looks:
            count: defaultdict[int, int] = defaultdict(int)
            for one in look.values():
                count[one.server or 0] += 1
            counts.append(count)
        roots = _roots({pid: one.server or 0 for pid, one in self._looks[-1].items()})
        crowds = []
        for server in counts[-1]:
            least = min(count[server] for count in counts)
            root = roots.get(server, server)
            if least >= _CROWD and root not in known:
                crowds.append((least, server, root))
        crowds.sort(reverse=True)
        self._scene.more["waits_for"] += len(crowds[SHOWN:])
        return [one for crowd in crowds[:SHOWN] for one in self._crowd(*crowd)]

    def _crowd(self, least: int, server: int, root: int) -> list[Finding]:
        scene, last = self._scene, self._looks[-1]
        callee = scene.involved(scene.rows_of([server]))
        if not callee:
            return []
        behind = scene.involved(scene.rows_of([root])) if root != server else []
        kind: Kind = "waits_for"
        if (callee[0]["name"] or "") in ("code_server", "erl_prim_loader"):
            kind = "code_loading"
        elif (callee[0]["name"] or "").startswith("logger"):
            kind = "logger"
        callers = [pid for pid, one in last.items() if one.server == server]
        chain: tuple[str | Name, ...] = where(callee[0])
        if behind:
            chain = ", which waits itself for ", who(behind[0]), *where(behind[0])
        text = (f"{least:,} processes or more wait for ", who(callee[0]), *chain)
        evidence: Evidence = {"waiting": len(callers), "seconds": round(scene.seconds, 3)}
        evidence["processes"] = scene.involved(scene.rows_of(callers[:SHOWN]))
        following = (ps(callee[0]), "genservers {pid}")
        return [
            Finding(
                kind, "warning", subject(callee[0]), text, evidence, "certain", following, least
            )
        ]


def _roots(waits: dict[int, int]) -> dict[int, int]:
    """The last for whom each waits, by way of others; one of the circle if it leads into one."""
    found: dict[int, int] = {}
    for start in waits:
        path: dict[int, None] = {}
        at = start
        while at in waits and at not in found and at not in path:
            path[at] = None
            at = waits[at]
        end = found.get(at, at)
        found.update(dict.fromkeys(path, end))
    return found


def _circles(waits: dict[int, int]) -> list[list[int]]:
    """Processes that wait for each other, from the smallest pid of each circle on."""
    found: list[list[int]] = []
    done: set[int] = set()
    for start in waits:
        path: dict[int, None] = {}
        at = start
        while at in waits and at not in path and at not in done:
            path[at] = None
            at = waits[at]
        if at in path:
            order = [*path]
            circle = order[order.index(at) :]
            first = circle.index(min(circle))
            found.append([*circle[first:], *circle[:first]])
        done.update(path)
    return found
