# SPDX-License-Identifier: Apache-2.0
"""
Calls of a capture: request, taking, reply and its receipt, joined by the call's reference.

The reference of a call is in its request and in its reply (OTP's gen.erl), and no two calls have
the same low 50 bits of it. So nothing is paired by order. A reply to an alias has no form when it
is sent; its receive has, and the ErtsMessage of both is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.results.documents import traces

#: Calls without an answer, and replies under way, that are kept; then the oldest are given up.
_MOST = 1 << 18
_FORM_SHIFT, _REFERENCE = 56, (1 << 50) - 1
_SEND, _RECEIVE = events.KINDS["send"].id, events.KINDS["receive"].id
_REMOTE = events.KINDS["send"].classes.index("remote")
_EVENTS = (_SEND, _RECEIVE)


@dataclass(slots=True)
class Call:
    """One call; times in ns as records have them, 0 for what was not seen."""

    reference: int
    #: Terms; 0 where they are not known: the caller is on another node, or the server is.
    caller: int = 0
    server: int = 0
    #: The request was sent, taken out of the mailbox of the server, answered; the answer was taken.
    sent_ns: int = 0
    taken_ns: int = 0
    replied_ns: int = 0
    ended_ns: int = 0
    #: The answer is that the server has exited.
    down: bool = False
    #: The server is on another node.
    remote: bool = False


class Calls:
    """Pairs calls out of records that are given in their order."""

    def __init__(self) -> None:
        self._open: dict[int, Call] = {}
        #: Messages of an unknown form under way, by receiver and address: when and by whom.
        self._sent: dict[tuple[int, int], tuple[int, int]] = {}
        #: Calls that were given up, because more were open than are kept.
        self.given_up = 0

    def records(self, batch: NDArray[np.void]) -> Iterator[Call]:
        """Take a batch of ``events.RECORD``; the calls that end in it."""
        chosen = (batch["kind"] == _SEND) | (batch["kind"] == _RECEIVE)
        forms = batch["body"][:, 3] >> np.uint64(_FORM_SHIFT)
        chosen &= (forms != events.FORM_INFO) & (forms != events.FORM_CAST)
        rows = batch[chosen & (batch["flags"] & events.FLAG_TEXT_PID == 0)]
        columns = (rows[name].tolist() for name in ("kind", "time_ns", "class", "process", "body"))
        for kind, time, cls, process, words in zip(*columns, strict=True):
            if kind == _SEND:
                self._send(time, cls, process, words)
            elif ended := self._receive(time, process, words):
                yield ended

    def open(self) -> list[Call]:
        """The calls whose answer was not seen, in the order in which they began."""
        return list(self._open.values())

    def _send(self, time: int, cls: int, process: int, words: list[int]) -> None:
        receiver, _, message, form = words
        what, reference = form >> _FORM_SHIFT, form & _REFERENCE
        if what == events.FORM_CALL:
            remote = cls == _REMOTE
            self._open[reference] = Call(reference, process, receiver, time, remote=remote)
            if len(self._open) > _MOST:
                del self._open[next(iter(self._open))]
                self.given_up += 1
        elif what == events.FORM_REPLY and (call := self._open.get(reference)):
            call.replied_ns = time
        elif what == events.FORM_UNKNOWN and message:
            self._sent.pop((receiver, message), None)
            self._sent[receiver, message] = (time, process)
            if len(self._sent) > _MOST:
                del self._sent[next(iter(self._sent))]

    def _receive(self, time: int, process: int, words: list[int]) -> Call | None:
        message, _, _, form = words
        what, reference = form >> _FORM_SHIFT, form & _REFERENCE
        replied, _ = self._sent.pop((process, message), (0, 0))
        if what == events.FORM_CALL and (call := self._open.get(reference)):
            call.server, call.taken_ns = process, time
        if what not in (events.FORM_REPLY, events.FORM_DOWN):
            return None
        call = self._open.get(reference)
        if call is None or call.caller != process:
            return None
        del self._open[reference]
        call.down = what == events.FORM_DOWN
        call.ended_ns = time
        if not call.down:
            call.replied_ns = call.replied_ns or (replied if replied > call.taken_ns else 0)
        return call


class CallTotals:
    """Calls by the label of their server, a process where it has none."""

    def __init__(self, name: Callable[[int], str | None]) -> None:
        self._name = name
        self._by_server: dict[str, _Totals] = {}

    def add(self, call: Call) -> None:
        """Count a call, ended or not."""
        known = self._name(call.server) if call.server else None
        name = known or (_REMOTE_SERVERS if call.remote else _NAMELESS)
        if name not in self._by_server and len(self._by_server) >= _SERVERS:
            name = _OTHERS
        self._by_server.setdefault(name, _Totals()).add(call)

    def as_json(self) -> list[traces.CallsOfServer]:
        """A row for each server, that with the most time of its callers first."""
        rows = [totals.as_json(name) for name, totals in self._by_server.items()]
        return sorted(rows, key=lambda row: (-row["blocked_seconds"], row["server"]))


#: Servers that are distinguished; durations of each that are kept for its percentiles.
_SERVERS, _DURATIONS = 256, 1 << 18
_REMOTE_SERVERS, _NAMELESS, _OTHERS = "(on other nodes)", "(without a name)", "(others)"


class _Totals:
    """What is known of the calls of one server."""

    def __init__(self) -> None:
        self.calls = self.down = self.unanswered = 0
        self.times = {part: _Times() for part in ("call", "queue", "service")}

    def add(self, call: Call) -> None:
        self.calls += 1
        self.down += call.down
        self.unanswered += not call.ended_ns
        if call.taken_ns:
            self.times["queue"].add(call.taken_ns - call.sent_ns)
        if call.replied_ns and call.taken_ns:
            self.times["service"].add(call.replied_ns - call.taken_ns)
        if call.ended_ns and not call.down:
            self.times["call"].add(call.ended_ns - call.sent_ns)

    def as_json(self, name: str) -> traces.CallsOfServer:
        return {
            "server": name,
            "calls": self.calls,
            "down": self.down,
            "unanswered": self.unanswered,
            "blocked_seconds": self.times["call"].total / 1e9,
            "call_seconds": self.times["call"].as_json(),
            "queue_seconds": self.times["queue"].as_json(),
            "service_seconds": self.times["service"].as_json(),
        }


class _Times:
    """Durations in ns."""

    def __init__(self) -> None:
        self.count = self.total = 0
        self._kept: list[int] = []

    def add(self, duration: int) -> None:
        self.count += 1
        self.total += duration
        if len(self._kept) < _DURATIONS:
            self._kept.append(duration)

    def as_json(self) -> traces.TimesOfCalls | None:
        """Mean and percentiles, which are None where there were more than are kept."""
        if not self.count:
            return None
        whole = self.count == len(self._kept)
        p50, p99 = np.percentile(self._kept, [50, 99]) / 1e9 if whole else (None, None)
        mean = self.total / self.count / 1e9
        return {
            "count": self.count,
            "mean": mean,
            "p50": None if p50 is None else float(p50),
            "p99": None if p99 is None else float(p99),
        }
