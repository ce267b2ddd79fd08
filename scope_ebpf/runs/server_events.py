# SPDX-License-Identifier: Apache-2.0
"""Messages of servers during one run: everything counted, or moments within a budget."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.servers.constants import server_settings
from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError, ScopeError
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.cost import GUESS, CostMeasurement
from scope_ebpf.kernel.observers.server_watch import ServerWatch
from scope_ebpf.planning.servers import server_hooks
from scope_ebpf.results.server_events import Cost, EdgeCount, Messages, ServerEvents, Times
from scope_ebpf.runs.server_leftovers import Leftovers
from scope_ebpf.runs.target_cost import CpuUse, say_braked

if TYPE_CHECKING:
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.runs.loop import Stop

#: Seconds between two looks at new modules and at the cost.
_INTERVAL = 0.5
#: What a program takes beside the trap, as a part of what a trap takes (bench/genservers.py).
PROGRAM = 0.7
#: Slots that belong to no module.
_NAMES = {
    events.SLOT_PROCESSES: "(processes)",
    events.SLOT_OTHER: "(other modules)",
    events.SLOT_REMOTE: "(other nodes)",
}
#: The key of processes that are no servers in server_modules.
_NO_SERVER = 1
_KINDS = ("calls", "casts", "infos")
#: Seconds to wait for the cost of a hit when the run is over.
_COST_PATIENCE = 1.0


class Counting(Closing):
    """
    Counts every message of the servers of a VM, from :meth:`begin` to :meth:`end`.

    With *by_tag* also by the tags of requests. A context manager. *stop* is asked when it takes
    more than *max_cost* of the CPU of the VM. Raises ReadRefusedError and NothingToAttachError
    where messages cannot be seen.
    """

    #: Whether everything is watched, also what takes most hits.
    _whole = True
    #: The part of a module's messages from which on those that the VM has moved make its queue
    #: times unknown: they are those that wait longest, without which p99 is too short.
    _moved = 0.01

    def __init__(
        self, viewer: Viewer, max_cost: float | None, stop: Stop, *, by_tag: bool = False
    ) -> None:
        self._viewer, self._stop = viewer, stop
        target = viewer.target
        hooks, why = server_hooks(target.binary, target.flavor, whole=self._whole)
        if not hooks:
            raise NothingToAttachError(why)
        self._hooks = len(hooks)
        settings = server_settings(viewer)
        self._watch = ServerWatch(target.identity, settings, hooks, by_tag=by_tag)
        self._by_tag = by_tag
        #: Tags of requests, by their slots.
        self._tags: dict[int, str] = {}
        self._leftovers = Leftovers(viewer.table, self._watch)
        self._names = dict(_NAMES)
        #: Slots of processes that are no servers.
        self._callers = set(_NAMES) - {events.SLOT_OTHER}
        self._brake = Brake(max_cost)
        self._resources = ExitStack()
        self._next_look = 0.0
        self._cpu = CpuUse(target.pid)
        self._began = self._ended = 0

    def _open(self) -> None:
        measurement = CostMeasurement()
        self._measurement = self._resources.enter_context(closing(measurement))
        self._resources.enter_context(self._watch)

    def begin(self) -> None:
        """Attach the hooks, then count."""
        self._watch.attach()
        self._cpu.begin()
        self._began = self._watch.open_window()

    def look(self, now: float) -> None:
        """Name modules that are new, and end the run if it costs too much; now and then."""
        if now < self._next_look:
            return
        self._next_look = now + _INTERVAL
        self._cpu.update()
        self._learn_names()
        self._leftovers.look(now)
        hits = self._hits()
        if self._brake.add(now, lambda: self._price(hits), self._cpu.seconds):
            say_braked(self._brake)
            self._stop.ask("cost")

    def _seconds(self) -> float:
        """Seconds of the VM's CPU that hits took until now."""
        return self._price(self._hits())

    def _price(self, hits: int) -> float:
        """Seconds that *hits* took, by what is known of their cost now."""
        return hits * (1 + PROGRAM) * (self._measurement.cost() or GUESS).entry

    def _hits(self) -> int:
        counts = self._watch.counts()
        return sum(counts.values()) - counts["lost"] - counts["unreadable"]

    def _learn_names(self) -> None:
        """Read the names of the modules that have got slots; they go with the VM."""
        new = {s: of for s, of in self._watch.modules().items() if s not in self._names}
        for slot, (module, function) in new.items():
            with suppress(ReadRefusedError):
                text = self._viewer.atoms.text(module)
                if function == _NO_SERVER:
                    self._callers.add(slot)
                elif function and "fun-" in self._viewer.atoms.text(function):
                    text = f"Agent ({text})"
                self._names[slot] = text
        if self._by_tag:
            self._learn_tags()

    def _learn_tags(self) -> None:
        """Read the tags that have got slots, which are those of their modules too."""
        for slot, (module, tag) in self._watch.tags().items():
            if slot not in self._tags and module in self._names:
                with suppress(ReadRefusedError):
                    self._tags[slot] = self._viewer.atoms.text(tag)
                    self._names[slot] = self._names[module]

    def end(self) -> None:
        """Count no longer, and take the hooks out."""
        self._ended = self._watch.close_window()
        self._cpu.update()
        self._leftovers.last(self._ended)
        with suppress(ScopeError):  # the VM may have ended
            self._learn_names()
        self._watch.detach()

    def name_of(self, slot: int) -> str:
        """The module of a slot; "?" if it could not be read any more."""
        return self._names.get(slot, "?")

    def result(self) -> ServerEvents:
        """What was seen; after :meth:`end`."""
        found = ServerEvents()
        observed = (self._ended - self._began) / 1e9
        for slot, stats in enumerate(self._watch.stats()):
            if slot not in self._callers and (slot in self._names or stats["calls"]):
                self._add(found, slot, _messages(stats, observed, self._are_moved(slot, stats)))
        for edge in self._watch.edges():
            total = self._edge(found, edge.caller, edge.callee)
            total.add(edge.calls, edge.blocked_ns / 1e9)
        for call in self._watch.open_calls():
            total = self._edge(found, int(call["caller_slot"]), int(call["slot"]))
            total.add(0, max(0, self._ended - int(call["sent_ns"])) / 1e9)
        if not self._full():
            found.others = Messages.none(observed)
        self._finish(found)
        return found

    def _are_moved(self, slot: int, stats: np.void) -> bool:
        """Whether queue times are not known: the VM has moved many messages that waited."""
        moved = int(self._leftovers.moved[slot])
        return moved > self._moved * (moved + int(stats["queue"].sum()) + self._cut_in_queue(slot))

    def _cut_in_queue(self, _slot: int) -> int:
        """The messages of a slot that still waited when they were watched no longer."""
        return 0

    def _full(self) -> bool:
        """Whether there were more modules than slots."""
        other = self._watch.stats()[events.SLOT_OTHER]
        return any(other[name] for name in _KINDS)

    def _edge(self, found: ServerEvents, caller: int, callee: int) -> EdgeCount:
        return found.edges.setdefault((self.name_of(caller), self.name_of(callee)), EdgeCount())

    def _add(self, found: ServerEvents, slot: int, messages: Messages) -> None:
        if messages.any:
            name = self.name_of(slot)
            # Servers of one module may have begun in several functions.
            before = found.modules.get(name)
            found.modules[name] = messages if before is None else before.plus(messages)
            if self._by_tag:
                key = name, self._tags.get(slot)
                same = found.tags.get(key)
                found.tags[key] = messages if same is None else same.plus(messages)

    def _finish(self, found: ServerEvents) -> None:
        counts = self._watch.counts()
        found.lost = counts["lost"]
        hits = self._hits()
        measured = self._measurement.cost(_COST_PATIENCE)
        seconds = hits * (1 + PROGRAM) * measured.entry if measured else None
        used = self._cpu.seconds
        share = share_of(seconds, used) if seconds is not None and used else None
        found.cost = Cost(self._hooks, hits, seconds, share)
        if counts["unreadable"]:
            found.notes.append(f"{counts['unreadable']} reads of the VM's memory failed in hooks")
        self._say_moved(found)
        if self._full():
            found.notes.append(
                f"more than {events.SERVER_SLOTS - events.SLOT_FIRST} modules: those that came "
                "last are counted together, as (other modules)"
            )

    def _say_moved(self, found: ServerEvents) -> None:
        stats = enumerate(self._watch.stats())
        names = {self.name_of(slot) for slot, one in stats if self._are_moved(slot, one)}
        if names:
            found.notes.append(
                f"no queue times of {len(names)} module{'s' * (len(names) > 1)}: the VM moved "
                "messages that waited (garbage collection), and nobody knows how long those waited"
            )

    def close(self) -> None:
        """Take the hooks out, and give everything back."""
        self._resources.close()


def _messages(stats: np.void, seconds: float, moved: bool) -> Messages:
    """What was counted in *seconds* without a gap; *moved* is whether queue times are not known."""
    queue, service, call = (
        Times(stats[name].astype(np.int64), int(stats[f"{name}_ns"]) / 1e9)
        for name in ("queue", "service", "call")
    )
    return Messages(
        seconds,
        int(stats["calls"]),
        int(stats["casts"]),
        int(stats["infos"]),
        queue.unknown() if moved else queue,
        service,
        call,
        int(stats["timeouts"]),
        int(stats["down"]),
        int(stats["abandoned"]),
    )
