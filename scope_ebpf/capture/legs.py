# SPDX-License-Identifier: Apache-2.0
"""
Calls from node to node, and the seven legs of each.

A call has one reference on both nodes (OTP's gen.erl). The caller's node has it in the request that
is sent, in the packet of the monitor that comes before the request, and in the answer that is
taken; the server's node in the request that is taken, in the answer, and in the packet of the
answer, which goes to the reference as an alias. The request is the next message of the caller on
that connection behind the monitor; where a packet between both was lost, it is not taken for one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.capture.merging import Link, Node

#: Calls under way that are kept; then the oldest are given up.
_MOST = 1 << 16
_FORM_SHIFT, _REFERENCE = np.uint64(56), np.uint64((1 << 50) - 1)
_SEND, _RECEIVE = events.KINDS["send"], events.KINDS["receive"]
_REMOTE = _SEND.classes.index("remote")
_OUT = events.KINDS["dist_out"].classes
_MESSAGE = _OUT.index("message")
#: Operations of the distribution protocol (OTP-27.3.4.1 dist.h): MONITOR_P, messages to an alias.
_MONITOR, _ALIAS = 19, (33, 34)
_REFERENCE_KIND = np.uint64(events.REMOTE_REF)
_KIND_SHIFT = np.uint64(62)
#: The moments of a call, in their order.
MOMENTS = ("sent", "out", "in", "taken", "replied", "reply_out", "reply_in", "ended")
#: The time between two moments that follow each other.
LEGS = (
    *("to_link", "over_link", "to_server", "in_server"),
    *("reply_to_link", "reply_over_link", "to_caller"),
)
#: Those that begin on one node and end on another.
_OVER = ("over_link", "reply_over_link")


class CallKey(NamedTuple):
    """The node of the caller, and the low bits of the reference."""

    node: str
    reference: int


@dataclass(slots=True, eq=False)
class RemoteCall:
    """One call from node to node; times are those of the records, 0 for what was not seen."""

    client: Node
    reference: int
    #: Terms of its own node; 0 where it is not known.
    caller: int
    #: None until its node was seen to take or answer the request.
    target: Node | None = None
    server: int = 0
    down: bool = False
    sent: int = 0
    out: int = 0
    in_: int = 0
    taken: int = 0
    replied: int = 0
    reply_out: int = 0
    reply_in: int = 0
    ended: int = 0

    def moments(self) -> tuple[int, ...]:
        """The times of MOMENTS, ns as records have them; 0 for what was not seen."""
        return (
            *(self.sent, self.out, self.in_, self.taken),
            *(self.replied, self.reply_out, self.reply_in, self.ended),
        )

    def legs(self) -> tuple[int | None, ...]:
        """The times of LEGS, ns; None where an end was not seen, or is on a clock of its own."""
        times = self.moments()
        one_clock = self.client.aligned and self.target is not None and self.target.aligned
        return tuple(
            end - begin if begin and end and (one_clock or leg not in _OVER) else None
            for leg, begin, end in zip(LEGS, times, times[1:], strict=False)
        )


def trace_id(node: str, reference: int) -> str:
    """
    The trace of a call, 32 hexadecimal digits: both nodes make the same one, each of its own data.

    *node* is that of the caller, *reference* the low bits of the call's reference.
    """
    return hashlib.sha256(f"call {node} {reference}".encode()).hexdigest()[:32]


def span_id(node: str, reference: int, part: str) -> str:
    """A span of a call, 16 hexadecimal digits, made as the trace is."""
    return hashlib.sha256(f"{part} {node} {reference}".encode()).hexdigest()[:16]


class RemoteCalls:
    """
    Puts calls together from batches of nodes and pairs of packets, which are on one clock.

    *ended* gets each call that has ended, once, when no more of it can come.
    """

    def __init__(self, ended: Callable[[RemoteCall], object]) -> None:
        self._ended = ended
        self._open: dict[CallKey, RemoteCall] = {}
        #: Calls by the server that has taken them; None where two have the same reference.
        self._serving: dict[tuple[Node, int, int], CallKey | None] = {}
        #: Callers on a link whose monitor was sent, and the reference of the call.
        self._monitored: dict[Link, dict[int, int]] = {}
        self._last: dict[Link, int] = {}
        #: Calls that were given up, because more were open than are kept.
        self.given_up = 0

    def batch(self, node: Node, batch: NDArray[np.void]) -> None:
        """Take the messages of a node."""
        chosen = (batch["kind"] == _SEND.id) | (batch["kind"] == _RECEIVE.id)
        forms = batch["body"][:, 3] >> _FORM_SHIFT
        chosen &= (forms == events.FORM_CALL) | (forms >= events.FORM_REPLY)
        rows = batch[chosen & (batch["flags"] & events.FLAG_TEXT_PID == 0)]
        columns = (rows[name].tolist() for name in ("kind", "time_ns", "class", "process"))
        words = rows["body"][:, 3]
        forms = (words >> _FORM_SHIFT).tolist()
        references = (words & _REFERENCE).tolist()
        # The sender of a message that was taken; of one from another node it is the node.
        senders = rows["body"][:, 2].tolist()
        for kind, time, cls, process, form, reference, sender in zip(
            *columns, forms, references, senders, strict=True
        ):
            if kind == _SEND.id and cls == _REMOTE:
                self._sent(node, time, process, (form, reference))
            elif kind == _RECEIVE.id:
                self._taken(node, time, process, (form, reference, sender))

    def _sent(self, node: Node, time: int, process: int, message: tuple[int, int]) -> None:
        form, reference = message
        if form == events.FORM_CALL:
            call = self._call(node, reference)
            call.caller, call.sent = process, time
        elif form == events.FORM_REPLY:
            key = self._serving.pop((node, process, reference), None)
            if key in self._open and (call := self._open[key]).target is node:
                call.replied = time
                self._complete(key)

    def _taken(self, node: Node, time: int, process: int, message: tuple[int, int, int]) -> None:
        form, reference, sender = message
        if form == events.FORM_CALL:
            client = node.peers.get(sender)
            if client is None:
                return
            key = CallKey(client.name, reference)
            call = self._call(client, reference)
            call.target, call.server, call.taken = node, process, time
            place = node, process, reference
            self._serving[place] = None if place in self._serving else key
            _bound(self._serving)
            self._complete(key)
        elif (own := self._open.get(key := CallKey(node.name, reference))) and (
            own.caller == process
        ):
            own.down, own.ended = form == events.FORM_DOWN, time
            self._complete(key)

    def pairs(self, link: Link, out: NDArray[np.void], received: NDArray[np.void]) -> None:
        """Take packets with both ends, in their order."""
        self._requests(link, out, received)
        answers = np.isin(out["operation"], _ALIAS)
        answers &= out["receiver"] >> _KIND_SHIFT == _REFERENCE_KIND
        rows = zip(
            (out["receiver"][answers] & _REFERENCE).tolist(),
            out["time_ns"][answers].tolist(),
            received["time_ns"][answers].tolist(),
            strict=True,
        )
        for reference, sent, came in rows:
            key = CallKey(link.target.name, reference)
            call = self._open.get(key)
            if call and call.target in (None, link.source):
                call.target, call.reply_out, call.reply_in = link.source, sent, came
                self._complete(key)

    def _requests(self, link: Link, out: NDArray[np.void], received: NDArray[np.void]) -> None:
        """Find the request behind each monitor."""
        waiting = self._monitored.setdefault(link, {})
        monitors = (out["operation"] == _MONITOR) & (
            out["receiver"] >> _KIND_SHIFT == _REFERENCE_KIND
        )
        numbers = out["number"].astype(np.int64)
        before = self._last.get(link, int(numbers[0]) - 1)
        self._last[link] = int(numbers[-1])
        if not waiting and not monitors.any():
            return
        callers = np.unique(out["process"][monitors]).tolist() + list(waiting)
        gaps = np.diff(numbers, prepend=before) != 1
        of_callers = np.isin(out["process"], np.array(callers, np.uint64))
        chosen = gaps | monitors | (of_callers & (out["class"] == _MESSAGE))
        rows = zip(
            *(column[chosen].tolist() for column in (gaps, monitors, out["process"])),
            (out["receiver"][chosen] & _REFERENCE).tolist(),
            *(rows["time_ns"][chosen].tolist() for rows in (out, received)),
            (out["class"][chosen] == _MESSAGE).tolist(),
            strict=True,
        )
        for gap, monitor, process, reference, sent, came, message in rows:
            if gap:
                waiting.clear()
            if monitor:
                waiting[process] = reference
                _bound(waiting)
            elif (
                message
                and (asked := waiting.pop(process, None)) is not None
                # Its send was read before; other monitors are of no call.
                and (call := self._open.get(key := CallKey(link.source.name, asked)))
            ):
                call.out, call.in_ = sent, came
                self._complete(key)

    def _call(self, client: Node, reference: int) -> RemoteCall:
        key = CallKey(client.name, reference)
        call = self._open.get(key)
        if call is None:
            call = self._open[key] = RemoteCall(client, reference, 0)
            if len(self._open) > _MOST:
                self._give_up(next(iter(self._open)))
        return call

    def _complete(self, key: CallKey) -> None:
        """Deliver a call of which everything was seen."""
        call = self._open[key]
        if all(call.moments()):
            del self._open[key]
            self._ended(call)

    def _give_up(self, key: CallKey) -> None:
        call = self._open.pop(key)
        if call.ended and call.sent:
            self._ended(call)
        else:
            self.given_up += 1

    def finish(self) -> None:
        """Deliver the calls that have ended, of which not everything was seen."""
        for call in self._open.values():
            if call.ended and call.sent:
                self._ended(call)
        self._open.clear()


def _bound(table: dict[Any, Any]) -> None:
    if len(table) > _MOST:
        del table[next(iter(table))]
