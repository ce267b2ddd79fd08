# SPDX-License-Identifier: Apache-2.0
"""What grows until a VM ends, and is of no process's heap: ETS tables, timers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.held.tables import TableReader
from scope_ebpf.beam.held.timers import TIMERS, timers
from scope_ebpf.beam.processes.table import ProcessTable
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.checks.processes import LARGE, SHARE
from scope_ebpf.checks.scene import SHOWN, ps, subject, who
from scope_ebpf.errors import NoAnswerError, ReadRefusedError, TooMuchError
from scope_ebpf.results.check import Finding, Name

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.allocators import AllocatorReading
    from scope_ebpf.checks.scene import Scene
    from scope_ebpf.results.documents.checks import Evidence, Subject

#: Timers to one process from which on they are a finding.
_MANY_TIMERS = 100_000


class Held:
    """Tables and timers; they are read only where allocators say that there is much of them."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._allocators = AllocatorReader(scene.target)
        #: Why tables or timers were not read.
        self.refused: dict[str, str] = {}

    def look(self) -> None:
        """What is held is read at the end."""

    def findings(self) -> list[Finding]:
        """
        Tables of half the memory, processes to which very many timers will send.

        This part is the last one: where the limits of a look are reached, the others have found
        what they look for.
        """
        read, made = self._allocators.read(), list[Finding]()
        for name, part in (("tables", self._tables), ("timers", self._timers)):
            try:
                made += part(read)
            except NoAnswerError:
                raise
            except (ReadRefusedError, TooMuchError) as error:
                self.refused[name] = str(error)
        return made

    def _tables(self, read: AllocatorReading) -> list[Finding]:
        blocks = {one.name: one.blocks for one in read.allocators}
        total = (read.memory and read.memory.total) or sum(blocks.values())
        least = max(LARGE, SHARE * total)
        if blocks.get("ets", 0) < least:
            return []
        target = self._scene.target
        rows = TableReader(target).read().rows
        rows = rows[rows["memory_bytes"] >= least]
        rows = rows[np.argsort(-rows["memory_bytes"], kind="stable")][:SHOWN]
        names = self._scene.viewer.atoms.texts((rows["name"] >> np.uint64(6)).tolist())
        return [self._table(row, names[int(row["name"]) >> 6] or "?", total) for row in rows]

    def _table(self, row: np.void, name: str, total: int) -> Finding:
        scene, size, objects = self._scene, int(row["memory_bytes"]), int(row["objects"])
        owner = int(row["owner"])
        named = scene.involved(scene.rows_of([owner]))
        about: Subject = {"table": name, "process": scene.viewer.pids.text(owner)}
        about["name"] = named[0]["name"] if named else None
        text = (
            *("the ETS table ", Name("table", name)),
            *((" of ", who(named[0])) if named else ()),
            (
                f" has {objects:,} objects of {size / 1e6:,.0f} MB, "
                f"{100 * size / total:.0f} % of the VM's memory"
            ),
        )
        evidence: Evidence = {"bytes": size, "share": round(size / total, 4), "count": objects}
        following = ("ets {pid}", "memory {pid}")
        return Finding("ets", "warning", about, text, evidence, "certain", following, size)

    def _timers(self, read: AllocatorReading) -> list[Finding]:
        if read.timers is None or read.timers.bif < _MANY_TIMERS:
            return []
        scene = self._scene
        snapshot = ProcessTable(scene.target, TIMERS).snapshot()
        found = timers(scene.target, snapshot.rows)
        many = found.counts >= _MANY_TIMERS
        made = []
        for row, count, due in zip(
            found.rows[many][:SHOWN], found.counts[many], found.due[many], strict=False
        ):
            one = scene.involved(scene.rows_of([int(snapshot.rows["id"][row])]))
            if not one:
                continue
            text = (
                f"{count:,} timers{' or more' if found.cut else ''} are set to send to ",
                who(one[0]),
                f", the next in {due:,.1f} s: they are kept until then, or until it ends",
            )
            evidence: Evidence = {"count": int(count), "seconds": round(float(due), 3)}
            following = (ps(one[0]), "memory {pid}")
            made.append(
                Finding(
                    *("timers", "warning", subject(one[0]), text, evidence, "certain"),
                    following,
                    float(count),
                )
            )
        return made
